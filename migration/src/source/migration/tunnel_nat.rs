//! Addresses that packets get at the tunnel, and what is noted of them for after a crash.

use std::net::IpAddr;

use netmig::detour::Detour;
use netmig::flow::{Alias, Flow, Readdressed, TunnelNat};
use netmig::tunnel;
use state::cause::Cause;
use steering::moved_containers::MovedContainer;

use super::Migration;

impl Migration<'_> {
    /// Exchanges addresses at the tunnel: these gateways of the host, those of containers beside the one
    /// that moves, and those of the container's that are others at the destination or for the anchors of
    /// these flows.
    pub async fn exchange(
        &mut self,
        gateways: Vec<Alias>,
        beside: Vec<(Alias, IpAddr)>,
        flows: &[Flow],
    ) -> Result<(), Cause> {
        let stand_in = |other: &Readdressed| Alias { here: other.old, address: other.tunnel };
        let container = self.plan.readdressed.iter().map(stand_in).collect();
        let passing = Alias::of_anchors(flows, &self.plan.addresses);
        // At the destination the far ends of its own flows are what they are to the container.
        let mut passing_ends = Alias::of_far_ends(flows, &self.plan.addresses);
        passing_ends.retain(|(anchor, ..)| *anchor != self.plan.link.peer);
        let exchange = TunnelNat { gateways, siblings: beside, container, passing, passing_ends };
        if exchange.is_empty() {
            return Ok(());
        }
        self.exchange = exchange.clone();
        if !exchange.gateways.is_empty() {
            tunnel::carry_loopback(self.plan.link.peer)?;
        }
        self.moved_container(exchange).note_and_apply(&self.context.directories).await
    }

    /// Ends that again.
    pub async fn end_exchange(&mut self) -> Result<(), Cause> {
        if std::mem::take(&mut self.exchange).is_empty() {
            return Ok(());
        }
        self.moved_container(TunnelNat::default()).note_and_apply(&self.context.directories).await
    }

    /// Notes by which detours other containers will be led to this host.
    pub async fn note_detours(&self, detours: &[Detour]) -> Result<(), Cause> {
        if detours.is_empty() {
            return Ok(());
        }
        let carried = self.moved_container(self.exchange.clone());
        let noted = MovedContainer { detours: detours.to_vec(), ..carried };
        noted.note(&self.context.directories).await
    }

    pub(super) fn moved_container(&self, exchange: TunnelNat) -> MovedContainer {
        let container = &self.plan.container;
        MovedContainer::new(&container.id, &container.name, &self.plan.addresses, exchange)
    }
}
