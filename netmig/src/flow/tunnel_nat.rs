//! Addresses that stand in tunnels for those of a host's own container networks.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Alias;
use crate::peer_number::PeerNumber;

/// What a host exchanges at the ends of its tunnels for one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelNat {
    /// Its gateways that talk to the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<Alias>,
    /// Other containers of its network that talk to the container by their own addresses: such an address,
    /// with that of the container's by which it talks to it.
    #[serde(rename = "beside", default, skip_serializing_if = "Vec::is_empty")]
    pub siblings: Vec<(Alias, IpAddr)>,
    /// Addresses of the container, which has others on its new host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub container: Vec<Alias>,
    /// What other anchors call the container's addresses: their flows' packets are sent on as they came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passing: Vec<(PeerNumber, Alias)>,
    /// What other anchors call the far ends of their flows with the container: likewise. Such an end, with
    /// the container's address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passing_ends: Vec<(PeerNumber, Alias, IpAddr)>,
}

impl TunnelNat {
    /// Whether there is nothing to be exchanged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.gateways.is_empty()
            && self.siblings.is_empty()
            && self.container.is_empty()
            && self.passing.is_empty()
            && self.passing_ends.is_empty()
    }

    /// Returns the stand-ins that this host has chosen.
    pub fn own(&self) -> impl Iterator<Item = &Alias> {
        let siblings = self.siblings.iter().map(|(alias, _)| alias);
        self.gateways.iter().chain(siblings).chain(&self.container)
    }

    /// Returns those of other hosts, by which flows are sent on whatever their far end is.
    pub fn others(&self) -> impl Iterator<Item = &Alias> {
        self.passing.iter().map(|(_, alias)| alias)
    }
}

/// Addresses of a container that has others on its new host: the old one, that by which its flows'
/// packets come there, and the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Readdressed {
    /// On the host that it leaves.
    pub old: IpAddr,
    /// In the tunnel from there: the old one's [`Alias`], so that two containers that had the same
    /// address on their hosts are told apart.
    pub tunnel: IpAddr,
    /// On its new host.
    pub new: IpAddr,
}
