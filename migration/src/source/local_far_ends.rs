//! Flows whose far ends are on the destination itself: they become local there.
//!
//! What their far ends send until then has an address of the destination, from which the destination takes
//! nothing that comes by the tunnel; so another address stands for it there. Those of a third host's flows are
//! known to that host alone, and cannot be carried.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netmig::flow::{Alias, Aliases, Conntrack, Flow, NoAlias};
use netmig::peer_number::PeerNumber;
use netmig::routing;
use state::blocker::Blocker;
use state::cause::Cause;

/// More addresses than a host has; a destination may not tell more.
const LIMIT: usize = 4096;

/// The addresses of the destination, as far as they are not also this host's.
#[derive(Clone, Debug, Default)]
pub struct FarEnds {
    destination: BTreeSet<IpAddr>,
    peer: Option<PeerNumber>,
    /// Names of third hosts, for people.
    pub names: BTreeMap<PeerNumber, String>,
}

/// A connection was opened since this host looked.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message)]
pub struct Unreachable(Blocker);

impl FarEnds {
    /// Takes what the destination has told of itself; `peer` is its number here, if it has one.
    pub async fn new(told: &[IpAddr], peer: Option<PeerNumber>) -> Result<Self, Cause> {
        let own = routing::host_addresses().await?;
        let destination = told.iter().take(LIMIT).filter(|address| !own.contains(address));
        Ok(Self { destination: destination.copied().collect(), peer, names: BTreeMap::new() })
    }

    /// Returns the addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.destination.iter().copied().collect()
    }

    /// Names flows that would end: with the destination itself, by way of a third host.
    pub fn blocker(
        &self,
        flows: &[Flow],
        container: &[IpAddr],
        (name, destination): (&str, &str),
    ) -> Option<Blocker> {
        let mut dead = BTreeMap::new();
        for flow in flows.iter().filter(|flow| flow.is_alive()) {
            let anchor = flow.anchor(container).filter(|anchor| Some(*anchor) != self.peer);
            if let (Some(anchor), Some(end)) = (anchor, flow.other_end(container))
                && self.destination.contains(&end)
            {
                *dead.entry((end, anchor)).or_insert(0usize) += 1;
            }
        }
        let each = dead.iter().map(|((end, anchor), count)| {
            let name = self.names.get(anchor).cloned();
            let name = name.unwrap_or_else(|| format!("peer {anchor}"));
            format!("{count} with its address {end} that come by way of {name}")
        });
        let each: Vec<String> = each.collect();
        (!each.is_empty()).then(|| Blocker::new("far-end-at-destination", format!(
                "{name} has connections with {destination} itself, which cannot be kept there: {}; \
                 move it back to that host first, and from there to {destination}, or end them \
                 (agent-client flows end {name} --far-end ADDRESS)",
                each.join(", ")
            )))
    }

    /// Reads the container's flows for that.
    pub fn look(
        &self,
        container: &[IpAddr],
        names: (&str, &str),
    ) -> Result<Option<Blocker>, Cause> {
        Ok(self.blocker(&Conntrack::open()?.dump(container)?, container, names))
    }

    /// Does the same for flows that are about to go.
    pub fn check(
        &self,
        flows: &[Flow],
        container: &[IpAddr],
        names: (&str, &str),
    ) -> Result<(), Unreachable> {
        self.blocker(flows, container, names).map_or(Ok(()), |blocker| Err(Unreachable(blocker)))
    }

    /// Returns the far ends of this host's own flows that are there, with what stands for them in the tunnel.
    pub fn of(
        &self,
        flows: &[Flow],
        container: &[IpAddr],
        aliases: &Aliases,
    ) -> Result<Vec<Alias>, NoAlias> {
        let own = flows.iter().filter(|flow| flow.anchor(container).is_none());
        let ends: BTreeSet<IpAddr> = own.filter_map(|flow| flow.other_end(container)).collect();
        ends.intersection(&self.destination).map(|address| aliases.of(*address)).collect()
    }
}

/// Forgets flows that have become local at the destination: this host led them to `peer`.
pub fn forget(container: &[IpAddr], local: &[IpAddr], peer: PeerNumber) -> Result<(), Cause> {
    if local.is_empty() {
        return Ok(());
    }
    let mut conntrack = Conntrack::open()?;
    let mut past = conntrack.dump(container)?;
    past.retain(|flow| {
        flow.anchor(container).is_none()
            && flow.leads_to(container) == Some(peer)
            && flow.other_end(container).is_some_and(|end| local.contains(&end))
    });
    if !past.is_empty() {
        conntrack.delete(&past)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use netmig::flow::{Protocol, Tuple, Zone};

    use super::*;

    const CONTAINER: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(10, 88, 0, 2))];

    fn flow(from: &str, mark: u32) -> Flow {
        let original = Tuple {
            source: from.parse().unwrap(),
            destination: CONTAINER[0],
            source_port: 40000,
            destination_port: 80,
        };
        Flow {
            protocol: Protocol::Udp,
            original,
            reply: original.inverse(),
            status: 0,
            timeout: 30,
            mark,
            zone: Zone::default(),
            tcp: None,
        }
    }

    #[test]
    fn only_flows_of_third_hosts_are_in_the_way() {
        let far_ends = FarEnds {
            destination: ["192.0.2.2".parse().unwrap()].into(),
            peer: PeerNumber::new(5),
            names: [(PeerNumber::new(7).unwrap(), "a".to_owned())].into(),
        };
        let names = ("web", "b");
        let blocker = |flow: Flow| far_ends.blocker(&[flow], &CONTAINER, names);
        assert_eq!(blocker(flow("192.0.2.2", 0)), None, "this host's own");
        assert_eq!(blocker(flow("192.0.2.2", 5 << 24)), None, "the destination's own");
        assert_eq!(blocker(flow("192.0.2.3", 7 << 24)), None, "a far end elsewhere");
        let found = blocker(flow("192.0.2.2", 7 << 24)).unwrap();
        assert!(found.message.contains("192.0.2.2") && found.message.contains("by way of a;"));
        let aliases = Aliases::new([1; 16]);
        let flows = [flow("192.0.2.2", 0), flow("192.0.2.2", 0), flow("192.0.2.3", 0)];
        let stand_ins = far_ends.of(&flows, &CONTAINER, &aliases).unwrap();
        assert_eq!(stand_ins.len(), 1);
        assert_eq!(stand_ins[0].here, "192.0.2.2".parse::<IpAddr>().unwrap());
    }
}
