//! The body of a message as bytes, and back.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Message;

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
    /// A compressed message is none, or is too large.
    #[error("a compressed message cannot be decompressed")]
    Decompression(#[source] io::Error),
    /// A compressed message holds another compressed one.
    #[error("a compressed message holds another compressed one")]
    Nested,
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

impl Message {
    /// Reads a message from the whole of a frame. One that is compressed is decompressed; it holds at most `limit`
    /// bytes, those of a frame of this conversation, and no other compressed one.
    ///
    /// # Errors
    /// [`CodecError`], as [`Message::decode`], and for a compressed message that is none.
    pub fn decode_frame(frame: &[u8], limit: usize) -> Result<Self, CodecError> {
        let compressed = match Self::decode(frame)? {
            Self::Compressed(compressed) => compressed,
            message => return Ok(message),
        };
        let bytes =
            zstd::bulk::decompress(&compressed.0, limit).map_err(CodecError::Decompression)?;
        match Self::decode(&bytes)? {
            Self::Compressed(_) => Err(CodecError::Nested),
            message => Ok(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Data;
    use super::*;

    fn encoded(message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes).unwrap();
        bytes
    }

    fn compressed(bytes: &[u8]) -> Vec<u8> {
        encoded(&Message::Compressed(Data(zstd::bulk::compress(bytes, 1).unwrap())))
    }

    #[test]
    fn a_compressed_message_is_the_message() {
        let log = encoded(&Message::LogData(Data(vec![7; 100_000])));
        let frame = compressed(&log);
        assert!(frame.len() < 1000);
        let Message::LogData(data) = Message::decode_frame(&frame, FRAME_LIMIT).unwrap() else {
            panic!()
        };
        assert_eq!(data.0, vec![7; 100_000]);
        let Message::LogData(data) = Message::decode_frame(&log, FRAME_LIMIT).unwrap() else {
            panic!()
        };
        assert_eq!(data.0.len(), 100_000, "one that is not compressed");
    }

    #[test]
    fn hostile_compressed_messages_are_refused() {
        let nested = compressed(&compressed(&encoded(&Message::Measured(()))));
        assert!(matches!(Message::decode_frame(&nested, FRAME_LIMIT), Err(CodecError::Nested)));
        let bomb = compressed(&vec![0; FRAME_LIMIT + 1]);
        assert!(bomb.len() < 10_000);
        assert!(matches!(
            Message::decode_frame(&bomb, FRAME_LIMIT),
            Err(CodecError::Decompression(_))
        ));
        // Whoever is not paired yet may send small frames alone, and cannot make them large here.
        let small = compressed(&encoded(&Message::LogData(Data(vec![0; 100_000]))));
        assert!(small.len() < 1024);
        assert!(matches!(Message::decode_frame(&small, 1024), Err(CodecError::Decompression(_))));
        let torn = encoded(&Message::Compressed(Data(b"no zstd frame".to_vec())));
        assert!(matches!(
            Message::decode_frame(&torn, FRAME_LIMIT),
            Err(CodecError::Decompression(_))
        ));
        assert!(matches!(
            Message::decode_frame(&compressed(&[]), FRAME_LIMIT),
            Err(CodecError::UnknownKind(0))
        ));
    }
}
