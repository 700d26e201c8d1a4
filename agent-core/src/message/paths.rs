//! Trying the ways of flows before they are relied on.

use netmig::path::Fate;
use serde::{Deserialize, Serialize};

/// What became of a flow's packets at the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriedPath {
    /// Of those for the container, which have come by the way from the source.
    pub towards: Fate,
    /// Of those from the container, which have come by its bridge.
    pub from: Fate,
    /// What may have dropped them, where no rule of nftables has.
    pub suspects: Vec<String>,
}
