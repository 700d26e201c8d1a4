//! The wire: a preamble that names the protocol's version, then length-delimited frames.
//!
//! ```text
//! preamble   "NETMIG" version:u16be            both sides, at once, 8 bytes
//! frame      length:u32be number:u8 body       length counts number and body
//! ```
//!
//! The preamble never changes its form, so any two versions can tell each other apart and say so.
//! Version policy: one version of the protocol per release of the software; an agent speaks to its
//! own version alone.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::deadline;
use crate::message::{CodecError, Failure, Message};

/// Version of the protocol.
pub const VERSION: u16 = 1;
/// TCP port that `agent-server` listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 7472;
/// No frame is larger than this, in bytes.
pub const FRAME_LIMIT: usize = 4 * 1024 * 1024;
/// Bytes of payload that a sender puts into one frame of a stream.
pub const PIECE: usize = 256 * 1024;
/// Flows that a sender puts into one frame.
pub const FLOWS_PER_FRAME: usize = 4096;

/// How long is looked for the reason of a connection that the far end closed: it has come already.
const LAST_WORDS: Duration = Duration::from_millis(200);

const MAGIC: &[u8; 6] = b"NETMIG";

/// The conversation broke.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name has no address.
    #[error("cannot resolve {host}; check the name, or give an IP address")]
    Resolve {
        /// As the user wrote it.
        host: String,
        /// What the resolver said.
        #[source]
        source: io::Error,
    },
    /// Nobody answered.
    #[error("cannot connect to {address}; is agent-server running there, and the port open?")]
    Connect {
        /// Address and port.
        address: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The far end is not an agent.
    #[error("{peer} does not speak netmig's protocol; is that the port of agent-server?")]
    NotAnAgent {
        /// Address and port.
        peer: SocketAddr,
    },
    /// The far end is an agent of another version.
    #[error(
        "{peer} speaks version {theirs} of the protocol, this agent speaks {VERSION}; install the same release of netmig on both hosts"
    )]
    Version {
        /// Address and port.
        peer: SocketAddr,
        /// Their version.
        theirs: u16,
    },
    /// A wait ran out.
    #[error("{peer} did not {what} within {} s", limit.as_secs_f32())]
    Deadline {
        /// Address and port.
        peer: SocketAddr,
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
    /// The far end closed the connection.
    #[error("{peer} closed the connection")]
    Closed {
        /// Address and port.
        peer: SocketAddr,
    },
    /// The kernel reports an error of the connection.
    #[error("the connection to {peer} failed")]
    Io {
        /// Address and port.
        peer: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The far end sent something that no agent sends.
    #[error("{peer} sent a frame of {length} bytes; the limit is {FRAME_LIMIT}")]
    FrameLength {
        /// Address and port.
        peer: SocketAddr,
        /// The claimed length.
        length: usize,
    },
    /// A frame is not a message.
    #[error("{peer} sent something that is not a message")]
    Codec {
        /// Address and port.
        peer: SocketAddr,
        /// What is wrong with it.
        #[source]
        source: CodecError,
    },
    /// The far end sent a message that does not belong here.
    #[error("{peer} sent {got} where {wanted} belongs")]
    Unexpected {
        /// Address and port.
        peer: SocketAddr,
        /// The message that came.
        got: &'static str,
        /// The message that belongs here.
        wanted: &'static str,
    },
    /// The far end gave up and says why.
    #[error("{}", .0.message)]
    Failure(Failure),
}

/// A connection to the far end, past its preamble.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    peer: SocketAddr,
    local: SocketAddr,
    scratch: Vec<u8>,
    /// A frame was begun and not finished: whoever sent it was cancelled or ran out of time.
    torn: bool,
}

impl Connection {
    /// Resolves, connects and exchanges preambles.
    pub async fn dial(host: &str, port: u16) -> Result<Self, Error> {
        let name = format!("{host}:{port}");
        let addresses: Vec<SocketAddr> =
            match timeout(deadline::CONNECT, tokio::net::lookup_host((host, port))).await {
                Ok(Ok(found)) => found.collect(),
                Ok(Err(source)) => return Err(Error::Resolve { host: host.to_owned(), source }),
                Err(_) => {
                    let source = io::ErrorKind::TimedOut.into();
                    return Err(Error::Resolve { host: host.to_owned(), source });
                }
            };
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            match timeout(deadline::CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Self::open(stream).await,
                Ok(Err(e)) => last = e,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(Error::Connect { address: name, source: last })
    }

    /// Exchanges preambles over a connection that was dialled or accepted.
    pub async fn open(stream: TcpStream) -> Result<Self, Error> {
        let peer = stream.peer_addr().map_err(|source| Error::Connect {
            address: "a peer that has gone".to_owned(),
            source,
        })?;
        let io_error = |source| Error::Io { peer, source };
        let local = stream.local_addr().map_err(io_error)?;
        // Every message is one write; waiting for more to send would only add latency.
        stream.set_nodelay(true).map_err(io_error)?;
        let stream = BufReader::with_capacity(PIECE, stream);
        let mut connection =
            Self { stream, peer, local, scratch: Vec::with_capacity(PIECE), torn: false };
        let limit = deadline::CONNECT;
        timeout(limit, connection.exchange_preambles()).await.unwrap_or(Err(Error::Deadline {
            peer,
            what: "introduce itself",
            limit,
        }))?;
        Ok(connection)
    }

    async fn exchange_preambles(&mut self) -> Result<(), Error> {
        let peer = self.peer;
        let mut ours = [0; 8];
        ours[..6].copy_from_slice(MAGIC);
        ours[6..].copy_from_slice(&VERSION.to_be_bytes());
        self.stream.get_mut().write_all(&ours).await.map_err(|e| self.broken(e))?;
        let mut theirs = [0; 8];
        // A server of another kind often closes at once: that, too, is "not an agent".
        if self.stream.read_exact(&mut theirs).await.is_err() || theirs[..6] != MAGIC[..] {
            return Err(Error::NotAnAgent { peer });
        }
        let theirs = u16::from_be_bytes([theirs[6], theirs[7]]);
        if theirs == VERSION { Ok(()) } else { Err(Error::Version { peer, theirs }) }
    }

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
        if length > FRAME_LIMIT {
            return Err(Error::FrameLength { peer, length });
        }
        let prefix = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        self.scratch[..4].copy_from_slice(&prefix);
        let limit = deadline::SEND;
        let write = self.stream.get_mut().write_all(&self.scratch);
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
        if length == 0 || length > FRAME_LIMIT {
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
mod tests {
    use super::*;
    use crate::message::MigrationId;
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap());
        let (dialled, accepted) = tokio::join!(dialled, listener.accept());
        (dialled.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn two_agents_talk() {
        let (a, b) = pair().await;
        let (a, b) = tokio::join!(Connection::open(a), Connection::open(b));
        let (mut a, mut b) = (a.unwrap(), b.unwrap());
        a.send(&Message::Commit(MigrationId([1; 16]))).await.unwrap();
        let got = expect!(b, Duration::from_secs(1), Commit).unwrap();
        assert_eq!(got, MigrationId([1; 16]));
    }

    #[tokio::test]
    async fn other_protocols_and_versions_are_named() {
        let (a, mut b) = pair().await;
        b.write_all(b"HTTP/1.1 400 Bad Request\r\n").await.unwrap();
        assert!(matches!(Connection::open(a).await, Err(Error::NotAnAgent { .. })));

        let (a, mut b) = pair().await;
        b.write_all(b"NETMIG\x00\x63").await.unwrap();
        assert!(matches!(Connection::open(a).await, Err(Error::Version { theirs: 0x63, .. })));

        let (a, b) = pair().await;
        drop(b);
        assert!(matches!(Connection::open(a).await, Err(Error::NotAnAgent { .. })));
    }

    #[tokio::test]
    async fn a_frame_over_the_limit_is_refused_before_it_is_read() {
        let (a, mut b) = pair().await;
        b.write_all(b"NETMIG\x00\x01\xff\xff\xff\xff").await.unwrap();
        let mut a = Connection::open(a).await.unwrap();
        let refused = a.receive(Duration::from_secs(1)).await;
        assert!(matches!(refused, Err(Error::FrameLength { length: 0xffff_ffff, .. })));
    }

    #[tokio::test]
    async fn a_silent_peer_runs_into_the_deadline() {
        let (a, mut b) = pair().await;
        b.write_all(b"NETMIG\x00\x01").await.unwrap();
        let mut a = Connection::open(a).await.unwrap();
        let late = a.receive(Duration::from_millis(20)).await;
        assert!(matches!(late, Err(Error::Deadline { .. })));
    }

    #[tokio::test]
    async fn nothing_follows_a_frame_that_was_not_finished() {
        let (a, b) = pair().await;
        let (a, b) = tokio::join!(Connection::open(a), Connection::open(b));
        let (mut a, mut b) = (a.unwrap(), b.unwrap());
        let large = Message::ImageData(crate::message::Data(vec![0; FRAME_LIMIT - 16]));
        // Nobody reads, so it is given up half-way, as by a cancellation.
        while timeout(Duration::from_millis(50), a.send(&large)).await.is_ok() {}
        let abort = Message::Abort(MigrationId([1; 16]));
        assert!(matches!(a.send(&abort).await, Err(Error::Closed { .. })));
        drop(a);
        while let Ok(message) = b.receive(Duration::from_secs(1)).await {
            assert_eq!(message.name(), "ImageData");
        }
    }

    #[tokio::test]
    async fn a_closed_connection_tells_why_if_the_far_end_did() {
        let (a, b) = pair().await;
        let (a, b) = tokio::join!(Connection::open(a), Connection::open(b));
        let (mut a, mut b) = (a.unwrap(), b.unwrap());
        let failure = Failure {
            code: crate::message::FailureCode::Step,
            message: "the disk is full".to_owned(),
        };
        b.send(&Message::Failure(failure)).await.unwrap();
        drop(b);
        let error = loop {
            if let Err(e) = a.send(&Message::Commit(MigrationId([1; 16]))).await {
                break e;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        assert_eq!(error.to_string(), "the disk is full");
    }

    #[tokio::test]
    async fn failures_arrive_with_their_reason() {
        let (a, b) = pair().await;
        let (a, b) = tokio::join!(Connection::open(a), Connection::open(b));
        let (mut a, mut b) = (a.unwrap(), b.unwrap());
        let failure = Failure {
            code: crate::message::FailureCode::Conflict,
            message: "port 80 is taken".to_owned(),
        };
        a.send(&Message::Failure(failure)).await.unwrap();
        let error = expect!(b, Duration::from_secs(1), Verdict).unwrap_err();
        assert_eq!(error.to_string(), "port 80 is taken");
    }
}
