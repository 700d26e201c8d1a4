//! Flows: the container's entries in conntrack.
//!
//! The source reads them ([`Conntrack::dump`]), marks them in place so that their packets leave
//! through the tunnel ([`Conntrack::set_mark`] with [`Flow::mark_at_source`]), and sends them to
//! the destination, which creates what it needs to carry them on ([`Flow::at_destination`],
//! [`Conntrack::create`]).
//!
//! | flow | at the source | at the destination |
//! | --- | --- | --- |
//! | inbound: client → host:port, translated to container:port | reply next hop stays local, original next hop becomes the destination | client → container:port, reply next hop becomes the source |
//! | outbound: container:port → server, masqueraded | reply next hop becomes the destination | container:port → server untranslated, original next hop becomes the source |
//!
//! The source keeps its entry, with NAT, window state and timeouts; only the mark changes. The
//! NAT of an existing entry cannot be changed, and deleting and creating it again would lose the
//! window state and race with packets.
//!
//! The host that has the translating entry is the flow's *anchor*: far ends talk to its address. It
//! stays the anchor wherever the container goes. On the host of the container [`Flow::anchor`] tells
//! which one it is, on the anchor [`Flow::leads_to`] where the container is.

mod alias;
mod bridged;
mod conntrack;
mod expired;
mod merged;
mod relocation;
mod tunnel_nat;

use std::fmt;
use std::fs;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::peer_number::{ORIGINAL_MASK, PeerNumber, REPLY_MASK};

pub use alias::{Alias, Aliases, NoAlias, is_alias};
pub(crate) use bridged::BridgedFlows;
pub use conntrack::{Conntrack, FlowError, Outcome, parse};
pub(crate) use expired::contains;
pub use expired::{ExpiredFlows, Published};
pub use merged::MergedEntry;
pub use relocation::Relocation;
pub use tunnel_nat::{Readdressed, TunnelNat};

/// Conntrack status bit: a packet was seen in the reply direction (`IPS_SEEN_REPLY`).
pub const STATUS_SEEN_REPLY: u32 = 1 << 1;
/// Conntrack status bit: not to be dropped early when the table is full (`IPS_ASSURED`).
pub const STATUS_ASSURED: u32 = 1 << 2;
/// Conntrack status bit: the entry is in the table (`IPS_CONFIRMED`).
pub const STATUS_CONFIRMED: u32 = 1 << 3;
/// Conntrack status bit: packets do not change when the entry is forgotten (`IPS_FIXED_TIMEOUT`).
pub const STATUS_FIXED_TIMEOUT: u32 = 1 << 10;
/// Seconds that the kernel remembers an answered UDP flow by default.
const UDP_TIMEOUT: u32 = 120;
/// Where it says for how long it does (nf_conntrack-sysctl.rst).
const UDP_TIMEOUT_FILE: &str = "/proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream";
/// Per-direction TCP flag: packets outside the window are not invalid
/// (`IP_CT_TCP_FLAG_BE_LIBERAL`).
pub const TCP_BE_LIBERAL: u8 = 0x08;

/// A transport protocol whose flows are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The number in the IP header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// `None` for protocols that are not moved.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tuple {
    /// Who sends in this direction.
    pub source: IpAddr,
    /// Who receives in this direction.
    pub destination: IpAddr,
    /// The sender's port.
    pub source_port: u16,
    /// The receiver's port.
    pub destination_port: u16,
}

impl Tuple {
    /// The same packet's way back, without any translation.
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

/// What conntrack knows of a TCP connection, first of the original, then of the reply direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TcpState {
    /// Conntrack's state number (`enum tcp_conntrack`): 3 is established.
    pub state: u8,
    /// Window scales.
    pub scales: [u8; 2],
    /// Flags (`IP_CT_TCP_FLAG_*`).
    pub flags: [u8; 2],
}

impl TcpState {
    /// Whether both sides are known to have agreed on window scaling (`IP_CT_TCP_FLAG_WINDOW_SCALE`).
    #[must_use]
    pub fn is_scaled(&self) -> bool {
        self.flags.iter().all(|flags| flags & 0x01 != 0)
    }
}

/// Which directions of a flow a conntrack zone applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ZoneScope {
    /// Both directions: the ordinary case.
    Both,
    /// The original direction only.
    Original,
    /// The reply direction only.
    Reply,
}

/// A conntrack zone, which keeps apart flows with identical tuples. Zone 0 is the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// One entry of conntrack.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Flow {
    /// The transport protocol.
    pub protocol: Protocol,
    /// Packets of whoever opened the flow, as they arrive: before translation.
    pub original: Tuple,
    /// Packets of the other side, as they arrive. The plain inverse of `original` unless the
    /// flow is translated.
    pub reply: Tuple,
    /// Status bits (`enum ip_conntrack_status`).
    pub status: u32,
    /// Seconds until the entry is forgotten if no packet comes.
    pub timeout: u32,
    /// The connmark.
    pub mark: u32,
    /// The zone.
    pub zone: Zone,
    /// Present for TCP only.
    pub tcp: Option<TcpState>,
}

/// A flow and what went through it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The flow.
    pub flow: Flow,
    /// Bytes of the original and of the reply direction, where the host counts them
    /// (`net.netfilter.nf_conntrack_acct`).
    pub bytes: Option<[u64; 2]>,
}

/// Who opened a flow, seen from the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Direction {
    /// SiblingAddresses, to a port of the container.
    Inbound,
    /// The container.
    Outbound,
}

impl Flow {
    /// Who opened the flow, or `None` if it is not the container's.
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

    /// The peer to which this host sends what the container says: the flow's anchor, or the next
    /// host on the way there. `None` if this host is the anchor, or the flow is not the container's.
    #[must_use]
    pub fn anchor(&self, container: &[IpAddr]) -> Option<PeerNumber> {
        match self.direction(container)? {
            Direction::Inbound => PeerNumber::of_reply(self.mark),
            Direction::Outbound => PeerNumber::of_original(self.mark),
        }
    }

    /// The peer to which this host sends what is meant for the container. `None` if the container is
    /// here, or the flow is not its.
    #[must_use]
    pub fn leads_to(&self, container: &[IpAddr]) -> Option<PeerNumber> {
        match self.direction(container)? {
            Direction::Inbound => PeerNumber::of_original(self.mark),
            Direction::Outbound => PeerNumber::of_reply(self.mark),
        }
    }

    /// The container's own address in it; `None` if the flow is not its.
    #[must_use]
    pub fn own_end(&self, container: &[IpAddr]) -> Option<IpAddr> {
        Some(match self.direction(container)? {
            Direction::Inbound => self.reply.source,
            Direction::Outbound => self.original.source,
        })
    }

    /// Who talks to the container, as the container sees it; `None` if the flow is not its.
    #[must_use]
    pub fn other_end(&self, container: &[IpAddr]) -> Option<IpAddr> {
        Some(match self.direction(container)? {
            Direction::Inbound => self.reply.destination,
            Direction::Outbound => self.original.destination,
        })
    }

    /// The peers to which its connmark leads a direction of it.
    pub fn peers(&self) -> impl Iterator<Item = PeerNumber> + use<> {
        [PeerNumber::of_original(self.mark), PeerNumber::of_reply(self.mark)].into_iter().flatten()
    }

    /// Whether its connmark leads one of its directions to `peer`.
    #[must_use]
    pub fn is_marked_for(&self, peer: PeerNumber) -> bool {
        self.mark & ORIGINAL_MASK == peer.original_mark()
            || self.mark & REPLY_MASK == peer.reply_mark()
    }

    /// Whether the connection goes on: not a TCP connection that both sides have closed.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        /// `TCP_CONNTRACK_TIME_WAIT`: from here on the connection is over.
        const TIME_WAIT: u8 = 7;
        self.tcp.is_none_or(|tcp| tcp.state < TIME_WAIT)
    }

    /// Whether addresses or ports are translated on the way.
    #[must_use]
    pub fn is_translated(&self) -> bool {
        self.reply != self.original.inverse()
    }
}

/// Seconds that this host remembers an answered UDP flow after its last packet.
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
