//! A container's own sockets: its TCP connections, those that its listeners have not accepted, and
//! the receive queues of its UDP sockets.
//!
//! CRIU does not save the receive queue of a UDP socket, so the freeze waits until the process has
//! read everything. sock_diag(7) reports the bytes queued at each socket
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

/// Why sockets could not be listed or reset.
#[derive(Debug, Error)]
pub enum Error {
    /// The container's network namespace cannot be used.
    #[error("cannot list the sockets of a container")]
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
        "cannot list the sockets of {container}; load the kernel modules udp_diag and tcp_diag"
    )]
    List {
        /// What the network namespace belongs to.
        container: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// The receive queues of the UDP sockets of one network namespace, prepared for frequent reading.
#[derive(Debug)]
pub struct UdpQueues {
    socket: Connection,
    requests: Vec<Vec<u8>>,
    container: String,
}

impl UdpQueues {
    /// Prepares the requests for the sockets in `namespace`: UDP and, where the kernel still has
    /// it, UDP-Lite, over IPv4 and IPv6.
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

    /// Returns the bytes in all receive queues together, as the kernel accounts them: a datagram
    /// counts with its buffer's overhead. 0 means that every datagram has been read.
    ///
    /// # Errors
    /// [`Error::List`] when the kernel refuses.
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

    /// The tests share a network namespace, so this one looks only for what it adds.
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
