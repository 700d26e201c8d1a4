//! Addresses that stand in tunnels for those of a host's own container networks.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::{Direction, Flow};
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

impl Readdressed {
    /// A container's address on the host with this identity becomes another one.
    #[must_use]
    pub fn new((old, new): (IpAddr, IpAddr), host: [u8; 16]) -> Self {
        Self { old, tunnel: StandIn::new(old, host).address, new }
    }
}

impl StandIn {
    /// The stand-in of an address on the host with this identity. It is of the range for tests of
    /// networks (198.18.0.0/15, RFC 2544) or a unique local address (fd00::/8, RFC 4193), which no
    /// other host is likely to use for an address of its own.
    #[must_use]
    pub fn new(here: IpAddr, host: [u8; 16]) -> Self {
        let address = match here {
            IpAddr::V4(v4) => {
                let of_host = u32::from_be_bytes([host[0], host[1], host[2], host[3]]);
                // Fibonacci hashing: addresses that differ little are far from each other.
                let mixed = (v4.to_bits() ^ of_host).wrapping_mul(0x9e37_79b1);
                Ipv4Addr::from(u32::from_be_bytes([198, 18, 0, 0]) | mixed >> 15).into()
            }
            IpAddr::V6(v6) => {
                let mut octets = v6.octets();
                octets.iter_mut().zip(host).for_each(|(octet, of_host)| *octet ^= of_host);
                octets[0] = 0xfd;
                IpAddr::from(octets)
            }
        };
        Self { here, address }
    }

    /// Those of the gateways that are the other end of any of the container's flows whose anchor this
    /// host is.
    #[must_use]
    pub fn needed(
        flows: &[Flow],
        container: &[IpAddr],
        gateways: &[IpAddr],
        host: [u8; 16],
    ) -> Vec<Self> {
        let own = flows.iter().filter(|flow| flow.anchor(container).is_none());
        let ends: Vec<IpAddr> = own.filter_map(|flow| flow.other_end(container)).collect();
        let talks = |gateway: &&IpAddr| ends.contains(gateway);
        gateways.iter().filter(talks).map(|gateway| Self::new(*gateway, host)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_and_hosts_have_stand_ins_of_their_own() {
        let gateways = ["10.88.0.1", "10.89.0.1", "10.89.1.1", "fd00::1", "fd00::2"];
        let mut seen = Vec::new();
        for host in [[1; 16], [2; 16]] {
            for gateway in gateways {
                let StandIn { address, .. } = StandIn::new(gateway.parse().unwrap(), host);
                assert!(!seen.contains(&address), "{address} twice");
                seen.push(address);
                match address {
                    IpAddr::V4(v4) => assert!(v4.octets()[0] == 198 && v4.octets()[1] | 1 == 19),
                    IpAddr::V6(v6) => assert_eq!(v6.octets()[0], 0xfd),
                }
            }
        }
    }
}
