//! What the kernel tells of flows that have ended and of nftables rules that were removed.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::flow::{self, FlowError};
use crate::nfnetlink::message::Message;
use crate::nfnetlink::{Options, Socket, SocketError, subsystem};
use crate::peer::{ORIGINAL_MASK, REPLY_MASK};

/// Multicast groups (`enum nfnetlink_groups`): ended flows, changes of nftables.
const CONNTRACK_DESTROY: u32 = 3;
const NFTABLES: u32 = 7;

/// What has happened since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// A flow that was led to a peer has ended.
    pub flow_ended: bool,
    /// A table, chain or rule of anybody was removed.
    pub rules_removed: bool,
}

/// Listens in the network namespace in which it was opened.
pub struct Events {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Events {
    /// Begins to listen.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN, or on a kernel without nfnetlink.
    pub fn open() -> Result<Self, FlowError> {
        let options = Options { groups: &[CONNTRACK_DESTROY, NFTABLES], ..Options::default() };
        let socket = Socket::open(options).map_err(FlowError::Open)?;
        Ok(Self { socket, buffer: Socket::buffer() })
    }

    /// Waits for the next event, no longer than `limit`, and takes those that are there with it.
    /// Where the kernel had more to tell than it could keep, everything may have happened.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn wait(&mut self, limit: Duration) -> Result<Seen, FlowError> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut polled, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(FlowError::Dump(SocketError::Receive(errno))),
            }
            let seen = self.take()?;
            if seen != Seen::default() || Instant::now() >= end {
                return Ok(seen);
            }
        }
    }

    fn take(&mut self) -> Result<Seen, FlowError> {
        let mut seen = Seen::default();
        loop {
            match self.socket.poll(&mut self.buffer) {
                Ok(Some(messages)) => {
                    for message in messages {
                        match message.map_err(SocketError::from)? {
                            Message::Data { kind, payload, .. } => seen.note(kind, payload),
                            Message::Overrun => seen = Seen::everything(),
                            _ => {}
                        }
                    }
                }
                Ok(None) => return Ok(seen),
                Err(SocketError::Overrun) => seen = Seen::everything(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Seen {
    fn everything() -> Self {
        Self { flow_ended: true, rules_removed: true }
    }

    fn note(&mut self, kind: u16, payload: &[u8]) {
        let [of, message] = kind.to_be_bytes();
        if of == subsystem::CONNTRACK {
            // An entry of another protocol, or one that cannot be read, is none of ours.
            let flow = flow::parse(payload).ok().flatten();
            self.flow_ended |=
                flow.is_some_and(|flow| flow.mark & (ORIGINAL_MASK | REPLY_MASK) != 0);
        } else if of == subsystem::NFTABLES {
            let removals = [libc::NFT_MSG_DELTABLE, libc::NFT_MSG_DELCHAIN, libc::NFT_MSG_DELRULE];
            self.rules_removed |= removals.contains(&i32::from(message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_removals_of_rules_count() {
        let seen = |message: i32| {
            let mut seen = Seen::default();
            let kind = u16::from_be_bytes([subsystem::NFTABLES, message.to_le_bytes()[0]]);
            seen.note(kind, &[0; 4]);
            seen.rules_removed
        };
        assert!(seen(libc::NFT_MSG_DELTABLE) && seen(libc::NFT_MSG_DELRULE));
        assert!(!seen(libc::NFT_MSG_NEWRULE) && !seen(libc::NFT_MSG_NEWGEN));
    }

    #[test]
    fn what_cannot_be_read_is_no_flow_of_ours() {
        let mut seen = Seen::default();
        seen.note(u16::from_be_bytes([subsystem::CONNTRACK, 2]), &[1, 2, 3]);
        assert_eq!(seen, Seen::default());
    }
}
