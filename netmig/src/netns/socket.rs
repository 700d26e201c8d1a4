//! A blocking netlink socket with prepared buffers.
//!
//! The kernel handles a netlink request inside of the sending system call, so an answer is there
//! when the call returns; blocking costs nothing and leaves the scheduler out of the critical path.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP_INTR};
use rtnetlink::sys::protocols::{NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_XFRM};
use rtnetlink::sys::{Socket, SocketAddr};
use thiserror::Error;

use super::message::{Received, messages, u32_at};

/// Message types of netlink itself, netlink(7).
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Seconds until a silent kernel is an error. It answers at once unless the network configuration
/// lock is held by something big, as the removal of a thousand interfaces.
const ANSWER_SECONDS: i64 = 5;
/// The kernel fills at most this much per datagram of a dump (`netlink_dump`, af_netlink.c).
const BUFFER: usize = 32 * 1024;
/// A dump that changed while it was read is read again so many times.
const DUMP_ATTEMPTS: usize = 5;

/// The netlink families used here.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Protocol {
    /// Interfaces, addresses, routes, rules, neighbours.
    Route,
    /// Sockets and their queues, sock_diag(7).
    SocketDiagnosis,
    /// Policies and security associations of IPsec.
    Ipsec,
}

/// The kernel refused a message of a batch.
#[derive(Debug, Error)]
#[error("message {index} of the batch was refused")]
pub(crate) struct Refused {
    /// Which message, from 0.
    pub(crate) index: usize,
    /// The kernel's answer.
    #[source]
    pub(crate) source: io::Error,
}

/// A netlink socket that stays in the network namespace it was opened in.
pub(crate) struct KernelSocket {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl KernelSocket {
    /// Opens the socket in the calling thread's network namespace.
    pub(crate) fn open(protocol: Protocol) -> io::Result<Self> {
        let socket = Socket::new(match protocol {
            Protocol::Route => NETLINK_ROUTE,
            Protocol::SocketDiagnosis => NETLINK_SOCK_DIAG,
            Protocol::Ipsec => NETLINK_XFRM,
        })?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let wait = TimeVal::new(ANSWER_SECONDS, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &wait)?;
        setsockopt(&socket, sockopt::SendTimeout, &wait)?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Sends the messages of `batch` with one system call and waits until the kernel has handled
    /// the last. All of them are handled even if one is refused; the first refusal is returned.
    pub(crate) fn execute(&mut self, batch: &mut [u8]) -> Result<(), Refused> {
        self.answer(batch, |_| ())
    }

    /// As [`Self::execute`], and hands the kernel's answers other than acknowledgements to `each`.
    pub(crate) fn answer(
        &mut self,
        batch: &mut [u8],
        mut each: impl FnMut(&Received<'_>),
    ) -> Result<(), Refused> {
        let first = self.sequence.wrapping_add(1);
        let count = number(batch, first);
        self.sequence = self.sequence.wrapping_add(count);
        let last = self.sequence;
        let whole = |source| Refused { index: 0, source };
        if count == 0 {
            return Ok(());
        }
        self.send(batch).map_err(whole)?;
        let mut refused = None;
        loop {
            let length = self.receive().map_err(whole)?;
            for message in messages(&self.buffer[..length]) {
                let index = message.sequence.wrapping_sub(first);
                if index >= count {
                    continue; // the late answer to a request that was given up
                }
                if message.kind != NLMSG_ERROR {
                    each(&message);
                    continue;
                }
                if let Some(source) = error_of(&message)
                    && refused.is_none()
                {
                    refused = Some(Refused { index: index as usize, source });
                }
                if message.sequence == last {
                    return refused.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Sends a dump request and hands every message of the answer to `each`. True when the answer
    /// is consistent, false when objects changed while it was read.
    pub(crate) fn dump_each(
        &mut self,
        request: &mut [u8],
        mut each: impl FnMut(&Received<'_>),
    ) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        set_sequence(request, self.sequence);
        self.send(request)?;
        let mut consistent = true;
        loop {
            let length = self.receive()?;
            for message in messages(&self.buffer[..length]) {
                if message.sequence != self.sequence {
                    continue;
                }
                consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        return error_of(&message).map_or(Ok(consistent), Err);
                    }
                    _ => each(&message),
                }
            }
        }
    }

    /// Sends a dump request and keeps the messages of the answer (what follows their headers), as
    /// the objects were at one moment.
    pub(crate) fn dump(&mut self, request: &mut [u8]) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut kept = Vec::new();
            if self.dump_each(request, |message| kept.push(message.payload.to_vec()))? {
                return Ok(kept);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the objects kept changing while read"))
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        loop {
            match send(self.socket.as_raw_fd(), bytes, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(timed(errno)),
            }
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => return Ok(length),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(timed(errno)),
            }
        }
    }
}

impl std::fmt::Debug for KernelSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KernelSocket").field(&self.socket.as_raw_fd()).finish()
    }
}

fn timed(errno: Errno) -> io::Error {
    match errno {
        Errno::EAGAIN => io::Error::new(io::ErrorKind::TimedOut, "the kernel does not answer"),
        other => other.into(),
    }
}

/// The negative error number at the start of `NLMSG_ERROR` and `NLMSG_DONE`; `None` is success.
fn error_of(message: &Received<'_>) -> Option<io::Error> {
    let code = u32_at(message.payload, 0)?.cast_signed();
    (code < 0).then(|| io::Error::from_raw_os_error(code.saturating_neg()))
}

fn set_sequence(message: &mut [u8], sequence: u32) {
    if let Some(field) = message.get_mut(8..12) {
        field.copy_from_slice(&sequence.to_ne_bytes());
    }
}

/// Numbers the messages of a batch from `first` and asks for the acknowledgement of the last only.
/// Returns how many there are.
fn number(batch: &mut [u8], first: u32) -> u32 {
    let mut count = 0;
    let mut start = 0;
    let mut last = None;
    while let Some(length) = u32_at(batch, start).map(|length| length as usize)
        && length >= super::message::HEADER
        && start + length <= batch.len()
    {
        set_sequence(&mut batch[start..], first.wrapping_add(count));
        count += 1;
        last = Some(start);
        start += length.next_multiple_of(4);
    }
    if let Some(start) = last {
        let flags = u16::from_ne_bytes([batch[start + 6], batch[start + 7]]) | NLM_F_ACK;
        batch[start + 6..start + 8].copy_from_slice(&flags.to_ne_bytes());
    }
    count
}

#[cfg(test)]
mod tests {
    use super::super::message::Message;
    use super::*;

    const RTM_GETLINK: u16 = 18;
    const NLM_F_DUMP: u16 = 0x300;

    #[test]
    fn only_the_last_of_a_batch_is_acknowledged() {
        let mut batch = Message::new(1, 0, &[]).finish();
        batch.extend(Message::new(2, 0, &[]).finish());
        assert_eq!(number(&mut batch, 7), 2);
        let seen: Vec<_> = messages(&batch).map(|m| (m.sequence, m.flags & NLM_F_ACK)).collect();
        assert_eq!(seen, [(7, 0), (8, NLM_F_ACK)]);
    }

    #[test]
    fn the_loopback_interface_is_in_a_dump() {
        let mut socket = KernelSocket::open(Protocol::Route).unwrap();
        let links =
            socket.dump(&mut Message::new(RTM_GETLINK, NLM_F_DUMP, &[0; 16]).finish()).unwrap();
        assert!(links.iter().any(|link| {
            super::super::message::text_attribute(&link[16..], 3).as_deref() == Some("lo")
        }));
    }

    #[test]
    fn a_refusal_names_the_message_and_later_requests_are_not_confused() {
        let mut socket = KernelSocket::open(Protocol::Route).unwrap();
        let lookup = |index: i32| {
            let mut payload = [0; 16];
            payload[4..8].copy_from_slice(&index.to_ne_bytes());
            Message::new(RTM_GETLINK, 0, &payload).finish()
        };
        let mut batch = lookup(1);
        batch.extend(lookup(i32::MAX));
        batch.extend(lookup(1));
        let mut answers = 0;
        let refused = socket.answer(&mut batch, |_| answers += 1).unwrap_err();
        assert_eq!((refused.index, refused.source.raw_os_error()), (1, Some(libc::ENODEV)));
        assert_eq!(answers, 2);
        assert!(socket.execute(&mut lookup(1)).is_ok());
    }
}
