//! Connections with other containers of the same network, by their own addresses: before they can be
//! held and led, their packets have to come to this host (see [`netmig::detour`]).

use std::collections::BTreeSet;
use std::net::IpAddr;

use netmig::detour::{Detour, Siblings};
use netmig::flow::{Alias, Aliases, Conntrack, Direction, Flow, NoAlias};
use netmig::peer_number::{ORIGINAL_MASK, REPLY_MASK};
use netmig::sockets::{Connections, TcpSockets};
use state::cause::Cause;
use state::directories::Directories;
use steering::moved_containers::{self, MovedContainer};

use super::plan::Plan;

/// What is made of such connections on this host.
#[derive(Default)]
pub struct Besides {
    found: Option<Siblings>,
    detours: Vec<Detour>,
    /// Other containers that this host has notes of.
    others: Vec<MovedContainer>,
    /// Their addresses in flows with the one that moves, each with that one's.
    apart: BTreeSet<(IpAddr, IpAddr)>,
}

impl Besides {
    /// Finds the other containers.
    pub fn find(directories: &Directories, plan: &Plan) -> Result<Self, Cause> {
        Ok(Self {
            found: Some(Siblings::find(&plan.port, &plan.namespace, &plan.addresses)?),
            others: moved_containers::others(directories, &plan.container.id)?,
            ..Self::default()
        })
    }

    /// Returns the addresses of other containers here that have connections with the one that moves, given its TCP
    /// sockets and all that conntrack has of it. Changes nothing.
    pub fn talking(
        &mut self,
        tcp: &Connections,
        mut known: Vec<Flow>,
        container: &[IpAddr],
    ) -> Result<BTreeSet<IpAddr>, Cause> {
        let Some(found) = &mut self.found else { return Ok(BTreeSet::new()) };
        known.extend(found.flows(tcp, &known)?);
        let others = found.addresses();
        let ends = known.iter().filter_map(|flow| flow.other_end(container));
        Ok(ends.filter(|end| others.contains(end)).collect())
    }

    /// Settles flows with containers that have left this host, too.
    pub fn settle(&mut self, flows: &mut [Flow], container: &[IpAddr]) {
        self.apart.extend(settle(flows, container, &self.others));
    }

    /// Makes the entries of connections that are open now, so that none of their packets is taken for
    /// the first of a flow; gives the detours that they need.
    pub fn prepare(
        &mut self,
        conntrack: &mut Conntrack,
        sockets: &mut TcpSockets,
        container: &[IpAddr],
    ) -> Result<Vec<Detour>, Cause> {
        if self.addresses().is_empty() {
            return Ok(Vec::new());
        }
        let mut known = conntrack.dump(container)?;
        self.settle(&mut known, container);
        self.complete(conntrack, &sockets.list()?, known).map(|(_, detours)| detours)
    }

    /// Does the same for connections that have been opened since, given all flows that are known; gives
    /// all flows, and the detours that are new.
    pub fn complete(
        &mut self,
        conntrack: &mut Conntrack,
        tcp: &Connections,
        mut known: Vec<Flow>,
    ) -> Result<(Vec<Flow>, Vec<Detour>), Cause> {
        let Some(found) = &mut self.found else { return Ok((known, Vec::new())) };
        let made = found.flows(tcp, &known)?;
        if !made.is_empty() {
            conntrack.create(&made)?;
            known.extend(made);
        }
        let mut detours = found.detours(&known)?;
        detours.retain(|detour| !self.detours.contains(detour));
        self.detours.extend(detours.iter().cloned());
        Ok((known, detours))
    }

    /// Has these containers send to this host what is for the one that moves. They have been noted.
    pub fn lay(&mut self, detours: &[Detour]) -> Result<(), Cause> {
        match &mut self.found {
            Some(found) => Ok(found.install_detours(detours)?),
            None => Ok(()),
        }
    }

    /// Returns what the other containers' addresses are in the tunnel, each with that of the container by which
    /// they talk to it.
    pub fn stand_ins(&self, aliases: &Aliases) -> Result<Vec<(Alias, IpAddr)>, NoAlias> {
        let beside = self.detours.iter().map(|detour| (detour.sibling, detour.towards));
        let all: BTreeSet<_> = beside.chain(self.apart.iter().copied()).collect();
        all.into_iter().map(|(beside, of)| Ok((aliases.of(beside)?, of))).collect()
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.found.as_ref().map(Siblings::addresses).unwrap_or_default()
    }
}

/// Makes flows with containers that have left this host as well look as they are to this one: this host is
/// their anchor, and where it leads the other end is no matter of this end. Gives the addresses of the others
/// that are known to this one, each with its own.
pub fn settle(
    flows: &mut [Flow],
    container: &[IpAddr],
    others: &[MovedContainer],
) -> BTreeSet<(IpAddr, IpAddr)> {
    let mut apart = BTreeSet::new();
    for flow in flows {
        let Some(other) = moved_containers::apart(flow, others) else { continue };
        let Some(direction) = flow.direction(container) else { continue };
        flow.mark &= !match direction {
            Direction::Inbound => REPLY_MASK,
            Direction::Outbound => ORIGINAL_MASK,
        };
        if let (Some(end), Some(own)) = (flow.other_end(container), flow.own_end(container))
            && other.addresses.contains(&end)
        {
            apart.insert((end, own));
        }
    }
    apart
}

#[cfg(test)]
mod tests {
    use netmig::flow::{Protocol, TunnelNat, Tuple, Zone};
    use netmig::peer_number::PeerNumber;

    use super::*;

    #[test]
    fn the_way_to_the_other_end_is_none_to_its_anchor() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (web, db) = (ip("10.88.0.2"), ip("10.88.0.3"));
        let original =
            Tuple { source: db, destination: web, source_port: 40000, destination_port: 80 };
        let led = Flow {
            protocol: Protocol::Tcp,
            original,
            reply: original.inverse(),
            status: 0,
            timeout: 9,
            // The one that was opened leads to peer 5.
            mark: 5 << 16,
            zone: Zone::default(),
            tcp: None,
        };
        let others = [MovedContainer::new("c", "web", &[web], TunnelNat::default())];
        let mut flows = [led.clone()];
        assert_eq!(flows[0].anchor(&[db]), PeerNumber::new(5));
        assert_eq!(settle(&mut flows, &[db], &others), [(web, db)].into());
        assert_eq!(flows[0].anchor(&[db]), None);
        let mut flows = [led.clone()];
        assert_eq!(settle(&mut flows, &[db], &[]), [].into());
        assert_eq!(flows[0], led);
    }
}
