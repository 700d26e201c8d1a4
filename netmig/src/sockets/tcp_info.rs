//! What the kernel reports of each TCP connection (`struct tcp_info`, `include/uapi/linux/tcp.h`):
//! when the far end was heard, and whether data waits for an acknowledgement.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Error, TcpSockets, not_listed};
use crate::netlink::attribute::u32_at;
use crate::netlink::sock_diag::{self, state};

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
    /// Local end.
    pub own: SocketAddr,
    /// Remote end.
    pub far: SocketAddr,
    /// Whether neither end has closed it.
    pub is_established: bool,
    /// Retransmissions of the oldest segment since the last acknowledgement.
    pub retransmits: u8,
    /// Segments that were sent and not acknowledged.
    pub unacknowledged: u32,
    /// Bytes that wait to be sent.
    pub not_sent: u32,
    /// Time since anything came from the far end.
    pub heard: Duration,
    /// Segments received since the socket was created or restored.
    pub segments_in: u32,
}

impl TcpInfo {
    /// Returns whether the local end waits for an acknowledgement.
    #[must_use]
    pub fn awaits_answer(&self) -> bool {
        self.unacknowledged > 0 || self.not_sent > 0
    }
}

impl TcpSockets {
    /// Lists the connections that carry data, except those within the namespace.
    ///
    /// # Errors
    /// [`Error::List`] when the kernel refuses.
    pub fn info(&mut self) -> Result<Vec<TcpInfo>, Error> {
        let states = [state::ESTABLISHED, state::FIN_WAIT_1, state::CLOSE_WAIT];
        let mut all = Vec::new();
        for family in sock_diag::FAMILIES {
            let request = sock_diag::list(family, libc::IPPROTO_TCP, &states);
            let mut request = sock_diag::with_tcp_info(request);
            let listed = self.socket.dump(&mut request, |answer| {
                all.extend(read(answer).filter(|info| !info.far.ip().is_loopback()));
                Ok(())
            });
            listed.map_err(|error| not_listed(&self.container, error))?;
        }
        Ok(all)
    }
}

fn read(answer: &[u8]) -> Option<TcpInfo> {
    let (own, far) = sock_diag::ends(answer)?;
    let info = sock_diag::tcp_info(answer)?;
    let word = |at: usize| u32_at(info, at);
    // The kernel records data and acknowledgements separately.
    let heard = word(LAST_DATA_RECEIVED)?.min(word(LAST_ACK_RECEIVED)?);
    Some(TcpInfo {
        own,
        far,
        is_established: info.first() == Some(&state::ESTABLISHED),
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
        assert_eq!(read(&[0; 72]), None);
        // Loopback connections are left out, so the reading is tried by itself.
        let namespace = Namespace::current().unwrap();
        let mut sockets = TcpSockets::open(&namespace).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"hello").unwrap();
        server.read_exact(&mut [0; 5]).unwrap();
        let own = client.local_addr().unwrap();
        let request = sock_diag::list(libc::AF_INET, libc::IPPROTO_TCP, &[state::ESTABLISHED]);
        let mut found = None;
        let note = |answer: &[u8]| {
            found = found.or(read(answer).filter(|info| info.own == own));
            Ok(())
        };
        sockets.socket.dump(&mut sock_diag::with_tcp_info(request), note).unwrap();
        let info = found.unwrap();
        assert!(!info.awaits_answer() && info.segments_in > 0, "{info:?}");
        assert!(info.heard < Duration::from_secs(60), "{info:?}");
        assert!(!sockets.info().unwrap().iter().any(|info| info.own == own));
    }
}
