//! Steps 6 to 10: the interruption, up to the commit point.
//!
//! A [`Pause`] owns a container that may be held, frozen and cut off. Whatever of that has happened,
//! [`Pause::go_back`] undoes; nothing else in this program thaws a container.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agent_core::carried;
use agent_core::cause::{Cause, chain};
use agent_core::identity::HostId;
use agent_core::journal::Record;
use agent_core::message::{FlowBatch, Message, MigrationId};
use agent_core::turn::Turn;
use agent_core::wire::{Connection, FLOWS_PER_FRAME, PIECE};
use agent_core::{deadline, expect};
use checkpoint::criu::ConfigDir;
use checkpoint::images::{Chunk, Follower, ImageDir, Manifest};
use checkpoint::runtime::{Dumped, Waiting};
use checkpoint::tree::Tasks;
use checkpoint::urgency::Urgency;
use netmig::beside::Detour;
use netmig::flow::{Conntrack, Direction, Flow, StandIn};
use netmig::hold::{Hold, Outlet, Pace, PreparedHold};
use netmig::sockets::{TcpSockets, UdpQueues};
use netmig::tunnel;
use tokio::task::{JoinHandle, block_in_place, spawn_blocking};

use super::beside::Besides;
use super::commit::Committed;
use super::departure::{Departure, NotPrepared};
use super::dump::{PreparedDump, request};
use super::log::CarriedLog;
use super::order::Peer;
use super::outbox::{Outbox, outbox, post};
use super::remembered::remember;
use super::trees::{self, CarriedTree};
use super::{Context, Failure};
use crate::summary::{FlowCount, Parts, from_micros, span};

/// Between two looks at the datagram queues.
const DRAIN_PAUSE: Duration = Duration::from_micros(200);
/// Most pieces of images in one message: there is a small one for each connection.
const BATCH: usize = 128;
/// Between two looks at the growing images.
const FOLLOW_PAUSE: Duration = Duration::from_millis(1);
/// How long a dump that is at work may take to end by itself when the migration turns back.
const DUMP_END: Duration = Duration::from_secs(60);

/// The interruption took too long.
#[derive(Debug, thiserror::Error)]
#[error("the interruption would have lasted longer than {:.2} s (see --max-interruption)", .0.as_secs_f64())]
pub struct TooLong(Duration);

/// What the interruption uses, made ready before it.
pub struct Tools {
    /// The right to interrupt it now.
    pub turn: Turn,
    /// The hold.
    pub hold: PreparedHold,
    /// The directory that the dump goes into.
    pub images: ImageDir,
    /// CRIU's options.
    pub criu_config: ConfigDir,
    /// The dump, in front of CRIU.
    pub dump: PreparedDump,
    /// The container's datagram queues.
    pub queues: UdpQueues,
    /// The container's connections.
    pub sockets: TcpSockets,
    /// Connections with other containers of its network.
    pub besides: Besides,
    /// This host's conntrack table.
    pub conntrack: Conntrack,
    /// Trees whose first pass has been sent.
    pub trees: Vec<CarriedTree>,
    /// The log, whose first pass has been sent.
    pub log: Option<CarriedLog>,
}

/// A container whose interruption is about to begin, or has begun.
pub struct Pause<'a> {
    departure: Departure<'a>,
    turn: Option<Turn>,
    urgency: Option<Urgency>,
    ready: Option<PreparedHold>,
    hold: Option<Hold>,
    images: ImageDir,
    criu_config: ConfigDir,
    prepared: Option<PreparedDump>,
    queues: UdpQueues,
    sockets: Option<TcpSockets>,
    besides: Besides,
    conntrack: Option<Conntrack>,
    trees: Vec<CarriedTree>,
    log: Option<CarriedLog>,
    frozen: bool,
    blocked: bool,
    dump: Option<JoinHandle<Result<(Dumped, Instant), checkpoint::runtime::Error>>>,
    flows: Vec<Flow>,
    stand_ins: Vec<StandIn>,
    marked: bool,
    progress: Progress,
}

/// The container's flows as they were when it was cut off.
struct Collected {
    conntrack: Conntrack,
    flows: Vec<Flow>,
    stand_ins: Vec<StandIn>,
    besides: Besides,
    detours: Vec<Detour>,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Progress {
    /// When the hold's rule went in.
    pub began: Instant,
    /// The parts so far.
    pub parts: Parts,
    /// Bytes of images.
    pub checkpoint_bytes: u64,
    /// Datagram bytes that were still unread when the container was frozen; they are lost.
    pub undrained: u64,
    /// Which queue expression the kernel has.
    pub queue: &'static str,
}

impl<'a> Pause<'a> {
    /// Takes over a prepared departure. Nothing is interrupted yet.
    pub fn new(departure: Departure<'a>, tools: Tools) -> Self {
        let queue = tools.hold.queueing().name();
        Self {
            departure,
            turn: Some(tools.turn),
            urgency: None,
            ready: Some(tools.hold),
            hold: None,
            images: tools.images,
            criu_config: tools.criu_config,
            prepared: Some(tools.dump),
            queues: tools.queues,
            sockets: Some(tools.sockets),
            besides: tools.besides,
            conntrack: Some(tools.conntrack),
            trees: tools.trees,
            log: tools.log,
            frozen: false,
            blocked: false,
            dump: None,
            flows: Vec::new(),
            stand_ins: Vec::new(),
            marked: false,
            progress: Progress {
                began: Instant::now(),
                parts: Parts::default(),
                checkpoint_bytes: 0,
                undrained: 0,
                queue,
            },
        }
    }

    /// Holds, drains, freezes, cuts off, dumps, sends, and waits for the isolated copy.
    pub async fn run(&mut self, limit: Duration) -> Result<(), Cause> {
        let plan = self.departure.plan();
        let record = Record::Interruption {
            cgroup: plan.cgroup.path().to_owned(),
            port: plan.port.name().to_owned(),
            process: plan.process.clone(),
        };
        block_in_place(|| self.departure.journal_mut().append(&record))?;
        let detours = block_in_place(|| self.find_besides())?;
        self.urgency = Some(Urgency::begin());
        match tokio::time::timeout(limit, self.interrupt(&detours)).await {
            // This process may have been stopped meanwhile.
            Ok(Ok(())) if self.progress.began.elapsed() > limit => Err(TooLong(limit).into()),
            Ok(result) => result,
            Err(_) => Err(TooLong(limit).into()),
        }
    }

    /// Makes ready for the connections with other containers of its network that are open now.
    fn find_besides(&mut self) -> Result<Vec<Detour>, Cause> {
        let (Some(conntrack), Some(sockets)) = (&mut self.conntrack, &mut self.sockets) else {
            return Ok(Vec::new());
        };
        let container = &self.departure.plan().addresses;
        let detours = self.besides.prepare(conntrack, sockets, container)?;
        self.departure.note_detours(&detours)?;
        Ok(detours)
    }

    async fn interrupt(&mut self, detours: &[Detour]) -> Result<(), Cause> {
        let began = Instant::now();
        self.progress.began = began;
        if let Some(ready) = self.ready.take() {
            self.hold = Some(block_in_place(|| ready.engage())?);
        }
        // What these containers send passes the hold from now on.
        self.besides.lay(detours)?;
        let held = Instant::now();
        self.drain().await?;
        let drained = Instant::now();
        // Freezing comes before cutting off: what the container sends until its last instruction
        // still gets out, and nothing new gets in since the hold took effect.
        let plan = self.departure.plan();
        self.frozen = true;
        block_in_place(|| plan.cgroup.freeze(Instant::now() + deadline::FREEZE))?;
        let frozen = Instant::now();
        self.blocked = true;
        plan.port.block()?;
        let blocked = Instant::now();
        let (manifest, dumped) = self.dump_and_send().await?;
        let sent = Instant::now();
        let prepared = self.restore(manifest).await?;
        let plan = self.departure.plan();
        tunnel::check(plan.link.peer)?;
        plan.port.check_blocked()?;
        let answered = Instant::now();

        let parts = &mut self.progress.parts;
        parts.hold = span(began, held);
        parts.drain = span(held, drained);
        parts.freeze = span(drained, frozen);
        parts.block = span(frozen, blocked);
        parts.dump = span(blocked, dumped);
        parts.entries = from_micros(prepared.entries_us);
        parts.restore = from_micros(prepared.restore_us);
        // Whatever of the far end's turn it did not measure itself was spent on the way.
        let far = span(sent, answered) - parts.entries - parts.restore;
        parts.transfer = span(dumped, sent) + far.max(0.0);
        Ok(())
    }

    /// Waits until the container has read the datagrams that it had received.
    async fn drain(&mut self) -> Result<(), Cause> {
        let began = Instant::now();
        let (mut least, mut progress) = (u64::MAX, began);
        loop {
            self.progress.undrained = self.queues.pending()?;
            let now = Instant::now();
            if self.progress.undrained < least {
                (least, progress) = (self.progress.undrained, now);
            }
            // A container that does not read at all must not keep its connections waiting for long.
            let stuck = now - progress >= deadline::DRAIN;
            if least == 0 || stuck || now - began >= deadline::DRAIN_ALL {
                return Ok(());
            }
            tokio::time::sleep(DRAIN_PAUSE).await;
        }
    }

    /// Dumps, and sends everything as it comes: images while CRIU writes them, flows, and changed
    /// files.
    async fn dump_and_send(&mut self) -> Result<(Manifest, Instant), Cause> {
        let (outbox, mut messages) = outbox();
        let done = Arc::new(AtomicBool::new(false));
        let PreparedDump { waiting, follower } = self.prepared.take().ok_or(NotPrepared)?;
        self.dump = Some(self.start_dump(waiting, Arc::clone(&done)));
        let images = follow(follower, done, outbox.clone());
        let flows = self.collect_flows(outbox.clone());
        let trees = self.send_changes(outbox);

        let connection = &mut self.departure.plan_mut().link.connection;
        while let Some(message) = messages.recv().await {
            connection.send(&message).await?;
        }
        let dumped = match &mut self.dump {
            Some(dump) => {
                let ended = dump.await;
                // A task that has ended must not be waited for again, whichever way it ended.
                self.dump = None;
                ended??.1
            }
            None => Instant::now(),
        };
        let collected = flows.await??;
        self.conntrack = Some(collected.conntrack);
        self.flows = collected.flows;
        self.stand_ins = collected.stand_ins;
        self.besides = collected.besides;
        self.departure.note_detours(&collected.detours)?;
        self.besides.lay(&collected.detours)?;
        trees.await??;
        let manifest = images.await??;
        self.progress.checkpoint_bytes = manifest.files.iter().map(|file| file.length).sum();
        Ok((manifest, dumped))
    }

    /// The dump runs as a task of its own: when this migration turns back it must be waited for,
    /// never ended.
    fn start_dump(
        &self,
        waiting: Waiting,
        done: Arc<AtomicBool>,
    ) -> JoinHandle<Result<(Dumped, Instant), checkpoint::runtime::Error>> {
        let plan = self.departure.plan();
        let id = plan.container.id.clone();
        let cgroup = Arc::clone(&plan.cgroup);
        let images = self.images.path().to_owned();
        let work = self.departure.work().to_owned();
        let config = self.criu_config.clone();
        tokio::spawn(async move {
            let request = request(&id, &images, &work, &config, Some(&cgroup));
            let dump = async { waiting.go(request)?.wait(Instant::now() + DUMP_END).await };
            let result = dump.await;
            done.store(true, Ordering::Release);
            result.map(|dumped| (dumped, Instant::now()))
        })
    }

    fn collect_flows(&mut self, outbox: Outbox) -> JoinHandle<Result<Collected, Cause>> {
        let conntrack = self.conntrack.take();
        let sockets = self.sockets.take();
        let mut besides = std::mem::take(&mut self.besides);
        let container = self.departure.plan().container.clone();
        let addresses = self.departure.plan().addresses.clone();
        let destination = self.departure.plan().link.peer;
        let gateways = self.departure.plan().port.bridge().addresses.clone();
        let HostId(this) = self.departure.context().trust.identity.fingerprint().host();
        let anchors = self.departure.anchors().hosts();
        spawn_blocking(move || {
            let mut conntrack = match conntrack {
                Some(conntrack) => conntrack,
                None => Conntrack::open()?,
            };
            let mut flows = conntrack.dump(&addresses)?;
            // Others are those of an earlier holder of the address, which has moved.
            flows.retain(|flow| flow.leads_to(&addresses).is_none());
            flows.retain(|flow| !besides.is_parted(flow, &addresses));
            let mut detours = Vec::new();
            if let Some(mut sockets) = sockets {
                let connections = sockets.list()?;
                flows.extend(remember(&mut conntrack, &connections, &container, &flows)?);
                (flows, detours) = besides.complete(&mut conntrack, &connections, flows)?;
            }
            let stand_ins = StandIn::needed(&flows, &addresses, &gateways, this);
            let beside = besides.stand_ins(this).into_iter().map(|(stand_in, _)| stand_in);
            let all_stand_ins: Vec<_> = stand_ins.iter().copied().chain(beside).collect();
            // The container is cut off, and what is sent to it waits: no packet misses its entry. A
            // packet that waits already keeps the old one.
            let anew = |flow: &Flow| flow.lasting(&addresses, &stand_ins);
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
                    let (flows, stand_ins) = (batch.to_vec(), all_stand_ins.clone());
                    post(&outbox, Message::Flows(FlowBatch { anchor, flows, stand_ins }))?;
                }
            }
            Ok(Collected { conntrack, flows, stand_ins, besides, detours })
        })
    }

    /// Sends what changed in the trees and in the log since their first pass.
    fn send_changes(&mut self, outbox: Outbox) -> JoinHandle<Result<(), Cause>> {
        let trees = std::mem::take(&mut self.trees);
        let log = self.log.take();
        spawn_blocking(move || {
            if let Some(mut log) = log {
                log.pass(&outbox)?;
            }
            for CarriedTree { tree, source, snapshot } in trees {
                trees::send(tree, &outbox, |sink| {
                    source.changes_since(snapshot, Tasks::Frozen, sink)
                })?;
            }
            Ok(())
        })
    }

    /// Orders the restore, and marks this host's flows while the far end works.
    async fn restore(
        &mut self,
        manifest: Manifest,
    ) -> Result<agent_core::message::Prepared, Cause> {
        self.departure.plan_mut().link.connection.send(&Message::Restore(manifest)).await?;
        self.marked = true;
        block_in_place(|| self.set_marks(true))?;
        let HostId(this) = self.departure.context().trust.identity.fingerprint().host();
        let beside = self.besides.stand_ins(this);
        self.departure.exchange(self.stand_ins.clone(), beside, &self.flows).await?;
        let connection = &mut self.departure.plan_mut().link.connection;
        Ok(expect!(connection, deadline::STAGE, Prepared)?)
    }

    /// Leads the container's flows to the peer, or back to this host.
    fn set_marks(&mut self, away: bool) -> Result<(), Cause> {
        let plan = self.departure.plan();
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

    /// **The commit point.** Once the record is on disk the original never runs again.
    pub fn commit(mut self) -> Result<Committed<'a>, Box<(Self, Cause)>> {
        let since = Instant::now();
        match block_in_place(|| self.departure.journal_mut().append(&Record::Committed)) {
            Ok(()) => Ok(Committed::new(self, since)),
            Err(e) => Err(Box::new((self, e.into()))),
        }
    }

    /// Lets the original run on, as if nothing had happened.
    pub async fn go_back(mut self, cause: Cause) -> Failure {
        let mut leftovers = Vec::new();
        if let Some(prepared) = self.prepared.take() {
            prepared.abandon().await;
        }
        if let Some(dump) = self.dump.take() {
            // CRIU is never signalled at work: it would leave its code in the tasks.
            if tokio::time::timeout(DUMP_END, dump).await.is_err() {
                leftovers
                    .push("CRIU is still at work; the container was thawed around it".to_owned());
            }
        }
        let mut note = |result: Result<(), Cause>| {
            leftovers.extend(result.err().map(|e| chain(e.as_ref())));
        };
        if std::mem::take(&mut self.marked) {
            note(self.set_marks(false));
        }
        note(self.departure.end_exchange().await);
        let plan = self.departure.plan();
        if self.blocked {
            note(plan.reconnect().map_err(Into::into));
        }
        if self.frozen {
            note(plan.cgroup.thaw().map_err(Into::into));
        }
        // The container answers those that ask for its address.
        let plan = self.departure.plan();
        let (id, container) = (plan.container.id.clone(), plan.addresses.clone());
        let others = carried::rejoin(&self.departure.context().directories, &id);
        let others = others.unwrap_or_else(|e| {
            note(Err(e));
            Vec::new()
        });
        note(self.release_hold().await.map(drop));
        note(carried::forget_between(&container, &others));
        self.end_turn();
        match self.departure.go_back(cause).await {
            // Nothing of a container that has ended can be left.
            Failure::RolledBack { cause, ended, leftovers: more } => {
                leftovers.retain(|_| !ended);
                leftovers.extend(more);
                Failure::RolledBack { cause, ended, leftovers }
            }
            other => other,
        }
    }

    /// Lets the held packets go, in order; gives how many there were.
    pub async fn release_hold(&mut self) -> Result<u64, Cause> {
        let Some(hold) = self.hold.take() else { return Ok(0) };
        let tunnel = self.marked.then(|| self.departure.plan().link.peer.interface());
        let release = move || {
            let outlet = tunnel.and_then(|interface| Outlet::open(&interface).ok());
            hold.release(Pace::default(), outlet)
        };
        let report = spawn_blocking(release).await??;
        Ok(report.counters.held)
    }

    /// Lets the next container be interrupted.
    pub fn end_turn(&mut self) {
        self.urgency = None;
        self.turn = None;
    }

    /// Flows by protocol.
    pub fn flow_count(&self) -> FlowCount {
        let tcp = self.flows.iter().filter(|flow| flow.tcp.is_some()).count();
        FlowCount { tcp, udp: self.flows.len() - tcp }
    }

    /// What was measured so far.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The migration.
    pub fn migration(&self) -> MigrationId {
        self.departure.plan().offer.migration
    }

    /// The container's name.
    pub fn container_name(&self) -> &str {
        &self.departure.plan().container.name
    }

    /// The far end, to be found again.
    pub fn peer(&self) -> Peer {
        self.departure.plan().far_end()
    }

    /// What every migration of this host needs.
    pub fn context(&self) -> &'a Context {
        self.departure.context()
    }

    /// The conversation with the destination.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.departure.plan_mut().link.connection
    }

    /// Goes on over a connection that was dialled anew.
    pub fn replace_connection(&mut self, connection: Connection) {
        self.departure.plan_mut().link.connection = connection;
    }

    /// What is left to be ended once the container is gone from here.
    pub fn departure(&mut self) -> &mut Departure<'a> {
        &mut self.departure
    }

    /// The same, for good.
    pub fn into_departure(self) -> Departure<'a> {
        self.departure
    }
}

/// Follows the images in a thread of its own and sends them as they grow.
fn follow(
    follower: Follower,
    done: Arc<AtomicBool>,
    outbox: Outbox,
) -> JoinHandle<Result<Manifest, Cause>> {
    spawn_blocking(move || {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let send = |batch: &mut Vec<Chunk>| {
            let message = Message::Chunks(std::mem::take(batch));
            post(&outbox, message).map_err(|_| checkpoint::images::Error::Closed)
        };
        let mut sink = |chunk: Chunk| {
            bytes += chunk.bytes.len();
            batch.push(chunk);
            if batch.len() < BATCH && bytes < PIECE {
                return Ok(());
            }
            bytes = 0;
            send(&mut batch)
        };
        let manifest = follower.run(&done, FOLLOW_PAUSE, &mut sink)?;
        send(&mut batch)?;
        Ok(manifest)
    })
}
