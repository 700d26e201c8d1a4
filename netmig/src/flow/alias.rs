//! Aliases: addresses that stand for others in a host's tunnels.
//!
//! A container that talks to its host, or to which its host talks by 127.0.0.1 or on behalf of a
//! sibling container, sees the gateway's address as the other end. On its new host that address is
//! another gateway's. So inside the tunnel such addresses are replaced by an alias
//! ([`crate::table`] does so packet by packet).
//!
//! A host's aliases are the same in all of its tunnels, and those of other hosts may pass through
//! there too. An address takes the first free one of a sequence that begins at its hash. The hash
//! includes the host's identity, so that hosts which know nothing of each other mostly choose
//! differently.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::{Direction, Flow, TunnelNat};
use crate::peer_number::PeerNumber;

/// Length of the sequence that an address tries.
const TRIES: u32 = 4096;
/// The range for network benchmarks (198.18.0.0/15, RFC 2544), which other hosts are unlikely to
/// use.
const V4_RANGE: u32 = u32::from_be_bytes([198, 18, 0, 0]);
const V4_MASK: u32 = u32::MAX << V4_HOST_BITS;
const V4_HOST_BITS: u32 = 17;
/// Unique local addresses (fd00::/8, RFC 4193).
const V6_PREFIX: u8 = 0xfd;

/// An address of a host's own container network, and the alias that stands for it in tunnels
/// ([`crate::table::Table::set_tunnel_nat`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Alias {
    /// The address on this host.
    pub here: IpAddr,
    /// The alias.
    pub address: IpAddr,
}

/// No alias is free for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "all aliases for {here} in this host's tunnels are taken (alias-taken); try again when some of the \
     flows that this host carries for containers elsewhere have ended (agent-client flows)"
)]
pub struct NoAlias {
    /// The address.
    pub here: IpAddr,
}

/// The aliases of this host, and addresses that are taken because other hosts chose them.
#[derive(Debug)]
pub struct Aliases {
    host: [u8; 16],
    /// Each alias with the address for which it stands; `None` if another host chose it.
    taken: Mutex<BTreeMap<IpAddr, Option<IpAddr>>>,
}

impl Aliases {
    /// Returns an empty set for the host of this identity.
    #[must_use]
    pub fn new(host: [u8; 16]) -> Self {
        Self { host, taken: Mutex::default() }
    }

    /// Adds an alias that is in use already.
    pub fn learn(&self, alias: Alias) {
        self.lock().insert(alias.address, Some(alias.here));
    }

    /// Adds the aliases that this host uses for a container, its own and those of other hosts.
    pub fn learn_nat(&self, exchange: &TunnelNat) {
        let ends = exchange.passing_ends.iter().map(|(_, end, _)| end);
        exchange.others().chain(ends).for_each(|other| self.avoid(other.address));
        exchange.own().for_each(|own| self.learn(*own));
    }

    /// Marks an address as taken by another host. An address that no host would choose is ignored.
    pub fn avoid(&self, address: IpAddr) {
        if is_alias(address) {
            self.lock().entry(address).or_insert(None);
        }
    }

    /// Returns the alias of an address, the same one each time.
    ///
    /// # Errors
    /// [`NoAlias`] when the whole sequence is taken.
    pub fn of(&self, here: IpAddr) -> Result<Alias, NoAlias> {
        let mut taken = self.lock();
        let known = taken.iter().find(|(_, stands_for)| **stands_for == Some(here));
        if let Some((address, _)) = known {
            return Ok(Alias { here, address: *address });
        }
        let mut row = (0..TRIES).map(|n| nth(here, self.host, n));
        // An alias must not be the address itself, which packets may carry.
        let free = |address: &IpAddr| !taken.contains_key(address) && *address != here;
        let address = row.find(free).ok_or(NoAlias { here })?;
        taken.insert(address, Some(here));
        Ok(Alias { here, address })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<IpAddr, Option<IpAddr>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether a host may have chosen this address as an alias.
#[must_use]
pub fn is_alias(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.to_bits() & V4_MASK == V4_RANGE,
        IpAddr::V6(v6) => v6.octets()[0] == V6_PREFIX,
    }
}

/// Returns the `n`th address of the sequence for an address.
fn nth(here: IpAddr, host: [u8; 16], n: u32) -> IpAddr {
    match here {
        IpAddr::V4(v4) => {
            let of_host = u32::from_be_bytes([host[0], host[1], host[2], host[3]]);
            // Fibonacci hashing: addresses that differ little are far from each other.
            let mixed = (v4.to_bits() ^ of_host).wrapping_mul(0x9e37_79b1);
            let index = (mixed >> (32 - V4_HOST_BITS)).wrapping_add(n) & !V4_MASK;
            Ipv4Addr::from(V4_RANGE | index).into()
        }
        IpAddr::V6(v6) => {
            let mixed = v6.to_bits() ^ u128::from_be_bytes(host);
            let mut octets = Ipv6Addr::from_bits(mixed.wrapping_add(n.into())).octets();
            octets[0] = V6_PREFIX;
            octets.into()
        }
    }
}

impl Alias {
    /// Returns the aliases of those gateways that are the other end of any of the container's flows
    /// for which this host is the anchor.
    ///
    /// # Errors
    /// [`NoAlias`] when one of them has none.
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

    /// Returns by which addresses the anchors of flows know the container, where they differ from
    /// its own here.
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

    /// Returns the aliases by which the anchors of flows know the far ends, where the container
    /// knows them by another address; each with the container's address.
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

    /// Returns the alias of an address.
    pub(super) fn of(all: &[Self], gateway: IpAddr) -> Option<IpAddr> {
        all.iter().find(|one| one.here == gateway).map(|one| one.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const HOST: [u8; 16] = [7; 16];

    /// Returns the first two addresses, from one on, whose sequences begin at the same alias.
    fn colliding(first: u32) -> [IpAddr; 2] {
        let mut seen = HashMap::new();
        for bits in first.. {
            let here = IpAddr::from(Ipv4Addr::from(bits));
            if let Some(other) = seen.insert(nth(here, HOST, 0), here) {
                return [other, here];
            }
        }
        unreachable!()
    }

    #[test]
    fn addresses_that_collide_get_different_aliases_and_keep_them() {
        let v6 = ["fc00::1", "fd00::1"].map(|text| text.parse().unwrap());
        assert_eq!(nth(v6[0], HOST, 0), nth(v6[1], HOST, 0));
        for pair in [colliding(0x0a00_0000), v6] {
            let aliases = Aliases::new(HOST);
            let chosen = pair.map(|here| aliases.of(here).unwrap());
            assert_ne!(chosen[0].address, chosen[1].address, "{pair:?}");
            assert_eq!(pair.map(|here| aliases.of(here).unwrap()), chosen);
            assert!(chosen.iter().all(|alias| is_alias(alias.address)));
            // Another process that learns of the second alone.
            let later = Aliases::new(HOST);
            later.learn(chosen[1]);
            assert_eq!(pair.map(|here| later.of(here).unwrap())[1], chosen[1]);
            assert_ne!(later.of(pair[0]).unwrap().address, chosen[1].address);
        }
    }

    #[test]
    fn what_other_hosts_chose_is_avoided() {
        let here = "10.88.0.1".parse().unwrap();
        let first = Aliases::new(HOST).of(here).unwrap();
        let aliases = Aliases::new(HOST);
        let peer = crate::peer_number::PeerNumber::new(3).unwrap();
        let passing = vec![(peer, Alias { here, address: first.address })];
        aliases.learn_nat(&TunnelNat { passing, ..TunnelNat::default() });
        assert_ne!(
            aliases.of(here).unwrap(),
            first,
            "it is the name of the same address elsewhere"
        );
        aliases.avoid("192.0.2.1".parse().unwrap());
        assert_eq!(aliases.lock().len(), 2);
    }

    #[test]
    fn a_full_range_is_told() {
        let aliases = Aliases::new(HOST);
        (0..1 << V4_HOST_BITS)
            .for_each(|index| aliases.avoid(Ipv4Addr::from(V4_RANGE | index).into()));
        let here = "10.88.0.1".parse().unwrap();
        let refused = aliases.of(here).unwrap_err();
        assert!(refused.to_string().contains("alias-taken"));
        assert!(aliases.of("fd00::1".parse().unwrap()).is_ok());
    }

    #[test]
    fn gateways_and_hosts_have_aliases_of_their_own() {
        let gateways =
            ["10.88.0.1", "10.89.0.1", "10.89.1.1", "fd00::1", "fd00::2", "0.0.0.0", "::"];
        let mut seen = Vec::new();
        for host in [[1; 16], [2; 16]] {
            let aliases = Aliases::new(host);
            for gateway in gateways {
                let Alias { address, .. } = aliases.of(gateway.parse().unwrap()).unwrap();
                assert!(!seen.contains(&address), "{address} twice");
                seen.push(address);
            }
        }
        for address in ["198.17.255.255", "198.20.0.0", "fc00::1", "fe80::1"] {
            assert!(!is_alias(address.parse().unwrap()), "{address}");
        }
    }
}
