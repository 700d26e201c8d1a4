//! Addresses that stand in tunnels for those of a host's own container networks.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Aliases, Direction, Flow, NoAlias};
use crate::peer::PeerNumber;

/// An address of a host's own container network that means something else on other hosts, and the one
/// that stands for it in tunnels (see [`crate::table::Table::exchange`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StandIn {
    /// The address on this host.
    pub here: IpAddr,
    /// What it is in tunnels.
    pub address: IpAddr,
}

/// What a host exchanges at the ends of its tunnels for one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// Its gateways that talk to the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<StandIn>,
    /// Other containers of its network that talk to the container by their own addresses: such an address,
    /// with that of the container's by which it talks to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<(StandIn, IpAddr)>,
    /// Addresses of the container, which has others on its new host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub container: Vec<StandIn>,
    /// What other anchors call the container's addresses: their flows' packets are sent on as they came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passing: Vec<(PeerNumber, StandIn)>,
    /// What other anchors call the far ends of their flows with the container: likewise. Such an end, with
    /// the container's address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passing_ends: Vec<(PeerNumber, StandIn, IpAddr)>,
}

impl Exchange {
    /// Whether there is nothing to be exchanged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.gateways.is_empty()
            && self.beside.is_empty()
            && self.container.is_empty()
            && self.passing.is_empty()
            && self.passing_ends.is_empty()
    }

    /// Returns the stand-ins that this host has chosen.
    pub fn own(&self) -> impl Iterator<Item = &StandIn> {
        let beside = self.beside.iter().map(|(stand_in, _)| stand_in);
        self.gateways.iter().chain(beside).chain(&self.container)
    }

    /// Returns those of other hosts, by which flows are sent on whatever their far end is.
    pub fn others(&self) -> impl Iterator<Item = &StandIn> {
        self.passing.iter().map(|(_, stand_in)| stand_in)
    }
}

/// Addresses of a container that has others on its new host: the old one, that by which its flows'
/// packets come there, and the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Readdressed {
    /// On the host that it leaves.
    pub old: IpAddr,
    /// In the tunnel from there: the old one's [`StandIn`], so that two containers that had the same
    /// address on their hosts are told apart.
    pub tunnel: IpAddr,
    /// On its new host.
    pub new: IpAddr,
}

impl StandIn {
    /// Those of the gateways that are the other end of any of the container's flows whose anchor this
    /// host is, with what stands for them.
    ///
    /// # Errors
    /// [`NoAlias`].
    pub fn needed(
        flows: &[Flow],
        container: &[IpAddr],
        gateways: &[IpAddr],
        aliases: &Aliases,
    ) -> Result<Vec<Self>, NoAlias> {
        let own = flows.iter().filter(|flow| flow.anchor(container).is_none());
        let ends: Vec<IpAddr> = own.filter_map(|flow| flow.other_end(container)).collect();
        let talks = |gateway: &&IpAddr| ends.contains(gateway);
        gateways.iter().filter(talks).map(|gateway| aliases.of(*gateway)).collect()
    }

    /// What the anchors of flows call the container's addresses, where they differ from its own here.
    #[must_use]
    pub fn of_anchors(flows: &[Flow], container: &[IpAddr]) -> Vec<(PeerNumber, Self)> {
        let called = |flow: &Flow| {
            let (here, address) = match flow.direction(container)? {
                Direction::Inbound => (flow.reply.source, flow.original.destination),
                Direction::Outbound => (flow.original.source, flow.reply.destination),
            };
            let anchor = flow.anchor(container)?;
            (here != address).then_some((anchor, Self { here, address }))
        };
        let mut all: Vec<_> = flows.iter().filter_map(called).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// What the anchors of flows call the far ends, where the container knows them by another address: those
    /// that have a stand-in. With the container's address.
    #[must_use]
    pub fn of_far_ends(flows: &[Flow], container: &[IpAddr]) -> Vec<(PeerNumber, Self, IpAddr)> {
        let called = |flow: &Flow| {
            let (here, address, of) = match flow.direction(container)? {
                Direction::Inbound => {
                    (flow.reply.destination, flow.original.source, flow.reply.source)
                }
                Direction::Outbound => {
                    (flow.original.destination, flow.reply.source, flow.original.source)
                }
            };
            let anchor = flow.anchor(container)?;
            (here != address).then_some((anchor, Self { here, address }, of))
        };
        let mut all: Vec<_> = flows.iter().filter_map(called).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The stand-in of a gateway among those of a host.
    pub(super) fn of(all: &[Self], gateway: IpAddr) -> Option<IpAddr> {
        all.iter().find(|one| one.here == gateway).map(|one| one.address)
    }
}
