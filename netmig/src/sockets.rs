//! What a container's own sockets tell: its TCP connections, those that its listeners have not accepted, and
//! the receive queues of its UDP sockets.
//!
//! CRIU does not save what waits in a UDP socket's receive queue, so the freeze waits until the
//! process has read everything. sock_diag(7) reports each socket's queued bytes
//! (`inet_diag_msg.idiag_rqueue`; `net/ipv4/udp_diag.c`).

mod abort;
mod backlog;
mod connections;
mod info;
pub mod room;

use std::io;

use thiserror::Error;

pub use abort::abort;
pub use backlog::{Backlog, Backlogs};
pub use connections::{Connections, TcpSockets, UdpSockets};
pub use info::TcpInfo;

use crate::netns::message::{Message, u32_at};
use crate::netns::socket::{KernelSocket, Protocol};
use crate::netns::{self, Namespace};

/// `SOCK_DIAG_BY_FAMILY`, `include/uapi/linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_DUMP: u16 = 0x300;
/// Position of `idiag_rqueue` in `struct inet_diag_msg`: four bytes, a socket's identity of 48,
/// and `idiag_expires`.
const RQUEUE: usize = 4 + 48 + 4;
/// Bytes of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;

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
    socket: KernelSocket,
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
            socket: namespace.socket(Protocol::SocketDiagnosis)?,
            requests: Vec::with_capacity(4),
            container,
        };
        for (protocol, required) in [(libc::IPPROTO_UDP, true), (libc::IPPROTO_UDPLITE, false)] {
            for family in [libc::AF_INET, libc::AF_INET6] {
                let mut request = request(family, protocol);
                match queues.socket.dump_each(&mut request, |_| ()) {
                    Ok(_) => queues.requests.push(request),
                    Err(source) if required => return Err(queues.failed(source)),
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
            self.socket
                .dump_each(request, |message| {
                    bytes += u64::from(u32_at(message.payload, RQUEUE).unwrap_or(0));
                })
                .map_err(|source| Error::List { container: self.container.clone(), source })?;
        }
        Ok(bytes)
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::List { container: self.container.clone(), source }
    }
}

/// `struct inet_diag_req_v2` for all sockets of a family and protocol, in any state.
fn request(family: i32, protocol: i32) -> Vec<u8> {
    let mut payload = [0; REQUEST];
    payload[0] = u8::try_from(family).unwrap_or(0);
    payload[1] = u8::try_from(protocol).unwrap_or(0);
    payload[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    Message::new(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &payload).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    /// The namespace of the tests is shared, so look only for what this test adds.
    #[test]
    fn unread_datagrams_are_counted_until_they_are_read() {
        let mut queues = UdpQueues {
            socket: KernelSocket::open(Protocol::SocketDiagnosis).unwrap(),
            requests: vec![request(libc::AF_INET, libc::IPPROTO_UDP)],
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
