//! The completion: the copy is the container. Held packets are released, and the original is removed.

mod original_removal;
mod outstanding_memory;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use netmig::flow::{Direction, Flow};
use netmig::peer_number::PeerNumber;
use protocol::message::Rehome;
use state::cause::{Cause, chain};
use state::deadline;
use steering::moved_containers;
use steering::port_forward;
use tokio::task::block_in_place;

use super::anchors;
use super::dead_connections;
use super::destination_rpc;
use super::failure::Failure;
use super::interruption::{Interruption, Progress};
use super::local_far_ends;
use super::migration::Migration;
use super::retry::{Goal, insist, tell_settled};
use super::volumes;
use crate::event::{Steps, milliseconds, span};
use crate::report::{ContainerName, FlowCount, NewAddress, Outcome, Parts, Report};

/// How long after flows were led past this host their last packets may still come through it.
const LAST_PACKETS: Duration = Duration::from_secs(1);
/// Most connections that a sentence names.
const NAMED: usize = 5;

/// An original that will never run again.
pub struct Completion<'a> {
    migration: Migration<'a>,
    progress: Progress,
    flows: Vec<Flow>,
    parts: Parts,
    interruption_ms: f64,
    held_packets: u64,
    /// When packets could come to the container.
    audible: Instant,
    lost: Vec<String>,
    unverified: Vec<String>,
    warnings: Vec<String>,
    leftovers: Vec<String>,
    /// Far ends at the destination whose flows are local there.
    local: Vec<IpAddr>,
}

/// Returns what CRIU does not carry of the container's sockets: a sentence for each kind that there was.
fn lost_with_the_original(
    progress: &Progress,
    flows: &[Flow],
    container: &[IpAddr],
) -> Vec<String> {
    let mut lost = Vec::new();
    if progress.undrained > 0 {
        lost.push(format!(
            "the container had not read {} bytes of datagrams when it was frozen",
            progress.undrained
        ));
    }
    let unread = progress.unread.iter();
    lost.extend(unread.map(|what| format!("the container had not read {what} when it was frozen")));
    if progress.half_open > 0 {
        lost.push(format!(
            "{} TCP connections were still being set up {} s after new ones had begun to wait{}; a far end that \
             completes one is reset",
            progress.half_open,
            deadline::BACKLOG.as_secs(),
            half_open(flows, container)
        ));
    }
    lost
}

/// Names the connections to a container whose handshake is not complete, as far as conntrack has them.
fn half_open(flows: &[Flow], container: &[IpAddr]) -> String {
    /// `TCP_CONNTRACK_SYN_RECV`: the container has answered, and the far end has not.
    const SYN_RECV: u8 = 2;
    let is_half_open = |flow: &&Flow| {
        flow.tcp.is_some_and(|tcp| tcp.state == SYN_RECV)
            && flow.direction(container) == Some(Direction::Inbound)
    };
    let ends: Vec<String> =
        flows.iter().filter(is_half_open).map(|flow| flow.original.to_string()).collect();
    let named = ends.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match ends.len() {
        0 => String::new(),
        all if all > NAMED => format!(", among them {named}"),
        _ => format!(": {named}"),
    }
}

impl<'a> Completion<'a> {
    /// Lets the held packets go. `since` is when the commit began.
    pub async fn begin(mut interruption: Interruption<'a>, since: Instant) -> Self {
        let acknowledged = Instant::now();
        let mut leftovers = Vec::new();
        // Before new connections that were held go on.
        if interruption.migration.plan.away.is_some() {
            let Migration { context, .. } = &interruption.migration;
            let id = interruption.migration.id();
            let begun = port_forward::begin(&context.directories, id).await;
            leftovers.extend(begun.err().map(|e| chain(e.as_ref())));
        }
        let held_packets = interruption.release_hold().await.unwrap_or_else(|e| {
            leftovers.push(chain(e.as_ref()));
            0
        });
        interruption.end_turn();
        let (mut migration, flows, progress) = interruption.finish();
        if let Err(e) = block_in_place(|| migration.in_use.note_release()) {
            tracing::debug!("{}", chain(e.as_ref()));
        }
        let mut parts = progress.parts.clone();
        parts.commit = span(since, acknowledged);
        Self {
            parts,
            interruption_ms: span(progress.began, acknowledged),
            held_packets,
            audible: Instant::now(),
            unverified: Vec::new(),
            lost: lost_with_the_original(&progress, &flows, &migration.plan.addresses),
            warnings: migration
                .plan
                .warnings
                .iter()
                .cloned()
                .chain(volumes::kept(&migration.plan.volumes, migration.context.engine.kind()))
                .chain(migration.kept_unit())
                .collect(),
            leftovers,
            local: Vec::new(),
            migration,
            progress,
            flows,
        }
    }

    /// Removes the original, which is still cut off, and everything else of the migration. Not
    /// before the destination's engine runs the container: until then the original is the only one
    /// that a failure over there cannot take away.
    pub async fn complete(mut self, steps: &mut Steps<'_>) -> Result<Self, Failure> {
        steps.begin("hand-over");
        let told = destination_rpc::finish(self.migration.connection()).await.map(|finished| {
            self.local = finished.local;
            if finished.full_buffers > 0 {
                self.lost.push(format!(
                    "the container did not read fast enough: {} datagrams found its receive buffers full",
                    finished.full_buffers
                ));
            }
        });
        if told.is_err() {
            self.migration.pause_original();
        }
        match insist(&mut self.migration, told, Goal::Finished).await {
            Ok(()) => {}
            Err(error) => {
                self.migration.original_paused().await;
                let container = self.migration.plan.container.name.clone();
                return Err(Failure::InDoubt { container, cause: error.into() });
            }
        }
        self.await_memory(steps).await?;
        let mut led = (!self.local.is_empty()).then(Instant::now);
        let mut all_led = false;
        if !self.migration.plan.anchors.is_empty() {
            steps.begin("lead flows past this host");
            let left = self.rehome().await;
            all_led = left.is_empty();
            self.warnings.extend(left);
            led = Some(Instant::now());
        }
        steps.begin("remove original");
        let removed = self.remove_original().await;
        self.note(removed);
        if let Some(led) = led {
            tokio::time::sleep(LAST_PACKETS.saturating_sub(led.elapsed())).await;
        }
        let forgotten = self.forget_flows();
        self.note(forgotten);
        if all_led {
            let id = self.migration.id();
            // A destination that does not hear it keeps its end of the tunnel until the flows end.
            if let Err(e) = destination_rpc::led_past(self.migration.connection(), id).await {
                tracing::warn!("{}", chain(&e));
            }
        }
        self.listen(steps).await;
        // What could not be done is left to recovery, which may ask the destination again. One that does not hear that it
        // may forget the migration remembers it.
        if self.leftovers.is_empty()
            && let Err(e) = tell_settled(&mut self.migration).await
        {
            tracing::debug!("{}", chain(&e));
        }
        steps.end();
        Ok(self)
    }

    /// Learns which connections the move has cost.
    async fn listen(&mut self, steps: &mut Steps<'_>) {
        steps.begin("listen for far ends");
        let in_use = std::mem::take(&mut self.migration.in_use);
        let of = (&self.flows[..], &self.local[..]);
        let looked = dead_connections::look(&mut self.migration, in_use, of, self.audible).await;
        self.lost.extend(looked.lost);
        self.unverified = looked.unverified;
        self.warnings.extend(looked.doubtful);
    }

    /// Has the other anchors lead their flows to the destination; tells what could not be done.
    async fn rehome(&mut self) -> Vec<String> {
        let Migration { plan, anchors, context, .. } = &mut self.migration;
        let destination = plan.link.host;
        let order = Rehome {
            migration: plan.offer.migration,
            host: destination,
            id: plan.container.id.clone(),
            container: plan.addresses.clone(),
        };
        let mut left = anchors.rehome(context, order).await;
        let led: Vec<PeerNumber> = anchors.led().collect();
        for (number, host) in &plan.anchors {
            let mut forwarders = plan.offer.forwarders.iter();
            let forwards = forwarders.any(|forwarder| forwarder.host == *host);
            if forwards && *host != destination && !led.contains(number) {
                left.push(format!(
                    "new connections that {} forwards do not reach the container any more; \
                     run agent-client forward remove {} there",
                    context.peer_name(*number),
                    plan.container.name
                ));
            }
        }
        left
    }

    /// Forgets the flows that do not pass this host any more.
    fn forget_flows(&mut self) -> Result<(), Cause> {
        let Migration { plan, anchors, context, .. } = &mut self.migration;
        let container = &plan.addresses;
        local_far_ends::forget(container, &self.local, plan.link.peer)?;
        let by_others = self.flows.iter().any(|flow| flow.anchor(container).is_some());
        if !by_others && plan.offer.forwarders.is_empty() {
            // All are this host's own, and so are those that were about to be opened.
            return Ok(());
        }
        let mut past = anchors.led().collect::<Vec<_>>();
        past.push(plan.link.peer);
        let others = moved_containers::others(&context.directories, &plan.container.id)?;
        anchors::forget(container, &past, &others)
    }

    fn note(&mut self, result: Result<(), Cause>) {
        self.leftovers.extend(result.err().map(|e| chain(e.as_ref())));
    }

    /// Ends the journal and tells what happened.
    #[must_use]
    pub async fn summary(mut self, steps: Steps<'_>) -> Report {
        let tcp = self.flows.iter().filter(|flow| flow.tcp.is_some()).count();
        let flows = FlowCount { tcp, udp: self.flows.len() - tcp };
        let (migration, progress) = (self.migration, self.progress);
        let plan = &migration.plan;
        let id = migration.id().to_string();
        let container =
            ContainerName { id: plan.container.id.clone(), name: plan.container.name.clone() };
        let destination = plan.link.destination.host.clone();
        let tunnel = migration.tunnel_kind.clone();
        let readdressed = plan.readdressed.iter().map(NewAddress::from).collect();
        let forecast_ms = milliseconds(plan.expected.forecast().total());
        plan.expected.note(&migration.context.directories.state, &self.parts);
        if self.leftovers.is_empty() {
            self.leftovers.extend(migration.end().await.err().map(|e| chain(e.as_ref())));
        }
        let clean = self.leftovers.is_empty();
        let outcome = match (self.lost.is_empty(), self.unverified.is_empty()) {
            (false, _) => Outcome::MovedWithLosses,
            (true, false) => Outcome::MovedUnverified,
            (true, true) if clean => Outcome::Moved,
            (true, true) => Outcome::MovedWithLeftovers,
        };
        let (steps, total) = steps.finish();
        self.warnings.extend(self.leftovers);
        Report {
            outcome,
            migration: id,
            container,
            destination,
            total_ms: milliseconds(total),
            interruption_ms: self.interruption_ms,
            forecast_ms,
            steps,
            parts_ms: self.parts.rounded(),
            flows,
            checkpoint_bytes: progress.checkpoint_bytes,
            memory: progress.memory,
            held_packets: self.held_packets,
            tunnel,
            queue: progress.queue,
            readdressed,
            lost: self.lost,
            unverified: self.unverified,
            warnings: self.warnings,
        }
    }
}

#[cfg(test)]
mod tests {
    use netmig::flow::{Protocol, TcpState, Tuple, Zone};

    use super::*;

    #[test]
    fn handshakes_that_are_not_complete_are_named() {
        let container = ["10.88.0.2".parse().unwrap()];
        let tuple = |source: &str, source_port, destination: &str, destination_port| Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            source_port,
            destination_port,
        };
        let flow = |port: u16, state: u8| Flow {
            protocol: Protocol::Tcp,
            original: tuple("192.0.2.3", port, "192.0.2.1", 8080),
            reply: tuple("10.88.0.2", 80, "192.0.2.3", port),
            status: 0,
            timeout: 60,
            mark: 0,
            zone: Zone::default(),
            tcp: Some(TcpState { state, scales: [7, 7], flags: [0, 0] }),
        };
        let one = [flow(5000, 3), flow(5001, 2)];
        assert_eq!(half_open(&one, &container), ": 192.0.2.3:5001 > 192.0.2.1:8080");
        assert_eq!(half_open(&one[..1], &container), "");
        let many: Vec<Flow> = (5000..5009).map(|port| flow(port, 2)).collect();
        let told = half_open(&many, &container);
        assert!(
            told.starts_with(", among them 192.0.2.3:5000") && !told.contains("5005"),
            "{told}"
        );
    }
}
