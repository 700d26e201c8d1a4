//! The wire: TLS 1.3 between two paired hosts, in it a preamble that names the protocol's versions, then
//! length-delimited frames.
//!
//! ```text
//! preamble   "NETMIG" version:u16be oldest:u16be   the server first, 10 bytes
//! frame      length:u32be number:u8 body           length counts number and body
//! ```
//!
//! In TLS 1.3 a client has ended its handshake before the server has looked at its certificate; the
//! server's preamble tells the client that it is accepted, and the client sends nothing before it.
//!
//! # Versions
//!
//! Version 6 is the first that has compatible successors. Older agents speak one version each, and are refused
//! by name.
//!
//! - An agent speaks its own version ([`VERSION`]) and the one before it ([`OLDEST`]). Two agents speak the
//!   lower of their versions. Each refuses the other if either of the two does not speak that one any more.
//! - The first 8 bytes of the preamble never change, and there are 10 from version 6 on. So any two
//!   agents can name each other's versions.
//! - A message's body never changes once it is released. What has to change gets a new message number.
//! - A message that not every compatible version knows needs a capability. [`Hello`](crate::message::Hello)
//!   names the sender's capabilities; a message that needs one is sent only to an agent that named it, and
//!   [`Connection::send`] refuses any other. Unknown capabilities are ignored, unknown message numbers refused.
//! - The body of `Hello` is a map from names to bytes. Fields may be added at any time, and a receiver ignores
//!   those that it does not know.
//! - `protocol/tests/conversations` holds recorded frames of every message of every version that is spoken. A
//!   test decodes them and encodes them to the same bytes.
//!
//! Frames are not those of `tokio_util::codec::LengthDelimitedCodec`: it reserves memory for the length that a
//! peer claims before the bytes arrive, its error does not say which length was refused, and it copies each frame
//! once more.

mod bulk;
mod error;
mod introduction;
mod open;
mod streams;
mod version;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsStream;

use self::bulk::Bulk;
pub use self::bulk::{BulkOptions, Compression, ZSTD};
pub use self::error::Error;
use self::streams::{Incoming, Outgoing};
pub use self::streams::{MAX_STREAMS, STREAMS};
pub use self::version::{OLDEST, VERSION};
use crate::message::{Failure, Message};
use crate::trust::Fingerprint;
use state::deadline;
use state::id::HostId;

/// Number of payload bytes that a sender puts into one frame of a stream.
pub const PIECE: usize = 256 * 1024;
/// Number of flows that a sender puts into one frame.
pub const FLOWS_PER_FRAME: usize = 4096;

/// Number of bytes in front of a frame that hold its length.
const PREFIX: usize = 4;

/// How long the agent looks for the reason why the other host closed a connection: it has arrived already.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A connection to an authenticated host, past the preambles.
#[derive(Debug)]
pub struct Connection {
    // TLS asks for a few kilobytes at a time; the buffer below it takes more from the kernel at once.
    stream: TlsStream<BufReader<TcpStream>>,
    peer: SocketAddr,
    /// What the other host is called in messages.
    called: String,
    local: SocketAddr,
    fingerprint: Fingerprint,
    version: u16,
    /// What the other host's agent understands beyond the version's own messages.
    capabilities: BTreeSet<String>,
    frame_limit: usize,
    scratch: Vec<u8>,
    /// A frame was begun and not finished: its sender was cancelled or ran into its deadline.
    torn: bool,
    bulk: Bulk,
    outgoing: Option<Outgoing>,
    incoming: Option<Incoming>,
}

impl Connection {
    /// Returns address and port of the other host.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Returns address and port of this host.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Returns the fingerprint of the other host's certificate. The handshake has proven that the other
    /// host holds the private key.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Returns the identity of the other host.
    #[must_use]
    pub fn host(&self) -> HostId {
        self.fingerprint.host()
    }

    /// Returns the version of the protocol that both agents speak.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Sends one message. After a send that did not end, every other one fails: the other host would take it
    /// for the rest of that frame.
    ///
    /// # Errors
    /// [`Error::NotUnderstood`], if the message needs a capability that the other host's agent did not name;
    /// [`Error::Failure`], if the other host has closed the connection with a reason; [`Error::Deadline`], if it
    /// does not take the data in time; [`Error::Codec`], [`Error::FrameLength`], [`Error::Closed`] and
    /// [`Error::Io`].
    pub async fn send(&mut self, message: &Message) -> Result<(), Error> {
        self.encode(message)?;
        self.write_frame().await
    }

    /// Encodes a message into the frame that is sent next.
    fn encode(&mut self, message: &Message) -> Result<(), Error> {
        let mut frame = std::mem::take(&mut self.scratch);
        frame.clear();
        frame.extend([0; PREFIX]);
        let encoded = self.encode_into(message, &mut frame);
        self.scratch = frame;
        encoded?;
        self.finish_frame()
    }

    /// Puts an encoded message into the frame that is sent next.
    fn put_frame(&mut self, encoded: &[u8]) -> Result<(), Error> {
        self.scratch.clear();
        self.scratch.extend([0; PREFIX]);
        self.scratch.extend_from_slice(encoded);
        self.finish_frame()
    }

    /// Writes the length of the frame that is sent next in front of it.
    fn finish_frame(&mut self) -> Result<(), Error> {
        let length = self.scratch.len() - PREFIX;
        if length > self.frame_limit {
            return Err(Error::FrameLength { peer: self.peer, length });
        }
        let prefix = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        self.scratch[..PREFIX].copy_from_slice(&prefix);
        Ok(())
    }

    /// Returns a message as number and body.
    fn encoded(&self, message: &Message) -> Result<Vec<u8>, Error> {
        let mut encoded = Vec::new();
        self.encode_into(message, &mut encoded)?;
        Ok(encoded)
    }

    /// Appends number and body of a message that the other host's agent understands.
    fn encode_into(&self, message: &Message, out: &mut Vec<u8>) -> Result<(), Error> {
        let peer = self.peer;
        if let Some(capability) = message.capability().filter(|needed| !self.has(needed)) {
            return Err(Error::NotUnderstood { peer, message: message.name(), capability });
        }
        message.encode(out).map_err(|source| Error::Codec { peer, source })
    }

    /// Sends the frame that was encoded last.
    async fn write_frame(&mut self) -> Result<(), Error> {
        let peer = self.peer;
        if self.torn {
            return Err(Error::Closed { peer });
        }
        let limit = deadline::SEND;
        let (stream, frame) = (&mut self.stream, &self.scratch);
        let write = async {
            stream.write_all(frame).await?;
            stream.flush().await
        };
        self.torn = true;
        match timeout(limit, write).await {
            Ok(Ok(())) => {
                self.torn = false;
                self.bulk.count(self.scratch.len());
                Ok(())
            }
            Ok(Err(source)) => Err(self.last_words().await.unwrap_or_else(|| self.broken(source))),
            Err(_) => Err(Error::Deadline { peer, what: "take our data", limit }),
        }
    }

    /// Ends this side of the conversation: nothing more is sent.
    pub async fn close(&mut self) {
        self.torn = true;
        // A broken connection needs no end.
        let _ = self.stream.get_mut().0.get_mut().shutdown().await;
    }

    /// Reads the reason why the other host has closed the connection, if it sent one.
    async fn last_words(&mut self) -> Option<Error> {
        let words = async {
            loop {
                match self.read_frame().await {
                    Ok(Message::Failure(failure)) => return Some(self.failure(failure)),
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        };
        timeout(LAST_WORDS, words).await.unwrap_or(None)
    }

    /// Waits for the next message of any kind.
    ///
    /// # Errors
    /// [`Error::Failure`] for a `Failure`; [`Error::Deadline`], if nothing comes in time; [`Error::Codec`] and
    /// [`Error::FrameLength`] for what is not a message; [`Error::Closed`] and [`Error::Io`].
    pub async fn receive(&mut self, limit: Duration) -> Result<Message, Error> {
        let peer = self.peer;
        match timeout(limit, self.next_message()).await {
            Ok(Ok(Message::Failure(failure))) => Err(self.failure(failure)),
            Ok(other) => other,
            Err(_) => Err(Error::Deadline { peer, what: "answer", limit }),
        }
    }

    /// Waits for the next message, wherever it comes.
    async fn next_message(&mut self) -> Result<Message, Error> {
        match self.read_frame().await? {
            Message::Elsewhere(number) => self.receive_elsewhere(number).await,
            message => Ok(message),
        }
    }

    fn failure(&self, failure: Failure) -> Error {
        Error::Failure { host: self.called.clone(), failure }
    }

    async fn read_frame(&mut self) -> Result<Message, Error> {
        let peer = self.peer;
        let mut prefix = [0; PREFIX];
        self.stream.read_exact(&mut prefix).await.map_err(|e| self.broken(e))?;
        let length = u32::from_be_bytes(prefix) as usize;
        if length == 0 || length > self.frame_limit {
            return Err(Error::FrameLength { peer, length });
        }
        // Grows with the bytes that arrive, not with the length that was claimed.
        let mut frame = Vec::with_capacity(length.min(PIECE + 1024));
        let read = (&mut self.stream).take(length as u64).read_to_end(&mut frame).await;
        let read = read.map_err(|e| self.broken(e))?;
        if read < length {
            return Err(Error::Closed { peer });
        }
        Message::decode_frame(&frame, self.frame_limit)
            .map_err(|source| Error::Codec { peer, source })
    }

    /// Waits until the other host says that it has undone everything, and ignores everything else.
    ///
    /// # Errors
    /// [`Error::Deadline`], if that does not come in time; otherwise as [`Connection::receive`].
    pub async fn receive_aborted(&mut self, limit: Duration) -> Result<(), Error> {
        let late = Error::Deadline { peer: self.peer, what: "go back", limit };
        let all = async {
            loop {
                match self.read_frame().await? {
                    Message::Aborted(()) | Message::Failure(_) => return Ok(()),
                    _ => {}
                }
            }
        };
        timeout(limit, all).await.unwrap_or(Err(late))
    }

    /// Returns the error for a message that does not belong where it came.
    #[must_use]
    pub fn unexpected(&self, got: &Message, wanted: &'static str) -> Error {
        Error::Unexpected { peer: self.peer, got: got.name(), wanted }
    }

    fn broken(&self, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => Error::Closed { peer: self.peer },
            _ => Error::Io { peer: self.peer, source },
        }
    }
}

/// Waits for one kind of message and returns its body; any other message is an error.
///
/// `expect!(connection, limit, Verdict)` evaluates to `Result<Verdict's body, wire::Error>`.
#[macro_export]
macro_rules! expect {
    ($connection:expr, $limit:expr, $kind:ident) => {
        match $connection.receive($limit).await {
            Ok($crate::message::Message::$kind(body)) => Ok(body),
            Ok(other) => Err($connection.unexpected(&other, stringify!($kind))),
            Err(e) => Err(e),
        }
    };
}

#[cfg(test)]
mod tests;
