//! The wire: TLS 1.3 between two paired hosts, in it a preamble that names the protocol's version, then
//! length-delimited frames.
//!
//! ```text
//! preamble   "NETMIG" version:u16be            the server first, 8 bytes
//! frame      length:u32be number:u8 body       length counts number and body
//! ```
//!
//! In TLS 1.3 a client has ended its handshake before the server has looked at its certificate; the
//! server's preamble tells it that it is accepted, and nothing is sent before it. The preamble never
//! changes its form, so any two versions can tell each other apart and say so. Version policy: one
//! version of the protocol per release of the software; an agent speaks to its own version alone.

mod error;
mod open;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsStream;

pub use self::error::Error;
use crate::message::Message;
use crate::trust::Fingerprint;
use state::deadline;
use state::id::HostId;

/// Version of the protocol.
pub const VERSION: u16 = 5;
/// Bytes of payload that a sender puts into one frame of a stream.
pub const PIECE: usize = 256 * 1024;
/// Flows that a sender puts into one frame.
pub const FLOWS_PER_FRAME: usize = 4096;

/// How long is looked for the reason of a connection that the far end closed: it has come already.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A connection to a host that has shown who it is, past its preamble.
#[derive(Debug)]
pub struct Connection {
    // TLS asks for a few kilobytes at a time; the buffer below it takes more from the kernel at once.
    stream: TlsStream<BufReader<TcpStream>>,
    peer: SocketAddr,
    local: SocketAddr,
    fingerprint: Fingerprint,
    frame_limit: usize,
    scratch: Vec<u8>,
    /// A frame was begun and not finished: whoever sent it was cancelled or ran out of time.
    torn: bool,
}

impl Connection {
    /// Address and port of the far end.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Address and port of this end.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The fingerprint of the far end's certificate, whose key it has.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Identity of the host at the far end.
    #[must_use]
    pub fn host(&self) -> HostId {
        self.fingerprint.host()
    }

    /// Sends one message. After a send that did not end, every other one fails: the far end would
    /// take it for the rest of that frame.
    pub async fn send(&mut self, message: &Message) -> Result<(), Error> {
        let peer = self.peer;
        if self.torn {
            return Err(Error::Closed { peer });
        }
        self.scratch.clear();
        self.scratch.extend([0; 4]);
        message.encode(&mut self.scratch).map_err(|source| Error::Codec { peer, source })?;
        let length = self.scratch.len() - 4;
        if length > self.frame_limit {
            return Err(Error::FrameLength { peer, length });
        }
        let prefix = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        self.scratch[..4].copy_from_slice(&prefix);
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
                Ok(())
            }
            Ok(Err(source)) => Err(self.last_words().await.unwrap_or_else(|| self.broken(source))),
            Err(_) => Err(Error::Deadline { peer, what: "take our data", limit }),
        }
    }

    /// Says nothing more, so that the far end finds the conversation at its end.
    pub async fn close(&mut self) {
        self.torn = true;
        // One that is broken needs no end.
        let _ = self.stream.get_mut().0.get_mut().shutdown().await;
    }

    /// Why the far end closed, if it said so before it did.
    async fn last_words(&mut self) -> Option<Error> {
        let words = async {
            loop {
                match self.read_frame().await {
                    Ok(Message::Failure(failure)) => return Some(Error::Failure(failure)),
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        };
        timeout(LAST_WORDS, words).await.unwrap_or(None)
    }

    /// Waits for the next message, whatever it is. A `Failure` comes back as an error.
    pub async fn receive(&mut self, limit: Duration) -> Result<Message, Error> {
        let peer = self.peer;
        match timeout(limit, self.read_frame()).await {
            Ok(Ok(Message::Failure(failure))) => Err(Error::Failure(failure)),
            Ok(other) => other,
            Err(_) => Err(Error::Deadline { peer, what: "answer", limit }),
        }
    }

    async fn read_frame(&mut self) -> Result<Message, Error> {
        let peer = self.peer;
        let mut prefix = [0; 4];
        self.stream.read_exact(&mut prefix).await.map_err(|e| self.broken(e))?;
        let length = u32::from_be_bytes(prefix) as usize;
        if length == 0 || length > self.frame_limit {
            return Err(Error::FrameLength { peer, length });
        }
        // Grows with what arrives, not with what was claimed.
        let mut frame = Vec::with_capacity(length.min(PIECE + 1024));
        let read = (&mut self.stream).take(length as u64).read_to_end(&mut frame).await;
        let read = read.map_err(|e| self.broken(e))?;
        if read < length {
            return Err(Error::Closed { peer });
        }
        Message::decode(&frame).map_err(|source| Error::Codec { peer, source })
    }

    /// Waits until the far end says that it has undone everything, whatever else it still sends.
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

    /// The error for a message that does not belong where it came.
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

/// Waits for one kind of message and takes its body out; anything else is an error.
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
