//! Connections that a container's listeners have not accepted yet.
//!
//! CRIU does not dump a TCP listener with such connections (`criu/sk-inet.c`: "In-flight connection"), and
//! loses those whose handshake is not complete without a word: their far ends are reset. sock_diag(7) reports
//! how many wait at a listener (`idiag_rqueue`), and each handshake that is under way as a socket in the state
//! SYN_RECV. Connections that wait at a unix listener are carried.

use super::connections::{LISTEN, request};
use super::{Error, RQUEUE};
use crate::netns::Namespace;
use crate::netns::message::u32_at;
use crate::netns::socket::{KernelSocket, Protocol};

/// `include/net/tcp_states.h`: under what the kernel reports handshakes, and in which it keeps them.
const SYN_RECV: u8 = 3;
const NEW_SYN_RECV: u8 = 12;
/// The listeners of one network namespace, ready to be asked often.
#[derive(Debug)]
pub struct Backlogs {
    socket: KernelSocket,
    requests: [Vec<u8>; 2],
    container: String,
}

/// What waited at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// TCP connections whose handshake is under way.
    pub half_open: u64,
    /// TCP connections that wait to be accepted.
    pub unaccepted: u64,
}

impl Backlog {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl Backlogs {
    /// Prepares for the sockets in `namespace`.
    ///
    /// # Errors
    /// [`Error::Namespace`].
    pub fn open(namespace: &Namespace) -> Result<Self, Error> {
        let socket = namespace.socket(Protocol::SocketDiagnosis)?;
        Ok(Self::of(socket, namespace.name()))
    }

    fn of(socket: KernelSocket, container: &str) -> Self {
        let states = [LISTEN, SYN_RECV, NEW_SYN_RECV];
        let requests = [libc::AF_INET, libc::AF_INET6]
            .map(|family| request(family, libc::IPPROTO_TCP, &states));
        Self { socket, requests, container: container.to_owned() }
    }

    /// Counts what waits.
    ///
    /// # Errors
    /// [`Error::List`].
    pub fn look(&mut self) -> Result<Backlog, Error> {
        let mut backlog = Backlog::default();
        for request in &mut self.requests {
            self.socket
                .dump_each(request, |message| {
                    let waiting = u64::from(u32_at(message.payload, RQUEUE).unwrap_or(0));
                    match message.payload.get(1) {
                        Some(&LISTEN) => backlog.unaccepted += waiting,
                        _ => backlog.half_open += 1,
                    }
                })
                .map_err(|source| Error::List { container: self.container.clone(), source })?;
        }
        Ok(backlog)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    /// The namespace of the tests is shared, so look only for what this test adds.
    #[test]
    fn connections_count_until_they_are_accepted() {
        let socket = KernelSocket::open(Protocol::SocketDiagnosis).unwrap();
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
