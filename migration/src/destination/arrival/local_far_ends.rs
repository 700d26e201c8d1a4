//! Flows of the source whose far ends are on this host. They arrive as all others do, by the tunnel: the
//! source has an address that stands for such a far end's own, which could not come from elsewhere. Before
//! the copy can be heard each gets one entry in place of two, and is local from then on.
//!
//! What goes wrong with that is no fault of the migration: the flows go by the source, as they arrived.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::path::Path;

use netmig::flow::{self, Alias, Conntrack, Flow, MergedEntry};
use netmig::peer_number::PeerNumber;
use netmig::routing;
use netmig::table::{LocalFarEnd, RuleTag, Table};
use state::cause::{Cause, chain};
use steering::tunnels::SteeringLock;
use tokio::task::{block_in_place, spawn_blocking};

use super::Arrival;
use crate::convert::FlowBatch;
use crate::destination::addresses::addresses;

/// What of a migration's flows becomes local, and how far it is.
#[derive(Debug, Default)]
pub struct FarEnds {
    /// The source's entries, each with that by which its flow arrives.
    arrived: Vec<(Flow, Flow)>,
    /// What stands for their addresses.
    stand_ins: Vec<Alias>,
    /// What becomes of them.
    joined: Vec<MergedEntry>,
    /// The far ends' addresses.
    local: Vec<IpAddr>,
}

/// An address of the container.
#[derive(Clone, Copy, Debug)]
struct Own {
    /// At the source.
    old: IpAddr,
    /// In the tunnel from there.
    tunnel: IpAddr,
    /// Here.
    new: IpAddr,
}

impl Arrival {
    /// Finds what becomes of the flows, and lets pass what still comes by the source.
    pub(super) async fn prepare_far_ends(&mut self) -> Result<(), Cause> {
        let far_ends = std::mem::take(&mut self.far_ends);
        if far_ends.arrived.is_empty() {
            return Ok(());
        }
        let tunnel = |old: &IpAddr| {
            let other = self.readdressed.iter().find(|other| other.old == *old);
            other.map_or(*old, |other| other.tunnel)
        };
        let own = addresses(&self.offer).into_iter().zip(self.addresses());
        let own = own.map(|(old, new)| Own { old, tunnel: tunnel(&old), new }).collect();
        let tag: RuleTag = self.offer.migration.to_string().parse()?;
        let run = &self.host.directories.run;
        let source = (self.anchor, self.source_address);
        self.far_ends = far_ends.prepare(run, &tag, source, own).await?;
        Ok(())
    }

    /// Makes the flows local. The container can be reached, and does not run.
    pub fn join_far_ends(&mut self) {
        let far_ends = &mut self.far_ends;
        if far_ends.joined.is_empty() {
            return;
        }
        let joined = block_in_place(|| Conntrack::open()?.replace_by_merged(&far_ends.joined));
        let replaced: HashSet<&Flow> =
            far_ends.joined.iter().flat_map(|one| &one.replaced).collect();
        match joined {
            Ok(()) => {
                self.created.retain(|flow| !replaced.contains(flow));
                self.created.extend(far_ends.joined.iter().map(|one| one.entry.clone()));
                let migration = self.offer.migration;
                tracing::info!("{migration}: {} flows are local now", far_ends.joined.len());
            }
            Err(e) => {
                tracing::warn!("{}: {}", self.offer.migration, chain(&e));
                far_ends.local.clear();
                let arrived: Vec<Flow> =
                    self.created.iter().filter(|flow| replaced.contains(flow)).cloned().collect();
                let again = block_in_place(|| Conntrack::open()?.create(&arrived));
                if let Err(e) = again {
                    tracing::warn!("{}: {}", self.offer.migration, chain(&e));
                }
            }
        }
        far_ends.joined.clear();
    }

    /// Addresses of far ends whose flows do not need the source any more.
    pub fn local_ends(&self) -> &[IpAddr] {
        &self.far_ends.local
    }
}

impl FarEnds {
    /// Takes note of those flows of a batch whose far ends are here.
    pub fn add(&mut self, batch: &FlowBatch, container: &[IpAddr], arrival: &flow::Relocation<'_>) {
        // Those of other anchors come by them.
        if batch.at_destination.is_empty() || batch.anchor.is_some() {
            return;
        }
        let is_here = |end: &IpAddr| batch.at_destination.contains(end);
        let here = |flow: &&Flow| flow.other_end(container).as_ref().is_some_and(is_here);
        for flow in batch.flows.iter().filter(here) {
            let arrives = flow.at_destination(container, arrival);
            self.arrived.extend(arrives.map(|entry| (flow.clone(), entry)));
        }
        let new = batch.aliases.iter().filter(|far| is_here(&far.here));
        let new: Vec<Alias> = new.filter(|far| !self.stand_ins.contains(far)).copied().collect();
        self.stand_ins.extend(new);
    }

    async fn prepare(
        mut self,
        run: &Path,
        tag: &RuleTag,
        (source, address): (PeerNumber, Option<IpAddr>),
        own: Vec<Own>,
    ) -> Result<Self, Cause> {
        let pairs: Vec<_> = own.iter().map(|own| (own.old, own.new)).collect();
        let olds: Vec<_> = own.iter().map(|own| own.old).collect();
        let arrived = std::mem::take(&mut self.arrived);
        // A source may name flows as its own only if they come from it.
        let claimed = arrived.iter().filter_map(|(flow, _)| flow.towards_far_end(&olds));
        let claimed = claimed.map(|tuple| tuple.source).collect();
        let source_addresses = match address {
            Some(address) => routing::addresses_of(address, &claimed).await?,
            None => BTreeSet::new(),
        };
        let found = spawn_blocking(move || {
            let joined = Conntrack::open()?.merged_entries(&arrived, &pairs, &source_addresses)?;
            Ok::<_, Cause>(arrived.into_iter().zip(joined).collect::<Vec<_>>())
        });
        let found = found.await??;
        let end = |flow: &Flow| flow.other_end(&olds);
        // The source keeps all flows of an address, or none.
        let remote: BTreeSet<_> = found
            .iter()
            .filter(|(_, joined)| joined.is_none())
            .filter_map(|((flow, _), _)| end(flow))
            .collect();
        let mut local = BTreeSet::new();
        for ((flow, _), joined) in found {
            if let (Some(address), Some(joined)) = (end(&flow), joined)
                && !remote.contains(&address)
            {
                local.insert(address);
                self.joined.push(joined);
            }
        }
        self.local = local.into_iter().collect();
        let ends = self.stand_ins.iter().filter(|far| self.local.contains(&far.here));
        let late = ends.flat_map(|far| {
            let same = own.iter().filter(|own| own.new.is_ipv4() == far.here.is_ipv4());
            same.map(|own| LocalFarEnd { far: *far, container: (own.tunnel, own.new) })
        });
        let late: Vec<LocalFarEnd> = late.collect();
        if !late.is_empty() {
            let _lock = SteeringLock::take(run).await?;
            block_in_place(|| Table::open()?.add_notrack_from(tag, source, &late))?;
        }
        Ok(self)
    }
}
