//! The connections of a container, as its own kernel sockets have them.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{Error, not_listed};
use crate::netlink::sock_diag::{self, state};
use crate::netlink::{Connection, Protocol};
use crate::netns::Namespace;

/// The TCP sockets of one network namespace.
#[derive(Debug)]
pub struct TcpSockets {
    pub(super) socket: Connection,
    pub(super) container: String,
}

/// The sockets at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Local and remote end of each connection.
    pub open: Vec<(SocketAddr, SocketAddr)>,
    /// Ports of listening sockets.
    pub listening: BTreeSet<u16>,
}

impl TcpSockets {
    /// Opens a socket in `namespace`.
    ///
    /// # Errors
    /// [`Error::Namespace`] when the namespace cannot be used.
    pub fn open(namespace: &Namespace) -> Result<Self, Error> {
        let socket = namespace.netlink(Protocol::SockDiag)?;
        Ok(Self { socket, container: namespace.name().to_owned() })
    }

    /// Lists the sockets; those of a frozen container too.
    ///
    /// # Errors
    /// [`Error::List`] when the kernel refuses.
    pub fn list(&mut self) -> Result<Connections, Error> {
        // Connections that carry data one way at least, and sockets that listen.
        let states = [
            state::ESTABLISHED,
            state::FIN_WAIT_1,
            state::FIN_WAIT_2,
            state::CLOSE_WAIT,
            state::LISTEN,
        ];
        list(&mut self.socket, &self.container, libc::IPPROTO_TCP, &states)
    }
}

/// The connected UDP sockets (connect(2)) of one network namespace.
#[derive(Debug)]
pub struct UdpSockets {
    socket: Connection,
    container: String,
}

impl UdpSockets {
    /// Opens a socket in `namespace`.
    ///
    /// # Errors
    /// [`Error::Namespace`] when the namespace cannot be used.
    pub fn open(namespace: &Namespace) -> Result<Self, Error> {
        let socket = namespace.netlink(Protocol::SockDiag)?;
        Ok(Self { socket, container: namespace.name().to_owned() })
    }

    /// Lists the sockets.
    ///
    /// # Errors
    /// [`Error::List`] when the kernel refuses.
    pub fn list(&mut self) -> Result<Connections, Error> {
        list(&mut self.socket, &self.container, libc::IPPROTO_UDP, &[state::ESTABLISHED])
    }
}

fn list(
    socket: &mut Connection,
    container: &str,
    protocol: i32,
    states: &[u8],
) -> Result<Connections, Error> {
    let mut all = Connections::default();
    for family in sock_diag::FAMILIES {
        let mut request = sock_diag::list(family, protocol, states);
        let listed = socket.dump(&mut request, |answer| {
            all.add(answer);
            Ok(())
        });
        listed.map_err(|error| not_listed(container, error))?;
    }
    Ok(all)
}

impl Connections {
    fn add(&mut self, answer: &[u8]) {
        let (state, Some((own, far))) = (sock_diag::state_of(answer), sock_diag::ends(answer))
        else {
            return;
        };
        if state == Some(state::LISTEN) {
            self.listening.insert(own.port());
        } else {
            self.open.push((own, far));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    /// The tests share a network namespace, so this one looks only for what it adds.
    #[test]
    fn open_connections_and_listeners_are_found() {
        let mut sockets = TcpSockets {
            socket: Connection::open(Protocol::SockDiag).unwrap(),
            container: "the tests".to_owned(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (own, far) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let found = sockets.list().unwrap();
        assert!(found.open.contains(&(own, far)) && found.open.contains(&(far, own)));
        assert!(found.listening.contains(&far.port()) && !found.listening.contains(&own.port()));
        drop(client);
        drop(listener);
        assert!(!sockets.list().unwrap().listening.contains(&far.port()));
    }
}
