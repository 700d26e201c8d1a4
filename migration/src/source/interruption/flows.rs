//! The container's flows, while nothing of them moves.

use std::collections::BTreeMap;
use std::sync::Arc;

use netmig::detour::Detour;
use netmig::flow::{Alias, Conntrack, Direction, Flow};
use protocol::message::FlowBatch;
use protocol::wire::FLOWS_PER_FRAME;
use state::cause::Cause;
use state::id::HostId;
use tokio::task::{JoinHandle, spawn_blocking};

use super::Interruption;
use crate::convert::Wire;
use crate::source::bridged_flows::Besides;
use crate::source::expired_flows::remember;
use crate::state_stream::{StatePart, StateSink};

/// The container's flows as they were when it was cut off.
pub(super) struct Collected {
    pub(super) conntrack: Conntrack,
    pub(super) flows: Vec<Flow>,
    pub(super) stand_ins: Vec<Alias>,
    /// What stands for addresses of the destination.
    pub(super) far_ends: Vec<Alias>,
    pub(super) besides: Besides,
    pub(super) detours: Vec<Detour>,
}

impl Interruption<'_> {
    /// Makes ready for the connections with other containers of its network that are open now; gives the
    /// detours that are to be noted and laid.
    pub(super) fn find_besides(&mut self) -> Result<Vec<Detour>, Cause> {
        let (Some(conntrack), Some(sockets)) = (&mut self.conntrack, &mut self.sockets) else {
            return Ok(Vec::new());
        };
        let container = &self.migration.plan.addresses;
        self.besides.prepare(conntrack, sockets, container)
    }

    pub(super) fn collect_flows(
        &mut self,
        sink: Arc<dyn StateSink>,
    ) -> JoinHandle<Result<Collected, Cause>> {
        let conntrack = self.conntrack.take();
        let sockets = self.sockets.take();
        let mut besides = std::mem::take(&mut self.besides);
        let container = self.migration.plan.container.clone();
        let addresses = self.migration.plan.addresses.clone();
        let destination = self.migration.plan.link.peer;
        let gateways = self.migration.plan.port.bridge().addresses.clone();
        let aliases = Arc::clone(&self.migration.plan.aliases);
        let anchors = self.migration.anchors.hosts();
        let there = self.migration.plan.far_ends.clone();
        let name = container.name.clone();
        let destination_name = self.migration.plan.link.destination.host.clone();
        spawn_blocking(move || {
            let mut conntrack = match conntrack {
                Some(conntrack) => conntrack,
                None => Conntrack::open()?,
            };
            let mut flows = conntrack.dump(&addresses)?;
            // Others are those of an earlier holder of the address, which has moved.
            flows.retain(|flow| flow.leads_to(&addresses).is_none());
            besides.settle(&mut flows, &addresses);
            let mut detours = Vec::new();
            if let Some(mut sockets) = sockets {
                let connections = sockets.list()?;
                flows.extend(remember(&mut conntrack, &connections, &container, &flows)?);
                (flows, detours) = besides.complete(&mut conntrack, &connections, flows)?;
            }
            // Of a connection that both sides have closed there is no socket to which a packet could go. A busy
            // server has thousands of those.
            flows.retain(Flow::is_alive);
            there.check(&flows, &addresses, (&name, &destination_name))?;
            let far_ends = there.of(&flows, &addresses, &aliases)?;
            let stand_ins = Alias::needed(&flows, &addresses, &gateways, &aliases)?;
            let beside = besides.stand_ins(&aliases)?.into_iter().map(|(stand_in, _)| stand_in);
            let all_stand_ins: Vec<_> =
                stand_ins.iter().copied().chain(beside).chain(far_ends.iter().copied()).collect();
            let at_destination: Vec<_> = far_ends.iter().map(|far| far.here).collect();
            // The container is cut off, and what is sent to it waits: no packet misses its entry. A
            // packet that waits already keeps the old one.
            let anew = |flow: &Flow| flow.recreated_at_anchor(&addresses, &stand_ins);
            let lasting: Vec<Flow> = flows.iter().filter_map(anew).collect();
            if !lasting.is_empty() {
                conntrack.delete(&lasting)?;
                conntrack.create(&lasting)?;
            }
            let mut by_anchor: BTreeMap<Option<HostId>, Vec<Flow>> = BTreeMap::new();
            for flow in &flows {
                let anchor = flow.anchor(&addresses);
                // The destination has those whose anchor it is itself.
                if anchor != Some(destination) {
                    let host = anchor.and_then(|number| anchors.get(&number).copied());
                    by_anchor.entry(host).or_default().push(flow.clone());
                }
            }
            for (anchor, flows) in by_anchor {
                for batch in flows.chunks(FLOWS_PER_FRAME) {
                    let at_destination = match anchor {
                        None => at_destination.clone(),
                        Some(_) => Vec::new(),
                    };
                    let batch = FlowBatch {
                        anchor,
                        flows: batch.iter().cloned().map(Flow::into_wire).collect(),
                        aliases: all_stand_ins.clone().into_wire(),
                        at_destination,
                    };
                    sink.put(StatePart::Flows(batch))?;
                }
            }
            Ok(Collected { conntrack, flows, stand_ins, far_ends, besides, detours })
        })
    }

    /// Leads the container's flows to the peer, or back to this host.
    pub(super) fn set_marks(&mut self, away: bool) -> Result<(), Cause> {
        let plan = &self.migration.plan;
        let Some(conntrack) = &mut self.conntrack else { return Ok(()) };
        for direction in [Direction::Inbound, Direction::Outbound] {
            let flows: Vec<Flow> = self
                .flows
                .iter()
                .filter(|flow| flow.direction(&plan.addresses) == Some(direction))
                .cloned()
                .collect();
            let (value, mask) = Flow::mark_at_source(direction, plan.link.peer);
            if !flows.is_empty() {
                conntrack.set_mark(&flows, if away { value } else { 0 }, mask)?;
            }
        }
        Ok(())
    }
}
