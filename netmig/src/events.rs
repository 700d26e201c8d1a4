//! Kernel notifications: flows that have ended, nftables rules that were removed, tunnels and other
//! interfaces that were added, changed or removed.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::flow::{self, FlowError};
use crate::netlink::attribute::find_text;
use crate::netlink::message::Message;
use crate::netlink::nfnetlink::{NFGENMSG, Subsystem};
use crate::netlink::route::LINK_HEADER;
use crate::netlink::{Options, Protocol, Socket, SocketError};
use crate::peer_number::{INTERFACE_PREFIX, ORIGINAL_MASK, REPLY_MASK};
use crate::table::{GUARD, TABLE};

/// Multicast groups (`enum nfnetlink_groups`): destroyed conntrack entries, changes of nftables.
const CONNTRACK_DESTROY: u32 = 3;
const NFTABLES: u32 = 7;
/// Multicast group of interfaces (`RTNLGRP_LINK`, `include/uapi/linux/rtnetlink.h`).
const LINKS: u32 = 1;

/// What has happened since the last call of [`Events::wait`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// A flow that was steered to a peer has ended.
    pub flow_ended: bool,
    /// A table, chain or rule was removed, whoever owned it.
    pub rules_removed: bool,
    /// A chain was added to a table that is not netmig's, as by a reload of the host's firewall.
    pub chain_added: bool,
    /// A tunnel interface was added, changed or removed.
    pub tunnel_changed: bool,
    /// Another interface was, such as a container's.
    pub link_changed: bool,
}

/// Listens in the network namespace in which it was opened.
pub struct Events {
    socket: Socket,
    links: Socket,
    buffer: Vec<u8>,
}

impl Events {
    /// Starts listening.
    ///
    /// # Errors
    /// [`FlowError::Open`] without CAP_NET_ADMIN, or on a kernel without nfnetlink.
    pub fn open() -> Result<Self, FlowError> {
        let open = |protocol, groups| {
            let options = Options { groups, ..Options::of(protocol) };
            Socket::open(protocol, options).map_err(FlowError::Open)
        };
        let socket = open(Protocol::Netfilter, &[CONNTRACK_DESTROY, NFTABLES])?;
        let links = open(Protocol::Route, &[LINKS])?;
        Ok(Self { socket, links, buffer: Socket::buffer() })
    }

    /// Waits for the next event, at most for `limit`, and returns it with all others that are
    /// pending. If the kernel had to drop notifications, all events are reported.
    ///
    /// # Errors
    /// [`FlowError::Dump`] when the socket fails.
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
            self.take_links(&mut seen);
            if seen != Seen::default() || Instant::now() >= end {
                return Ok(seen);
            }
        }
    }

    /// Notes the interfaces that changed since the last call.
    fn take_links(&mut self, seen: &mut Seen) {
        loop {
            match self.links.poll(&mut self.buffer) {
                Ok(Some(messages)) => {
                    for message in messages.map_while(Result::ok) {
                        let Message::Data { kind, payload, .. } = message else { continue };
                        if is_of_tunnel(kind, payload) {
                            seen.tunnel_changed = true;
                        } else {
                            seen.link_changed = true;
                        }
                    }
                }
                Ok(None) => return,
                // Notifications were dropped, perhaps a tunnel's.
                Err(_) => {
                    (seen.tunnel_changed, seen.link_changed) = (true, true);
                    return;
                }
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
    /// Returns whether anything was seen that may have taken something of netmig's away.
    #[must_use]
    pub fn concerns_netmig(&self) -> bool {
        *self != Self { link_changed: self.link_changed, ..Self::default() }
    }

    fn everything() -> Self {
        Self {
            flow_ended: true,
            rules_removed: true,
            chain_added: true,
            tunnel_changed: true,
            link_changed: true,
        }
    }

    fn note(&mut self, kind: u16, payload: &[u8]) {
        if Subsystem::Conntrack.message_of(kind).is_some() {
            // An entry of another protocol, or one that cannot be parsed, is not one of ours.
            let flow = flow::parse(payload).ok().flatten();
            self.flow_ended |=
                flow.is_some_and(|flow| flow.mark & (ORIGINAL_MASK | REPLY_MASK) != 0);
        } else if let Some(message) = Subsystem::NfTables.message_of(kind) {
            let removals = [libc::NFT_MSG_DELTABLE, libc::NFT_MSG_DELCHAIN, libc::NFT_MSG_DELRULE];
            self.rules_removed |= removals.contains(&message);
            self.chain_added |= message == libc::NFT_MSG_NEWCHAIN && !is_of_our_table(payload);
        }
    }
}

/// Returns whether a message about a chain concerns one of netmig's tables.
fn is_of_our_table(payload: &[u8]) -> bool {
    /// `NFTA_CHAIN_TABLE` (`include/uapi/linux/netfilter/nf_tables.h`).
    const CHAIN_TABLE: u16 = 1;
    find_text(payload.get(NFGENMSG..).unwrap_or_default(), CHAIN_TABLE)
        .is_some_and(|name| name == TABLE || GUARD.to_str() == Ok(&name))
}

/// Returns whether a message concerns a tunnel interface.
fn is_of_tunnel(kind: u16, payload: &[u8]) -> bool {
    [libc::RTM_NEWLINK, libc::RTM_DELLINK].contains(&kind)
        && find_text(payload.get(LINK_HEADER..).unwrap_or_default(), libc::IFLA_IFNAME)
            .is_some_and(|name| name.starts_with(INTERFACE_PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute::put_text;

    #[test]
    fn only_interfaces_of_tunnels_count() {
        let of_tunnel = |kind: u16, name: &str| {
            let mut payload = vec![0; LINK_HEADER];
            put_text(&mut payload, libc::IFLA_IFNAME, name);
            is_of_tunnel(kind, &payload)
        };
        assert!(of_tunnel(libc::RTM_DELLINK, "netmig7"));
        assert!(of_tunnel(libc::RTM_NEWLINK, "netmig7"));
        assert!(!of_tunnel(libc::RTM_NEWADDR, "netmig7"));
        assert!(!of_tunnel(libc::RTM_DELLINK, "veth0"));
        assert!(!is_of_tunnel(libc::RTM_NEWLINK, &[0; 5]));
    }

    #[test]
    fn only_removals_of_rules_count() {
        let seen = |message: i32| {
            let mut seen = Seen::default();
            seen.note(Subsystem::NfTables.kind(message), &[0; 4]);
            seen.rules_removed
        };
        assert!(seen(libc::NFT_MSG_DELTABLE) && seen(libc::NFT_MSG_DELRULE));
        assert!(!seen(libc::NFT_MSG_NEWRULE) && !seen(libc::NFT_MSG_NEWGEN));
    }

    #[test]
    fn chains_of_others_count_when_they_come() {
        let seen = |table: &str| {
            let mut payload = vec![0; NFGENMSG];
            put_text(&mut payload, 1, table);
            let mut seen = Seen::default();
            seen.note(Subsystem::NfTables.kind(libc::NFT_MSG_NEWCHAIN), &payload);
            seen.chain_added
        };
        assert!(seen("fw") && seen("filter"));
        assert!(!seen(TABLE) && !seen(GUARD.to_str().unwrap()));
    }

    #[test]
    fn what_cannot_be_read_is_no_flow_of_ours() {
        let mut seen = Seen::default();
        seen.note(Subsystem::Conntrack.kind(2), &[1, 2, 3]);
        assert_eq!(seen, Seen::default());
    }
}
