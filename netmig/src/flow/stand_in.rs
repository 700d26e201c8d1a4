//! Addresses that stand for a host's gateways on other hosts.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::Flow;

/// A gateway of a host's own container network, and the address that stands for it in tunnels (see
/// [`crate::table::Table::stand_in`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StandIn {
    /// The gateway's address.
    pub gateway: IpAddr,
    /// What it is in tunnels.
    pub address: IpAddr,
}

impl StandIn {
    /// The stand-in of a gateway on the host with this identity. It is of the range for tests of
    /// networks (198.18.0.0/15, RFC 2544) or a unique local address (fd00::/8, RFC 4193), which no
    /// other host is likely to use for a gateway of its own.
    #[must_use]
    pub fn new(gateway: IpAddr, host: [u8; 16]) -> Self {
        let address = match gateway {
            IpAddr::V4(v4) => {
                let of_host = u32::from_be_bytes([host[0], host[1], host[2], host[3]]);
                // Fibonacci hashing: gateways that differ little are far from each other.
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
        Self { gateway, address }
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

    /// The stand-in of a gateway among those of a host.
    pub(super) fn of(all: &[Self], gateway: IpAddr) -> Option<IpAddr> {
        all.iter().find(|one| one.gateway == gateway).map(|one| one.address)
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
