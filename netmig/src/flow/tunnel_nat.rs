//! Stateless NAT at the tunnels: which addresses a host translates to aliases and back for one
//! container.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Alias;
use crate::peer_number::PeerNumber;

/// The addresses that a host translates at the ends of its tunnels for one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelNat {
    /// The host's gateways that talk to the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<Alias>,
    /// Other containers of the network that talk to the container by their own addresses: the alias
    /// of such an address, and the container's address to which it talks.
    #[serde(rename = "beside", default, skip_serializing_if = "Vec::is_empty")]
    pub siblings: Vec<(Alias, IpAddr)>,
    /// The container's addresses, if they differ on its new host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub container: Vec<Alias>,
    /// The aliases by which other anchors know the container's addresses. Packets of their flows
    /// are sent on with the alias by which they came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passing: Vec<(PeerNumber, Alias)>,
    /// The aliases by which other anchors know the far ends of their flows with the container, each
    /// with the container's address. Likewise sent on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passing_ends: Vec<(PeerNumber, Alias, IpAddr)>,
}

impl TunnelNat {
    /// Returns whether there is nothing to translate.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.gateways.is_empty()
            && self.siblings.is_empty()
            && self.container.is_empty()
            && self.passing.is_empty()
            && self.passing_ends.is_empty()
    }

    /// Returns the aliases that this host has chosen.
    pub fn own(&self) -> impl Iterator<Item = &Alias> {
        let siblings = self.siblings.iter().map(|(alias, _)| alias);
        self.gateways.iter().chain(siblings).chain(&self.container)
    }

    /// Returns the aliases of the container that other hosts have chosen.
    pub fn others(&self) -> impl Iterator<Item = &Alias> {
        self.passing.iter().map(|(_, alias)| alias)
    }
}

/// A container's address that differs on its new host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Readdressed {
    /// The address on the host that the container leaves.
    pub old: IpAddr,
    /// The alias of the old address in the tunnel from there, so that two containers that had the
    /// same address on their hosts are kept apart.
    pub tunnel: IpAddr,
    /// The address on the new host.
    pub new: IpAddr,
}
