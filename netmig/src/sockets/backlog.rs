//! Connections that a container's listeners have not accepted yet.
//!
//! CRIU does not dump a TCP listener with such connections (`criu/sk-inet.c`: "In-flight
//! connection"), and silently loses those whose handshake is not complete: their far ends are
//! reset. sock_diag(7) reports how many wait at a listener (`idiag_rqueue`), and each handshake in
//! progress as a socket in the state SYN_RECV. CRIU carries connections that wait at a unix
//! listener.

use super::{Error, not_listed};
use crate::netlink::sock_diag::{self, state};
use crate::netlink::{Connection, Protocol};
use crate::netns::Namespace;

/// The listeners of one network namespace, prepared for frequent reading.
#[derive(Debug)]
pub struct Backlogs {
    socket: Connection,
    requests: [Vec<u8>; 2],
    container: String,
}

/// The connections that waited at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// TCP connections whose handshake is in progress.
    pub half_open: u64,
    /// TCP connections that wait to be accepted.
    pub unaccepted: u64,
}

impl Backlog {
    /// Returns whether no connection waits.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl Backlogs {
    /// Prepares the requests for the sockets in `namespace`.
    ///
    /// # Errors
    /// [`Error::Namespace`] when the namespace cannot be used.
    pub fn open(namespace: &Namespace) -> Result<Self, Error> {
        let socket = namespace.netlink(Protocol::SockDiag)?;
        Ok(Self::of(socket, namespace.name()))
    }

    fn of(socket: Connection, container: &str) -> Self {
        // The kernel keeps handshakes in the state NEW_SYN_RECV and reports them as SYN_RECV.
        let states = [state::LISTEN, state::SYN_RECV, state::NEW_SYN_RECV];
        let list = |family| sock_diag::list(family, libc::IPPROTO_TCP, &states);
        let requests = sock_diag::FAMILIES.map(list);
        Self { socket, requests, container: container.to_owned() }
    }

    /// Counts the waiting connections.
    ///
    /// # Errors
    /// [`Error::List`] when the kernel refuses.
    pub fn look(&mut self) -> Result<Backlog, Error> {
        let mut backlog = Backlog::default();
        for request in &mut self.requests {
            let listed = self.socket.dump(request, |answer| {
                match sock_diag::state_of(answer) {
                    Some(state::LISTEN) => backlog.unaccepted += sock_diag::receive_queue(answer),
                    _ => backlog.half_open += 1,
                }
                Ok(())
            });
            listed.map_err(|error| not_listed(&self.container, error))?;
        }
        Ok(backlog)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    /// The tests share a network namespace, so this one looks only for what it adds.
    #[test]
    fn connections_count_until_they_are_accepted() {
        let socket = Connection::open(Protocol::SockDiag).unwrap();
        let mut backlogs = Backlogs::of(socket, "the tests");
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let connect = |_| TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let before = backlogs.look().unwrap().unaccepted;
        let clients: Vec<_> = (0..20).map(connect).collect();
        let full = backlogs.look().unwrap().unaccepted;
        assert!(full >= before + 15, "{before}, then {full}");
        for _ in &clients {
            listener.accept().unwrap();
        }
        assert!(backlogs.look().unwrap().unaccepted + 15 <= full);
    }
}
