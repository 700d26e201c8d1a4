//! The container's addresses, the other containers of its network, and what of the host's own network is
//! kept or made for it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netmig::container_network::SiblingAddresses;
use netmig::detour::Detour;
use netmig::flow::{Conntrack, Readdressed, TunnelNat};
use state::cause::Cause;
use state::journal::Record;
use steering::moved_containers::{self, MovedContainer};
use steering::port_forward::{self, Forwarder, Note, Role};
use steering::tunnels::{self, Claim, SteeringLock};
use tokio::task::block_in_place;

use super::flows::LATE;
use super::{Arrival, Network};
use crate::destination::addresses::{addresses, pairs};
use crate::destination::admission::Addresses;
use crate::offer::Offer;

/// The source has not said what stands for an address that becomes another one.
#[derive(Debug, thiserror::Error)]
#[error("the offer does not say what stands in the tunnel for {0}")]
struct NoAliasOffered(IpAddr);

impl Arrival {
    /// Makes ready for new connections that other hosts will lead here, if they will.
    pub(super) async fn take_new_connections(&self) -> Result<(), Cause> {
        let there = |host| host == self.source || self.anchors.number(host).is_some();
        for forwarder in self.offer.forwarders.iter().filter(|one| there(one.host)) {
            let note = Note {
                id: self.offer.id.clone(),
                name: self.offer.name.clone(),
                addresses: self.addresses(),
                readdressed: self.ways_of(forwarder),
                host: forwarder.host,
                migration: self.offer.migration,
                role: Role::Here,
            };
            let lock = SteeringLock::take(&self.host.directories.run).await?;
            note.write(&self.host.directories, &lock)?;
            note.apply(&self.host.directories.state)?;
        }
        Ok(())
    }

    /// Addresses by which a host's new connections come for those that the container has here, where
    /// they differ.
    fn ways_of(&self, forwarder: &Forwarder) -> Vec<(IpAddr, IpAddr)> {
        let way = |old: IpAddr| {
            let other = self.readdressed.iter().find(|other| other.old == old);
            let known = forwarder.readdressed.iter().find(|(_, own)| *own == old);
            let by = match (known, other) {
                (Some((by, _)), _) => *by,
                (None, Some(other)) if forwarder.host == self.source => other.tunnel,
                _ => old,
            };
            (by, other.map_or(old, |other| other.new))
        };
        let ways = addresses(&self.offer).into_iter().map(way);
        ways.filter(|(by, own)| by != own).collect()
    }

    /// Ends what this host forwarded for the container, which is here again.
    pub async fn end_forwarding(&self) -> Result<(), Cause> {
        let id = &self.offer.id;
        let away = |note: &Note| note.id == *id && note.away().is_some();
        port_forward::remove(&self.host.directories, away).await.map(drop)
    }

    /// Notes whose the flows are that lead from here to other hosts.
    pub async fn note_container(&self) -> Result<(), Cause> {
        self.carried().note(&self.host.directories).await
    }

    /// Containers of its network here with which it has had flows since it left this host.
    pub(super) fn left_here(&self) -> Result<Vec<(IpAddr, [u8; 6])>, Cause> {
        let note = moved_containers::find(&self.host.directories, &self.offer.id)?;
        let own = self.addresses();
        let detours = note.into_iter().flat_map(|note| note.detours);
        Ok(detours.filter(|d| own.contains(&d.towards)).map(|d| (d.sibling, d.mac)).collect())
    }

    /// Returns the other containers of its network that the copy needs to be told of. Those that it has left
    /// where it comes from are noted here.
    pub async fn others(&self, network: &Network) -> Result<SiblingAddresses, Cause> {
        let interface = network.sandbox.interface_at(&network.port)?;
        let own = self.addresses();
        let gateways = &network.port.bridge().addresses;
        let is_left = |end: &IpAddr| interface.is_on_link(*end) && !gateways.contains(end);
        let ends = self.created.iter().filter_map(|flow| flow.other_end(&own));
        let mut left: BTreeSet<IpAddr> = ends.filter(is_left).collect();
        if self.is_return() {
            // Some have left this host, too, and are led to from here.
            let flows = block_in_place(|| Conntrack::open()?.dump(&own))?;
            let apart = flows.iter().filter(|flow| flow.anchor(&own).is_some());
            left.extend(apart.filter_map(|flow| flow.other_end(&own)).filter(is_left));
        }
        if let Some(mac) = interface.mac
            && !left.is_empty()
        {
            let detour = |address: &IpAddr| Detour {
                namespace: network.namespace.clone(),
                interface: interface.index,
                mac,
                towards: *address,
                sibling: *address,
            };
            let detours = left.iter().map(detour).collect();
            MovedContainer { detours, ..self.carried() }.note(&self.host.directories).await?;
        }
        let here = network.here.iter().filter(|(address, _)| !left.contains(address));
        let here = here.copied().collect();
        Ok(SiblingAddresses { left: left.into_iter().collect(), here })
    }

    /// Lets other containers of its network here reach the container by themselves again.
    pub async fn rejoin(&self) -> Result<(), Cause> {
        let others = moved_containers::rejoin(&self.host.directories, &self.offer.id).await?;
        moved_containers::forget_between(&self.addresses(), &others)
    }

    fn carried(&self) -> MovedContainer {
        let Offer { id, name, .. } = &self.offer;
        MovedContainer::new(id, name, &self.addresses(), TunnelNat::default())
    }

    /// Ends what only the move itself needed of the network, once the journal has ended.
    pub async fn settle_network(&self, network: &Network) -> Result<(), Cause> {
        if self.has_late() {
            tokio::time::sleep(LATE).await;
        }
        let mut outcome = self.end_late().await;
        outcome = outcome.and(self.claim_source_tunnel().await);
        let others: Vec<IpAddr> = network.here.iter().map(|(address, _)| *address).collect();
        outcome = outcome.and(moved_containers::forget_between(&self.addresses(), &others));
        // What stood for this host's gateways is not needed by a container that is here.
        outcome = outcome.and(self.carried().note_and_apply(&self.host.directories).await);
        for peer in self.anchors.numbers().chain([self.anchor]) {
            let migration = Some(self.offer.migration);
            let released = tunnels::release(&self.host.directories, peer, migration).await;
            outcome = outcome.and(released);
        }
        outcome
    }

    /// Keeps the tunnel to the source, by which the packets of third hosts' flows come until these hosts
    /// lead them here.
    async fn claim_source_tunnel(&self) -> Result<(), Cause> {
        let with: Vec<_> = self.anchors.numbers().collect();
        if with.is_empty() {
            return Ok(());
        }
        let claim = Claim { with, to: self.anchor, container: self.addresses() };
        let lock = SteeringLock::take(&self.host.directories.run).await?;
        claim.write(&self.host.directories, self.offer.migration, &lock)
    }

    /// Returns the container's addresses here.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let here = |old: IpAddr| {
            let other = self.readdressed.iter().find(|other| other.old == old);
            other.map_or(old, |other| other.new)
        };
        addresses(&self.offer).into_iter().map(here).collect()
    }

    /// Notes which addresses the staged container has got in place of its own, given all that it has;
    /// gives those that it must have.
    pub(super) fn settle_addresses(&mut self, there: &[IpAddr]) -> Result<Vec<IpAddr>, Cause> {
        let own = addresses(&self.offer);
        let others: Vec<(IpAddr, IpAddr)> = match &self.chosen {
            Addresses::Own => Vec::new(),
            Addresses::Former(others) => others.clone(),
            Addresses::Fresh => pairs(&own, there).filter(|(old, new)| old != new).collect(),
        };
        let aliases = &self.offer.aliases;
        let become_new = |(old, new)| {
            let alias =
                aliases.iter().find(|alias| alias.here == old).ok_or(NoAliasOffered(old))?;
            Ok::<_, NoAliasOffered>(Readdressed { old, tunnel: alias.address, new })
        };
        self.readdressed = others.into_iter().map(become_new).collect::<Result<_, _>>()?;
        let wanted = self.addresses();
        if !self.readdressed.is_empty()
            && let Some(journal) = &mut self.journal
        {
            let addresses = wanted.clone();
            block_in_place(|| journal.append(&Record::Readdressed { addresses }))?;
        }
        Ok(wanted)
    }
}
