//! Flows: the container's entries in conntrack.
//!
//! The source reads them ([`Conntrack::dump`]), marks them in place so that their packets leave
//! through the tunnel ([`Conntrack::set_mark`] with [`Flow::mark_at_source`]), and sends them to
//! the destination. The destination creates the entries it needs to carry the flows on
//! ([`Flow::at_destination`], [`Conntrack::create`]).
//!
//! | flow | at the source | at the destination |
//! | --- | --- | --- |
//! | inbound: client → host:port, DNAT to container:port | next hop of the original direction becomes the destination, that of the reply direction stays this host | client → container:port, next hop of the reply direction becomes the source |
//! | outbound: container:port → server, masqueraded | next hop of the reply direction becomes the destination | container:port → server without NAT, next hop of the original direction becomes the source |
//!
//! The source keeps its entry with NAT, window state and timeout; only the connmark changes. The
//! NAT of an existing entry cannot be changed, and deleting and recreating it would lose the window
//! state and race with packets.
//!
//! The host that has the translating entry is the flow's *anchor*: far ends talk to its address. It
//! stays the anchor wherever the container goes. On the container's host [`Flow::anchor`] returns
//! the peer that is the anchor; on the anchor [`Flow::leads_to`] returns the peer that has the
//! container.

mod alias;
mod both_ends_local;
mod bridged;
mod conntrack;
mod ends;
mod expired;
mod relocation;
mod tunnel_nat;

use std::fmt;
use std::fs;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::peer_number::{ORIGINAL_MASK, PeerNumber, REPLY_MASK};

pub use alias::{Alias, Aliases, NoAlias, is_alias};
pub use both_ends_local::MergedEntry;
pub(crate) use bridged::BridgedFlows;
pub use conntrack::{Conntrack, FlowError, Outcome, parse};
pub use ends::FlowEnds;
pub(crate) use expired::contains;
pub use expired::{ExpiredFlows, Published};
pub use relocation::Relocation;
pub use tunnel_nat::{Readdressed, TunnelNat};

/// Conntrack status bit: a packet was seen in the reply direction (`IPS_SEEN_REPLY`).
pub const STATUS_SEEN_REPLY: u32 = 1 << 1;
/// Conntrack status bit: the entry is not dropped early when the table is full (`IPS_ASSURED`).
pub const STATUS_ASSURED: u32 = 1 << 2;
/// Conntrack status bit: the entry is in the table (`IPS_CONFIRMED`).
pub const STATUS_CONFIRMED: u32 = 1 << 3;
/// Conntrack status bit: packets do not renew the timeout (`IPS_FIXED_TIMEOUT`).
pub const STATUS_FIXED_TIMEOUT: u32 = 1 << 10;
/// The kernel's default timeout of an answered UDP flow, in seconds.
const UDP_TIMEOUT: u32 = 120;
/// The kernel parameter that sets this timeout (nf_conntrack-sysctl.rst).
const UDP_TIMEOUT_FILE: &str = "/proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream";
/// Per-direction TCP flag: packets outside the window are not invalid
/// (`IP_CT_TCP_FLAG_BE_LIBERAL`).
pub const TCP_BE_LIBERAL: u8 = 0x08;

/// A transport protocol whose flows netmig moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Returns the protocol number of the IP header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Returns the protocol of that number; `None` for protocols that netmig does not move.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Addresses and ports of one direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Address of the sender in this direction.
    pub source: IpAddr,
    /// Address of the receiver in this direction.
    pub destination: IpAddr,
    /// Port of the sender.
    pub source_port: u16,
    /// Port of the receiver.
    pub destination_port: u16,
}

impl Tuple {
    /// Returns the tuple of the opposite direction without NAT.
    #[must_use]
    pub const fn inverse(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |address, port| std::net::SocketAddr::new(address, port);
        let source = side(self.source, self.source_port);
        write!(f, "{source} > {}", side(self.destination, self.destination_port))
    }
}

/// Conntrack's state of a TCP connection. Arrays hold the original direction first, then the reply
/// direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TcpState {
    /// Conntrack's state number (`enum tcp_conntrack`): 3 is established.
    pub state: u8,
    /// Window scales.
    pub scales: [u8; 2],
    /// Flags (`IP_CT_TCP_FLAG_*`).
    pub flags: [u8; 2],
}

impl TcpState {
    /// Returns whether both sides are known to use window scaling (`IP_CT_TCP_FLAG_WINDOW_SCALE`).
    #[must_use]
    pub fn is_scaled(&self) -> bool {
        self.flags.iter().all(|flags| flags & 0x01 != 0)
    }
}

/// The directions of a flow to which a conntrack zone applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZoneScope {
    /// Both directions: the ordinary case.
    Both,
    /// The original direction only.
    Original,
    /// The reply direction only.
    Reply,
}

/// A conntrack zone, which keeps flows with identical tuples apart. Zone 0 is the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Zone {
    /// The number.
    pub id: u16,
    /// Which directions it applies to.
    pub scope: ZoneScope,
}

impl Default for Zone {
    fn default() -> Self {
        Self { id: 0, scope: ZoneScope::Both }
    }
}

/// A conntrack entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The transport protocol.
    pub protocol: Protocol,
    /// Packets of the side that opened the flow, as they arrive: before NAT.
    pub original: Tuple,
    /// Packets of the other side, as they arrive. The inverse of `original` unless the flow has
    /// NAT.
    pub reply: Tuple,
    /// Status bits (`enum ip_conntrack_status`).
    pub status: u32,
    /// Seconds until the entry expires if no packet comes.
    pub timeout: u32,
    /// The connmark.
    pub mark: u32,
    /// The zone.
    pub zone: Zone,
    /// TCP state; `None` for UDP.
    pub tcp: Option<TcpState>,
}

/// A flow with its byte counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The flow.
    pub flow: Flow,
    /// Bytes of the original and of the reply direction, where the host counts them
    /// (`net.netfilter.nf_conntrack_acct`).
    pub bytes: Option<[u64; 2]>,
}

/// The side that opened a flow, seen from the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Another host, to a port of the container.
    Inbound,
    /// The container.
    Outbound,
}

impl Flow {
    /// Returns which side opened the flow; `None` if it is not the container's.
    ///
    /// A flow that the container opened to its own published port through the host is both; it
    /// counts as inbound.
    #[must_use]
    pub fn direction(&self, container: &[IpAddr]) -> Option<Direction> {
        if container.contains(&self.reply.source) {
            Some(Direction::Inbound)
        } else if container.contains(&self.original.source) {
            Some(Direction::Outbound)
        } else {
            None
        }
    }

    /// Returns the peer to which this host sends the packets that come from the container: the
    /// flow's anchor, or the next hop towards it. `None` if this host is the anchor, or the flow is
    /// not the container's.
    #[must_use]
    pub fn anchor(&self, container: &[IpAddr]) -> Option<PeerNumber> {
        match self.direction(container)? {
            Direction::Inbound => PeerNumber::of_reply(self.mark),
            Direction::Outbound => PeerNumber::of_original(self.mark),
        }
    }

    /// Returns the peer to which this host sends the packets for the container. `None` if the
    /// container is on this host, or the flow is not the container's.
    #[must_use]
    pub fn leads_to(&self, container: &[IpAddr]) -> Option<PeerNumber> {
        match self.direction(container)? {
            Direction::Inbound => PeerNumber::of_original(self.mark),
            Direction::Outbound => PeerNumber::of_reply(self.mark),
        }
    }

    /// Returns the container's own address in the flow; `None` if the flow is not the container's.
    #[must_use]
    pub fn own_end(&self, container: &[IpAddr]) -> Option<IpAddr> {
        Some(match self.direction(container)? {
            Direction::Inbound => self.reply.source,
            Direction::Outbound => self.original.source,
        })
    }

    /// Returns the address of the other end as the container sees it; `None` if the flow is not the
    /// container's.
    #[must_use]
    pub fn other_end(&self, container: &[IpAddr]) -> Option<IpAddr> {
        Some(match self.direction(container)? {
            Direction::Inbound => self.reply.destination,
            Direction::Outbound => self.original.destination,
        })
    }

    /// Returns the peers to which the connmark steers the flow's directions.
    pub fn peers(&self) -> impl Iterator<Item = PeerNumber> + use<> {
        [PeerNumber::of_original(self.mark), PeerNumber::of_reply(self.mark)].into_iter().flatten()
    }

    /// Returns whether the connmark steers a direction of the flow to `peer`.
    #[must_use]
    pub fn is_marked_for(&self, peer: PeerNumber) -> bool {
        self.mark & ORIGINAL_MASK == peer.original_mark()
            || self.mark & REPLY_MASK == peer.reply_mark()
    }

    /// Returns whether the connection goes on: false for a TCP connection that both sides have
    /// closed.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        /// `TCP_CONNTRACK_TIME_WAIT`: from here on the connection is over.
        const TIME_WAIT: u8 = 7;
        self.tcp.is_none_or(|tcp| tcp.state < TIME_WAIT)
    }

    /// Returns whether the flow has NAT.
    #[must_use]
    pub fn is_translated(&self) -> bool {
        self.reply != self.original.inverse()
    }
}

/// Returns this host's timeout of an answered UDP flow, in seconds.
#[must_use]
pub fn udp_timeout() -> u32 {
    let text = fs::read_to_string(UDP_TIMEOUT_FILE).unwrap_or_default();
    text.trim().parse().unwrap_or(UDP_TIMEOUT)
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, self.original)?;
        if self.is_translated() {
            write!(f, " (reply {})", self.reply)?;
        }
        Ok(())
    }
}
