//! The packets that the source has this host count.

use std::net::IpAddr;

use netmig::flow::{self, Flow};
use netmig::path_trial::may_be_tried;
use netmig::routing;
use state::cause::{Cause, chain};
use steering::tunnels::SteeringLock;
use tokio::task::block_in_place;

use super::Arrival;
use crate::convert;
use crate::destination::addresses::addresses;
use crate::destination::counted_flows::CountedFlows;

/// The source asks a second time.
#[derive(Debug, thiserror::Error)]
#[error("the source has asked before to have packets of flows counted")]
struct AskedTwice;

/// The source names addresses that the container does not have here.
#[derive(Debug, thiserror::Error)]
#[error("the source asks to have packets of addresses counted that the container does not have")]
struct OtherAddresses;

/// What a source has this host count while a container is staged.
#[derive(Debug, Default)]
pub(super) struct Counting {
    /// Whether it has asked.
    asked: bool,
    flows: Option<CountedFlows>,
}

impl Arrival {
    /// Begins to count packets of the container's flows. A move does not fail of it if that cannot be done.
    pub(super) async fn count_packets(&mut self, addresses: &[IpAddr]) -> Result<(), Cause> {
        if std::mem::replace(&mut self.counting.asked, true) {
            return Err(AskedTwice.into());
        }
        let own = self.addresses();
        if addresses.len() > own.len() || addresses.iter().any(|address| !own.contains(address)) {
            return Err(OtherAddresses.into());
        }
        self.begin_counting(addresses).await
    }

    /// Does the same for a source of an earlier version, which names flows that it is about to lead here. Nothing is
    /// counted if one of them is none of the container's with a host elsewhere.
    pub(super) async fn count_flows(&mut self, flows: convert::CountedFlows) -> Result<(), Cause> {
        if std::mem::replace(&mut self.counting.asked, true) {
            return Err(AskedTwice.into());
        }
        let here: Vec<IpAddr> = routing::host_addresses().await?.into_iter().collect();
        let Some(entries) = self.entries_of(flows, &here) else {
            tracing::debug!("{}: flows of others are not counted", self.offer.migration);
            return Ok(());
        };
        let own = self.addresses();
        self.begin_counting(&own).await?;
        let counted = self.counting.flows.take();
        self.counting.flows = counted.map(|counted| counted.naming(&entries, &own));
        Ok(())
    }

    async fn begin_counting(&mut self, addresses: &[IpAddr]) -> Result<(), Cause> {
        let _lock = SteeringLock::take(&self.host.directories.run).await?;
        let (directories, migration) = (&self.host.directories, self.offer.migration);
        match block_in_place(|| CountedFlows::begin(directories, migration, addresses)) {
            Ok(counted) => self.counting.flows = Some(counted),
            Err(e) => tracing::debug!("{migration}: {}", chain(e.as_ref())),
        }
        Ok(())
    }

    /// Returns the entries that these flows have on this host, whose addresses are `here`.
    fn entries_of(&self, flows: convert::CountedFlows, here: &[IpAddr]) -> Option<Vec<Flow>> {
        let (container, own) = (addresses(&self.offer), self.addresses());
        let arrival = flow::Relocation {
            hop: self.anchor,
            aliases: &[],
            readdressed: &self.readdressed,
            udp_timeout: flow::udp_timeout(),
        };
        let entry = |flow: convert::CountedFlow| {
            let flow = flow.entry();
            let there = flow.at_destination(&container, &arrival)?;
            let is_own = may_be_tried(&flow, &container, here) && there.own_end(&own).is_some();
            is_own.then_some(there)
        };
        flows.0.into_iter().map(entry).collect()
    }

    /// Hands on what is counted, until the conversation ends.
    pub fn take_counted(&mut self) -> Option<CountedFlows> {
        self.counting.flows.take()
    }
}
