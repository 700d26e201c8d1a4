//! What the kernel tells of flows that have ended, of nftables rules that were removed, and of tunnels
//! that came, changed or went.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::flow::{self, FlowError};
use crate::nfnetlink::attribute::Attributes;
use crate::nfnetlink::message::{Message, NFGENMSG};
use crate::nfnetlink::{Options, Socket, SocketError, subsystem};
use crate::peer::{INTERFACE_PREFIX, ORIGINAL_MASK, REPLY_MASK};
use crate::table::{GUARD, TABLE};

/// Multicast groups (`enum nfnetlink_groups`): ended flows, changes of nftables.
const CONNTRACK_DESTROY: u32 = 3;
const NFTABLES: u32 = 7;
/// Multicast group of interfaces (`RTNLGRP_LINK`, `include/uapi/linux/rtnetlink.h`).
const LINKS: u32 = 1;
/// Bytes before the attributes of a message about an interface (`struct nlmsghdr`, `struct ifinfomsg`).
const LINK_HEAD: usize = 32;

/// What has happened since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// A flow that was led to a peer has ended.
    pub flow_ended: bool,
    /// A table, chain or rule of anybody was removed.
    pub rules_removed: bool,
    /// A chain was added to a table of others, as by a reload of the host's firewall.
    pub chain_added: bool,
    /// A tunnel's interface has come, changed or gone.
    pub tunnel_changed: bool,
}

/// Listens in the network namespace in which it was opened.
pub struct Events {
    socket: Socket,
    links: netlink_sys::Socket,
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
        let links = listen_to_links().map_err(|e| FlowError::Open(SocketError::Open(e)))?;
        Ok(Self { socket, links, buffer: Socket::buffer() })
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
            let fds = [self.socket.as_fd(), self.links.as_fd()];
            let mut polled = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut polled, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(FlowError::Dump(SocketError::Receive(errno))),
            }
            let mut seen = self.take()?;
            seen.tunnel_changed |= self.take_links();
            if seen != Seen::default() || Instant::now() >= end {
                return Ok(seen);
            }
        }
    }

    /// Whether a tunnel is among the interfaces that changed since the last look.
    fn take_links(&mut self) -> bool {
        let mut changed = false;
        loop {
            let mut free = self.buffer.as_mut_slice();
            match self.links.recv(&mut free, 0) {
                Ok(length) => {
                    changed |= is_of_tunnel(self.buffer.get(..length).unwrap_or_default())
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return changed,
                // More than could be kept, a tunnel's change perhaps.
                Err(_) => return true,
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
        Self { flow_ended: true, rules_removed: true, chain_added: true, tunnel_changed: true }
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
            self.chain_added |=
                i32::from(message) == libc::NFT_MSG_NEWCHAIN && !is_of_our_table(payload);
        }
    }
}

/// Whether a message about a chain is of a table of netmig's.
fn is_of_our_table(payload: &[u8]) -> bool {
    /// `NFTA_CHAIN_TABLE` (`include/uapi/linux/netfilter/nf_tables.h`).
    const CHAIN_TABLE: u16 = 1;
    Attributes::new(payload.get(NFGENMSG..).unwrap_or_default())
        .flatten()
        .filter(|attribute| attribute.kind == CHAIN_TABLE)
        .any(|name| name.text().is_ok_and(|name| name == TABLE || GUARD.to_str() == Ok(name)))
}

fn listen_to_links() -> io::Result<netlink_sys::Socket> {
    let mut links = netlink_sys::Socket::new(NETLINK_ROUTE)?;
    links.bind_auto()?;
    links.add_membership(LINKS)?;
    links.set_non_blocking(true)?;
    Ok(links)
}

/// Whether a message tells of a tunnel's interface.
fn is_of_tunnel(message: &[u8]) -> bool {
    let kind = message.get(4..6).map(|kind| u16::from_ne_bytes([kind[0], kind[1]]));
    kind.is_some_and(|kind| [libc::RTM_NEWLINK, libc::RTM_DELLINK].contains(&kind))
        && Attributes::new(message.get(LINK_HEAD..).unwrap_or_default())
            .flatten()
            .filter(|attribute| attribute.kind == libc::IFLA_IFNAME)
            .any(|name| name.text().is_ok_and(|name| name.starts_with(INTERFACE_PREFIX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfnetlink::attribute::put;

    #[test]
    fn only_interfaces_of_tunnels_count() {
        let message = |kind: u16, name: &[u8]| {
            let mut message = vec![0; LINK_HEAD];
            message[4..6].copy_from_slice(&kind.to_ne_bytes());
            message.extend((u16::try_from(name.len()).unwrap() + 4).to_ne_bytes());
            message.extend(libc::IFLA_IFNAME.to_ne_bytes());
            message.extend(name);
            message
        };
        assert!(is_of_tunnel(&message(libc::RTM_DELLINK, b"netmig7\0")));
        assert!(is_of_tunnel(&message(libc::RTM_NEWLINK, b"netmig7\0")));
        assert!(!is_of_tunnel(&message(libc::RTM_NEWADDR, b"netmig7\0")));
        assert!(!is_of_tunnel(&message(libc::RTM_DELLINK, b"veth0\0")));
        assert!(!is_of_tunnel(&[0; 5]));
    }

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
    fn chains_of_others_count_when_they_come() {
        let seen = |table: &str| {
            let mut payload = vec![0; NFGENMSG];
            put(&mut payload, 1, &[table.as_bytes(), &[0]].concat());
            let mut seen = Seen::default();
            let message = libc::NFT_MSG_NEWCHAIN.to_le_bytes()[0];
            seen.note(u16::from_be_bytes([subsystem::NFTABLES, message]), &payload);
            seen.chain_added
        };
        assert!(seen("fw") && seen("filter"));
        assert!(!seen(TABLE) && !seen(GUARD.to_str().unwrap()));
    }

    #[test]
    fn what_cannot_be_read_is_no_flow_of_ours() {
        let mut seen = Seen::default();
        seen.note(u16::from_be_bytes([subsystem::CONNTRACK, 2]), &[1, 2, 3]);
        assert_eq!(seen, Seen::default());
    }
}
