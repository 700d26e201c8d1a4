//! Packets of UDP flows, counted at the destination.

use serde::{Deserialize, Serialize};

use super::flow::Tuple;

/// The capability to count packets of UDP flows.
pub const DATAGRAMS: &str = "datagrams";

/// A UDP flow of the container whose anchor is the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountedFlow {
    /// Packets of the host that opened the flow, as they come to the source.
    pub original: Tuple,
    /// Packets of the other side, as they come to the source.
    pub reply: Tuple,
}

/// Packets of one direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketCount {
    /// Packets that came to the destination.
    pub came: u64,
    /// Packets that left it: to the container, or into the tunnel.
    pub left: u64,
}

/// Packets of a flow since the destination began to count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCount {
    /// Packets of the host that opened the flow.
    pub original: PacketCount,
    /// Packets of the other side.
    pub reply: PacketCount,
}
