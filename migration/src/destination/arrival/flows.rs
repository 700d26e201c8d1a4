//! The container's flows: whence they come, and how those come home whose anchor this host is.

use std::net::IpAddr;
use std::time::Duration;

use netmig::flow::Conntrack;
use netmig::peer_number::PeerNumber;
use netmig::table::{RuleTag, Table};
use state::cause::Cause;
use state::id::HostId;
use steering::moved_containers;
use steering::tunnels::SteeringLock;
use tokio::task::block_in_place;

use super::{Arrival, NotOffered};
use crate::destination::addresses::addresses;
use crate::destination::claimed_flows;

/// How long packets of flows that have come home may be on their way through the tunnel and back.
pub(super) const LATE: Duration = Duration::from_millis(400);

impl Arrival {
    /// Returns the peer by which an anchor's flows come here.
    pub(super) fn next_hop(&self, anchor: Option<HostId>) -> Result<PeerNumber, Cause> {
        match anchor {
            None => Ok(self.anchor),
            Some(host) => self.anchors.number(host).ok_or_else(|| NotOffered.into()),
        }
    }

    /// Returns whether this host is the anchor of flows: the container comes back.
    pub(super) fn is_return(&self) -> bool {
        self.offer.anchors.contains(&self.host.id)
    }

    fn late_tag(&self) -> Result<RuleTag, Cause> {
        Ok(self.offer.migration.to_string().parse()?)
    }

    /// Returns the addresses for which packets of flows that come home arrive, each before the one that the
    /// container has here.
    fn late_ways(&self) -> Result<Vec<(IpAddr, IpAddr)>, Cause> {
        // What stands for its addresses here was chosen when it left.
        let note = moved_containers::find(&self.host.directories, &self.offer.id)?;
        let exchanged = note.map(|note| note.exchange.container).unwrap_or_default();
        let own = addresses(&self.offer).into_iter();
        let mut ways: Vec<_> = own.zip(self.addresses()).collect();
        for other in &self.readdressed {
            let stand_in = exchanged.iter().find(|stand_in| stand_in.here == other.new);
            ways.extend(stand_in.map(|stand_in| (stand_in.address, other.new)));
            // Of the source's own flows.
            ways.push((other.tunnel, other.new));
        }
        Ok(ways)
    }

    /// Lets packets of flows that come home pass that were on their way to the container's last host.
    pub(super) async fn begin_late(&self) -> Result<(), Cause> {
        if !self.is_return() {
            return Ok(());
        }
        let _lock = SteeringLock::take(&self.host.directories.run).await?;
        Ok(Table::open()?.add_notrack(&self.late_tag()?, self.anchor, &self.late_ways()?)?)
    }

    /// Returns whether packets of flows that become local may still come from the source.
    pub(super) fn has_late(&self) -> bool {
        self.is_return() || !self.local_ends().is_empty()
    }

    /// Ends that again.
    pub(super) async fn end_late(&self) -> Result<(), Cause> {
        if !self.has_late() {
            return Ok(());
        }
        let _lock = SteeringLock::take(&self.host.directories.run).await?;
        Ok(Table::open()?.remove_notrack(&self.late_tag()?)?)
    }

    /// Leads the flows whose anchor this host is to the container here. The source has let its
    /// held packets go: they have come, or are about to.
    pub fn lead_home(&self) -> Result<(), Cause> {
        if self.is_return() {
            let container = self.addresses();
            let led =
                block_in_place(|| Conntrack::open()?.redirect(&container, self.anchor, None))?;
            tracing::info!("{}: {led} flows came home", self.offer.migration);
        }
        Ok(())
    }

    pub(super) fn forget_flows(&mut self) -> Result<(), Cause> {
        if self.created.is_empty() {
            return Ok(());
        }
        // An entry that could not be made since another one was there is not this container's.
        claimed_flows::forget(&self.created, &self.addresses())?;
        self.created.clear();
        Ok(())
    }
}
