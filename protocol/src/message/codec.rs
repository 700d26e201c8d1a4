//! The body of a message as bytes, and back.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A message could not be encoded, or bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// This version of the protocol does not know the number.
    #[error("message number {0} is unknown")]
    UnknownKind(u8),
    /// The bytes behind the number are not that message.
    #[error("malformed {kind} message")]
    Malformed {
        /// The message's name.
        kind: &'static str,
        /// What the decoder said.
        #[source]
        source: bincode::error::DecodeError,
    },
    /// Bytes follow the message.
    #[error("{0} message is longer than its content")]
    TrailingBytes(&'static str),
    /// The message could not be encoded.
    #[error("cannot encode a {kind} message")]
    Unencodable {
        /// The message's name.
        kind: &'static str,
        /// What the encoder said.
        #[source]
        source: bincode::error::EncodeError,
    },
}

/// Maximum size of a frame in bytes.
pub const FRAME_LIMIT: usize = 4 * 1024 * 1024;
/// Maximum number of bytes into which a message may decode. The decoder checks a collection against it before
/// it allocates the collection.
const DECODE_LIMIT: usize = FRAME_LIMIT * 2;

pub(super) fn encode_body<T: Serialize>(
    kind: &'static str,
    body: &T,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    bincode::serde::encode_into_std_write(body, out, bincode::config::standard())
        .map(drop)
        .map_err(|source| CodecError::Unencodable { kind, source })
}

pub(super) fn decode_body<T: DeserializeOwned>(
    kind: &'static str,
    body: &[u8],
) -> Result<T, CodecError> {
    let config = bincode::config::standard().with_limit::<DECODE_LIMIT>();
    let (value, read) = bincode::serde::decode_from_slice(body, config)
        .map_err(|source| CodecError::Malformed { kind, source })?;
    if read == body.len() { Ok(value) } else { Err(CodecError::TrailingBytes(kind)) }
}
