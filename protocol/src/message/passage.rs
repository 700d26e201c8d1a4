//! Whether packets of a container's flows pass the destination.

use serde::{Deserialize, Serialize};
use state::id::MigrationId;

use super::counted_flow::PacketCount;
use super::flow::FlowEnds;

/// The capability to count packets of every flow of a container.
pub const PASSAGE: &str = "passage";

/// Asks for packets of flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskPassage {
    /// The migration.
    pub migration: MigrationId,
    /// The flows, with the container's addresses at the destination.
    pub flows: Vec<FlowEnds>,
}

/// Packets of a flow since the destination began to count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowPassage {
    /// Packets for the container.
    pub towards: PacketCount,
    /// Packets of the container.
    pub from: PacketCount,
}
