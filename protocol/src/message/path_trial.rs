//! What became of packets that tried the ways of flows.

use serde::{Deserialize, Serialize};
use state::peer_text::PeerText;

/// How often a source may begin to try the ways of one container's flows.
pub const MAX_TRIALS: usize = 9;

/// What became of a flow's packets at the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriedPath {
    /// Packets for the container, which came by the way from the source.
    pub towards: Fate,
    /// Packets from the container, which came by its bridge.
    pub from: Fate,
    /// What may have dropped them, where no rule of nftables did.
    pub suspects: Vec<PeerText>,
}

/// What a host saw of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// Nothing.
    Unseen,
    /// It came, and has not left.
    Stuck,
    /// It came, and goes on to the peer.
    Forwarded,
    /// It came, and was about to leave the host where it was to arrive.
    Arrived,
    /// A rule or a chain's policy dropped it.
    Dropped(DropRule),
}

/// A rule, or a chain's policy, that drops packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropRule {
    /// The number of the table's family (`NFPROTO_*`).
    pub family: u8,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The rule's handle; `None` for the chain's policy.
    pub rule: Option<u64>,
}
