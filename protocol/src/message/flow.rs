//! Flows as conntrack has them, and addresses that stand for others in tunnels.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use state::id::HostId;

use super::address;

/// A transport protocol whose flows are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// The addresses and ports of packets of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuple {
    /// The sender's address.
    #[serde(with = "address")]
    pub source: IpAddr,
    /// The receiver's address.
    #[serde(with = "address")]
    pub destination: IpAddr,
    /// The sender's port.
    pub source_port: u16,
    /// The receiver's port.
    pub destination_port: u16,
}

/// What conntrack knows of a TCP connection, first of the original, then of the reply direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpState {
    /// The number of the state (`enum tcp_conntrack` in `nf_conntrack_tcp.h`).
    pub state: u8,
    /// The window scales.
    pub scales: [u8; 2],
    /// The flags (`IP_CT_TCP_FLAG_*`).
    pub flags: [u8; 2],
}

/// The directions of a flow to which its zone applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZoneScope {
    /// Both directions.
    Both,
    /// The original direction.
    Original,
    /// The reply direction.
    Reply,
}

/// A conntrack zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// The zone's number; 0 is the default zone.
    pub id: u16,
    /// The directions to which it applies.
    pub scope: ZoneScope,
}

/// A conntrack entry of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// The transport protocol.
    pub protocol: Protocol,
    /// Packets of the host that opened the flow, before translation.
    pub original: Tuple,
    /// Packets of the other side, before translation.
    pub reply: Tuple,
    /// Status bits (`enum ip_conntrack_status`).
    pub status: u32,
    /// Seconds until the kernel forgets the entry if no packet comes.
    pub timeout: u32,
    /// The connmark.
    pub mark: u32,
    /// The zone.
    pub zone: Zone,
    /// The state of a TCP connection; `None` for other protocols.
    pub tcp: Option<TcpState>,
}

/// An address of the source's container networks, and the one that stands for it in the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// The address on the source.
    pub here: IpAddr,
    /// The address in the tunnel.
    pub address: IpAddr,
}

/// Flows of one anchor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowBatch {
    /// The anchor, or the next host on the way there; `None` for the source itself.
    pub anchor: Option<HostId>,
    /// The source's entries.
    pub flows: Vec<Flow>,
    /// What stands in the tunnel for the source's gateways and for addresses of the destination that are the
    /// other end of a flow.
    pub stand_ins: Vec<Alias>,
    /// Addresses of the destination that are the other end of a flow: such flows become local there.
    pub at_destination: Vec<IpAddr>,
}

/// Flows of a container that a user ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndFlows {
    /// The container's ID.
    pub id: String,
    /// The flows.
    pub flows: Vec<FlowEnds>,
}

/// The two ends of a flow, as its container knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowEnds {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The container's end. It may have another address on another host.
    pub own: SocketAddr,
    /// The far end.
    pub far: SocketAddr,
}

/// A connection of a moved container on which nothing was received since the restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SilentConnection {
    /// The container's end.
    pub own: SocketAddr,
    /// The far end, as the container knows it.
    pub far: SocketAddr,
    /// Whether the container has sent data that is not acknowledged.
    pub awaits_answer: bool,
}
