//! What a container's own sockets tell: its TCP connections, those that its listeners have not accepted, and
//! the receive queues of its UDP sockets.
//!
//! CRIU does not save what waits in a UDP socket's receive queue, so the freeze waits until the
//! process has read everything. sock_diag(7) reports each socket's queued bytes
//! (`inet_diag_msg.idiag_rqueue`; `net/ipv4/udp_diag.c`).

mod abort;
mod backlog;
mod connections;
pub mod receive_buffers;
mod tcp_info;

use std::io;

use thiserror::Error;

pub use abort::abort;
pub use backlog::{Backlog, Backlogs};
pub use connections::{Connections, TcpSockets, UdpSockets};
pub use tcp_info::TcpInfo;

use crate::netlink::{Connection, Protocol, SocketError, sock_diag};
use crate::netns::{self, Namespace};

/// Why sockets could not be listed.
#[derive(Debug, Error)]
pub enum Error {
    /// The container's network namespace cannot be used.
    #[error("cannot look at the sockets of a container")]
    Namespace(#[from] netns::Error),
    /// The kernel refused to reset a connection.
    #[error("cannot reset a connection of {container}")]
    Abort {
        /// What the network namespace belongs to.
        container: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to list sockets.
    #[error(
        "cannot list the sockets of {container}; netmig needs the kernel's udp_diag and tcp_diag"
    )]
    List {
        /// What the network namespace belongs to.
        container: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// The UDP sockets of one network namespace, ready to be asked often.
#[derive(Debug)]
pub struct UdpQueues {
    socket: Connection,
    requests: Vec<Vec<u8>>,
    container: String,
}

impl UdpQueues {
    /// Prepares for the sockets in `namespace`: UDP and, where the kernel still has it, UDP-Lite,
    /// over IPv4 and IPv6.
    ///
    /// # Errors
    /// [`Error::Namespace`], and [`Error::List`] when the kernel cannot list UDP sockets.
    pub fn open(namespace: &Namespace) -> Result<Self, Error> {
        let container = namespace.name().to_owned();
        let mut queues = Self {
            socket: namespace.netlink(Protocol::SockDiag)?,
            requests: Vec::with_capacity(4),
            container,
        };
        for (protocol, required) in [(libc::IPPROTO_UDP, true), (libc::IPPROTO_UDPLITE, false)] {
            for family in sock_diag::FAMILIES {
                let mut request = sock_diag::list_all(family, protocol);
                match queues.socket.dump(&mut request, |_| Ok(())) {
                    Ok(_) => queues.requests.push(request),
                    Err(source) if required => return Err(not_listed(&queues.container, source)),
                    Err(_) => {} // this kernel has no such protocol, so no such socket either
                }
            }
        }
        Ok(queues)
    }

    /// Bytes waiting in all receive queues together, as the kernel accounts them (a datagram
    /// counts with its buffer's overhead); 0 when every datagram has been read.
    ///
    /// # Errors
    /// [`Error::List`].
    pub fn pending(&mut self) -> Result<u64, Error> {
        let mut bytes = 0;
        for request in &mut self.requests {
            let listed = self.socket.dump(request, |answer| {
                bytes += sock_diag::receive_queue(answer);
                Ok(())
            });
            listed.map_err(|error| not_listed(&self.container, error))?;
        }
        Ok(bytes)
    }
}

fn not_listed(container: &str, error: SocketError) -> Error {
    Error::List { container: container.to_owned(), source: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    /// The namespace of the tests is shared, so look only for what this test adds.
    #[test]
    fn unread_datagrams_are_counted_until_they_are_read() {
        let mut queues = UdpQueues {
            socket: Connection::open(Protocol::SockDiag).unwrap(),
            requests: vec![sock_diag::list_all(libc::AF_INET, libc::IPPROTO_UDP)],
            container: "the tests".to_owned(),
        };
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..10 {
            sender.send_to(&[0; 1000], receiver.local_addr().unwrap()).unwrap();
        }
        let full = queues.pending().unwrap();
        assert!(full >= 10_000, "{full}");
        for _ in 0..10 {
            receiver.recv(&mut [0; 1000]).unwrap();
        }
        assert!(queues.pending().unwrap() + 10_000 <= full);
    }
}
