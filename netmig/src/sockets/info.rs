//! What the kernel tells of each TCP connection (`struct tcp_info`, `include/uapi/linux/tcp.h`): whether its
//! far end was heard, and whether something waits for an answer.

use std::net::SocketAddr;
use std::time::Duration;

use super::connections::{CLOSE_WAIT, ESTABLISHED, FIN_WAIT_1, ends, request};
use super::{Error, TcpSockets};
use crate::nfnetlink::attribute::Attributes;

/// `INET_DIAG_INFO`: the attribute that holds `struct tcp_info`, and, less one, its bit in a request.
const INFO: u16 = 2;
/// Bytes of `struct inet_diag_msg`; attributes follow.
const MESSAGE: usize = 72;
/// Position of `idiag_ext` in a request's payload, behind the netlink header.
const EXTENSIONS: usize = 16 + 2;
/// Positions in `struct tcp_info`.
const RETRANSMITS: usize = 2;
const UNACKED: usize = 24;
const LAST_DATA_RECEIVED: usize = 52;
const LAST_ACK_RECEIVED: usize = 56;
const SEGMENTS_IN: usize = 140;
const NOT_SENT: usize = 144;

/// A TCP connection that carries data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// Its own end.
    pub own: SocketAddr,
    /// Its far end.
    pub far: SocketAddr,
    /// How often the oldest segment was sent again without an answer.
    pub retransmits: u8,
    /// Segments that were sent and not acknowledged.
    pub unacknowledged: u32,
    /// Bytes that wait to be sent.
    pub not_sent: u32,
    /// How long ago its far end was heard.
    pub heard: Duration,
    /// Segments that came since the socket was made, or restored.
    pub segments_in: u32,
}

impl TcpInfo {
    /// Whether its own side waits for an answer.
    #[must_use]
    pub fn awaits_answer(&self) -> bool {
        self.unacknowledged > 0 || self.not_sent > 0
    }
}

impl TcpSockets {
    /// Lists what the kernel tells of the connections that carry data, but for those within the namespace.
    ///
    /// # Errors
    /// [`Error::List`].
    pub fn info(&mut self) -> Result<Vec<TcpInfo>, Error> {
        let states = [ESTABLISHED, FIN_WAIT_1, CLOSE_WAIT];
        let mut all = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut request = request(family, libc::IPPROTO_TCP, &states);
            request[EXTENSIONS] = 1 << (INFO - 1);
            let found = self.socket.dump_each(&mut request, |message| {
                all.extend(read(message.payload).filter(|info| !info.far.ip().is_loopback()));
            });
            found.map_err(|source| Error::List { container: self.container.clone(), source })?;
        }
        Ok(all)
    }
}

fn read(message: &[u8]) -> Option<TcpInfo> {
    let (own, far) = ends(message)?;
    let mut attributes = Attributes::new(message.get(MESSAGE..)?).flatten();
    let info = attributes.find(|attribute| attribute.kind == INFO)?.value;
    let word = |at: usize| {
        let bytes = info.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    // Data and acknowledgements are noted apart.
    let heard = word(LAST_DATA_RECEIVED)?.min(word(LAST_ACK_RECEIVED)?);
    Some(TcpInfo {
        own,
        far,
        retransmits: *info.get(RETRANSMITS)?,
        unacknowledged: word(UNACKED)?,
        not_sent: word(NOT_SENT)?,
        heard: Duration::from_millis(heard.into()),
        segments_in: word(SEGMENTS_IN)?,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::netns::Namespace;

    #[test]
    fn what_arrives_and_what_waits_is_told() {
        assert_eq!(read(&[0; MESSAGE]), None);
        // Loopback connections are left out, so the reading is tried by itself.
        let namespace = Namespace::current().unwrap();
        let mut sockets = TcpSockets::open(&namespace).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"hello").unwrap();
        server.read_exact(&mut [0; 5]).unwrap();
        let own = client.local_addr().unwrap();
        let mut request = request(libc::AF_INET, libc::IPPROTO_TCP, &[ESTABLISHED]);
        request[EXTENSIONS] = 1 << (INFO - 1);
        let mut found = None;
        let mut note = |payload: &[u8]| found = found.or(read(payload).filter(|i| i.own == own));
        sockets.socket.dump_each(&mut request, |message| note(message.payload)).unwrap();
        let info = found.unwrap();
        assert!(!info.awaits_answer() && info.segments_in > 0, "{info:?}");
        assert!(info.heard < Duration::from_secs(60), "{info:?}");
        assert!(!sockets.info().unwrap().iter().any(|info| info.own == own));
    }
}
