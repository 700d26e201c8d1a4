//! The connections of a container, as its own kernel sockets have them.
//!
//! `struct inet_diag_msg` (`include/uapi/linux/inet_diag.h`): family, state, two bytes, then the two
//! ports and the two addresses, 16 bytes each.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Error, REQUEST, SOCK_DIAG_BY_FAMILY};
use crate::netns::Namespace;
use crate::netns::message::Message;
use crate::netns::socket::{KernelSocket, Protocol};

const NLM_F_DUMP: u16 = 0x300;
/// States (`include/net/tcp_states.h`): connections that carry data one way at least, and listening.
pub(super) const ESTABLISHED: u8 = 1;
pub(super) const FIN_WAIT_1: u8 = 4;
const FIN_WAIT_2: u8 = 5;
pub(super) const CLOSE_WAIT: u8 = 8;
pub(super) const LISTEN: u8 = 10;

/// The TCP sockets of one network namespace, ready to be listed.
#[derive(Debug)]
pub struct TcpSockets {
    pub(super) socket: KernelSocket,
    pub(super) container: String,
}

/// What they were at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Own end and far end of each connection.
    pub open: Vec<(SocketAddr, SocketAddr)>,
    /// Ports on which something listens.
    pub listening: BTreeSet<u16>,
}

impl TcpSockets {
    /// Prepares for the sockets in `namespace`.
    ///
    /// # Errors
    /// [`Error::Namespace`].
    pub fn open(namespace: &Namespace) -> Result<Self, Error> {
        let socket = namespace.socket(Protocol::SocketDiagnosis)?;
        Ok(Self { socket, container: namespace.name().to_owned() })
    }

    /// Lists them. A container that is frozen has them still.
    ///
    /// # Errors
    /// [`Error::List`].
    pub fn list(&mut self) -> Result<Connections, Error> {
        let states = [ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2, CLOSE_WAIT, LISTEN];
        list(&mut self.socket, &self.container, libc::IPPROTO_TCP, &states)
    }
}

/// The UDP sockets of one network namespace that are connected to somebody (connect(2)), ready to be
/// listed.
#[derive(Debug)]
pub struct UdpSockets {
    socket: KernelSocket,
    container: String,
}

impl UdpSockets {
    /// Prepares for the sockets in `namespace`.
    ///
    /// # Errors
    /// [`Error::Namespace`].
    pub fn open(namespace: &Namespace) -> Result<Self, Error> {
        let socket = namespace.socket(Protocol::SocketDiagnosis)?;
        Ok(Self { socket, container: namespace.name().to_owned() })
    }

    /// Lists them.
    ///
    /// # Errors
    /// [`Error::List`].
    pub fn list(&mut self) -> Result<Connections, Error> {
        list(&mut self.socket, &self.container, libc::IPPROTO_UDP, &[ESTABLISHED])
    }
}

fn list(
    socket: &mut KernelSocket,
    container: &str,
    protocol: i32,
    states: &[u8],
) -> Result<Connections, Error> {
    let mut all = Connections::default();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = request(family, protocol, states);
        socket
            .dump_each(&mut request, |message| all.add(message.payload))
            .map_err(|source| Error::List { container: container.to_owned(), source })?;
    }
    Ok(all)
}

impl Connections {
    fn add(&mut self, message: &[u8]) {
        let (Some(state), Some((own, far))) = (message.get(1), ends(message)) else { return };
        if *state == LISTEN {
            self.listening.insert(own.port());
        } else {
            self.open.push((own, far));
        }
    }
}

/// Own end and far end of a socket.
pub(super) fn ends(message: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    Some((end(message, 4, 8)?, end(message, 6, 24)?))
}

/// The end whose port and address stand at these places.
fn end(message: &[u8], port: usize, address: usize) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(message.get(port..port + 2)?.try_into().ok()?);
    let octets: [u8; 16] = message.get(address..address + 16)?.try_into().ok()?;
    let address: IpAddr = match i32::from(*message.first()?) {
        libc::AF_INET => Ipv4Addr::from([octets[0], octets[1], octets[2], octets[3]]).into(),
        libc::AF_INET6 => Ipv6Addr::from(octets).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

pub(super) fn request(family: i32, protocol: i32, states: &[u8]) -> Vec<u8> {
    let mut payload = [0; REQUEST];
    payload[0] = u8::try_from(family).unwrap_or(0);
    payload[1] = u8::try_from(protocol).unwrap_or(0);
    let mask = states.iter().fold(0u32, |mask, state| mask | 1 << state);
    payload[4..8].copy_from_slice(&mask.to_ne_bytes());
    Message::new(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &payload).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    /// The namespace of the tests is shared, so look only for what this test adds.
    #[test]
    fn open_connections_and_listeners_are_found() {
        let mut sockets = TcpSockets {
            socket: KernelSocket::open(Protocol::SocketDiagnosis).unwrap(),
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
