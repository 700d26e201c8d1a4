//! One UDP flow of an echo client.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use socket2::SockRef;

use super::client::Channel;
use super::echo_message::Message;
use super::tally::{Ended, Tally};

/// The receive buffer of a client in bytes. It takes a burst of released replies.
const RECEIVE_BUFFER: usize = 64 << 20;

/// A flow and the sequence numbers of its replies.
#[derive(Debug)]
pub(super) struct UdpChannel {
    socket: UdpSocket,
    size: usize,
    seen: Vec<u64>,
    highest: Option<u64>,
}

impl UdpChannel {
    pub(super) fn open(server: SocketAddr, size: usize) -> io::Result<Self> {
        let any: SocketAddr = if server.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(server)?;
        socket.set_nonblocking(true)?;
        // Without CAP_NET_ADMIN the kernel caps the size at `net.core.rmem_max`.
        if setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).is_err() {
            SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER)?;
        }
        Ok(Self { socket, size, seen: Vec::new(), highest: None })
    }

    /// Marks a sequence number as seen. Returns whether it is new.
    fn mark_seen(&mut self, sequence: u64) -> bool {
        let (word, bit) = ((sequence / 64) as usize, 1u64 << (sequence % 64));
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        let new = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        new
    }
}

impl Channel for UdpChannel {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn send(&mut self, message: &Message, tally: &mut Tally) -> Result<(), Ended> {
        let mut bytes = vec![0; self.size];
        message.encode(&mut bytes);
        tally.sent(message);
        // A datagram that could not be sent counts as lost. The error count shows ICMP errors and full send buffers.
        if let Err(error) = self.socket.send(&bytes) {
            tally.error(&error);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Ended> {
        Ok(())
    }

    fn wants_to_write(&self) -> bool {
        false
    }

    fn receive(&mut self, id: (u32, u32), tally: &mut Tally) -> Result<(), Ended> {
        let mut buffer = [0; 65_536];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    let known = Message::decode(&buffer[..length])
                        .filter(|message| (message.connection, message.run) == id)
                        .filter(|_| length == self.size);
                    let Some(message) = known else {
                        tally.corrupt();
                        continue;
                    };
                    if !self.mark_seen(message.sequence) {
                        tally.duplicated();
                        continue;
                    }
                    if self.highest.is_some_and(|highest| message.sequence < highest) {
                        tally.reordered();
                    }
                    self.highest = self.highest.max(Some(message.sequence));
                    tally.received(&message);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => tally.error(&error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_number_is_new_once() {
        let mut channel = UdpChannel::open(([127, 0, 0, 1], 9).into(), 32).unwrap();
        for sequence in [0, 63, 64, 100_000] {
            assert!(channel.mark_seen(sequence));
            assert!(!channel.mark_seen(sequence));
        }
    }
}
