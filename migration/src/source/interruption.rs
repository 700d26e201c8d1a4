//! The interruption, up to the commit point. New connections begin to wait a moment earlier.
//!
//! A [`Interruption`] owns a container that may be held, frozen and cut off. Whatever of that has happened,
//! [`Interruption::go_back`] undoes; nothing else in this program thaws a container.

mod backlog;
mod flows;
mod sending;

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use checkpoint::criu::ConfigDir;
use checkpoint::images::{ImageDir, Manifest};
use checkpoint::realtime::RealtimePriority;
use checkpoint::unread::Unread;
use netmig::detour::Detour;
use netmig::flow::{Alias, Conntrack, Flow};
use netmig::hold::{Egress, Hold, Pace, PreparedHold};
use netmig::sockets::{Backlogs, TcpSockets, UdpQueues};
use netmig::tunnel;
use protocol::expect;
use protocol::message::Message;
use state::cause::{Cause, chain};
use state::deadline;
use state::interrupt_slot::Turn;
use state::journal::{self, Record};
use steering::moved_containers;
use tokio::task::{JoinHandle, block_in_place, spawn_blocking};

use super::bridged_flows::Besides;
use super::container_log::CarriedLog;
use super::engine_orders::{self, Ended};
use super::exec_sessions;
use super::failure::Failure;
use super::landlock::LandlockWatch;
use super::memory_rounds::MemoryRounds;
use super::migration::Migration;
use super::preparation::Tools;
use super::prepared_dump::{EndedDump, PreparedDump};
use super::trees::CarriedTree;
use super::verify_copy;
use crate::convert::Wire;
use crate::event::{milliseconds, span};
use crate::report::{MemoryReport, Parts};

/// How long a dump that is at work may take to end by itself when the migration turns back.
const DUMP_END: Duration = Duration::from_secs(60);

/// The interruption took too long.
#[derive(Debug, thiserror::Error)]
#[error("the interruption would have lasted longer than {:.2} s (see --max-interruption)", .0.as_secs_f64())]
pub struct TooLong(Duration);

/// A container whose interruption is about to begin, or has begun.
pub struct Interruption<'a> {
    pub(super) migration: Migration<'a>,
    turn: Option<Turn>,
    realtime: Option<RealtimePriority>,
    ready: Option<PreparedHold>,
    hold: Option<Hold>,
    images: ImageDir,
    criu_config: ConfigDir,
    prepared: Option<PreparedDump>,
    queues: UdpQueues,
    backlogs: Backlogs,
    sockets: Option<TcpSockets>,
    besides: Besides,
    conntrack: Option<Conntrack>,
    trees: Vec<CarriedTree>,
    log: Option<CarriedLog>,
    memory: Option<MemoryRounds>,
    landlock: LandlockWatch,
    frozen: bool,
    blocked: bool,
    dump: Option<JoinHandle<Result<EndedDump, checkpoint::runtime::Error>>>,
    flows: Vec<Flow>,
    stand_ins: Vec<Alias>,
    far_ends: Vec<Alias>,
    marked: bool,
    progress: Progress,
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
    /// Memory.
    pub memory: MemoryReport,
    /// Datagram bytes that were still unread when the container was frozen; they are lost.
    pub undrained: u64,
    /// What else the container had not read when it was frozen; it is lost.
    pub unread: BTreeSet<Unread>,
    /// TCP connections whose handshake was not complete when the container was frozen; they are lost.
    pub half_open: u64,
    /// Signals that waited for its tasks when the copy was compared.
    pub signals: BTreeSet<(i32, u64)>,
    /// When its files were read for the last time.
    pub files_read: SystemTime,
    /// Which queue expression the kernel has.
    pub queue: &'static str,
}

impl<'a> Interruption<'a> {
    /// Takes over what was prepared. Nothing is interrupted yet.
    #[must_use]
    pub fn of(migration: Migration<'a>, tools: Tools) -> Self {
        let queue = tools.hold.queueing().name();
        Self {
            migration,
            turn: Some(tools.turn),
            realtime: None,
            ready: Some(tools.hold),
            hold: None,
            images: tools.images,
            criu_config: tools.criu_config,
            prepared: Some(tools.dump),
            queues: tools.queues,
            backlogs: tools.backlogs,
            sockets: Some(tools.sockets),
            besides: tools.besides,
            conntrack: Some(tools.conntrack),
            trees: tools.trees,
            log: tools.log,
            memory: tools.memory,
            landlock: tools.landlock,
            frozen: false,
            blocked: false,
            dump: None,
            flows: Vec::new(),
            stand_ins: Vec::new(),
            far_ends: Vec::new(),
            marked: false,
            progress: Progress {
                began: Instant::now(),
                parts: Parts::default(),
                checkpoint_bytes: 0,
                memory: MemoryReport { mode: "stop", ..MemoryReport::default() },
                undrained: 0,
                unread: BTreeSet::new(),
                half_open: 0,
                signals: BTreeSet::new(),
                files_read: SystemTime::now(),
                queue,
            },
        }
    }

    /// Holds, drains, freezes, cuts off, dumps, sends, and waits for the isolated copy.
    pub async fn run(&mut self, limit: Duration) -> Result<(), Cause> {
        block_in_place(|| self.migration.note_interruption())?;
        let Migration { share, journal, .. } = &mut self.migration;
        block_in_place(|| share.note_lift(journal))?;
        let detours = block_in_place(|| self.find_besides())?;
        self.migration.note_detours(&detours).await?;
        if let Some(ready) = self.ready.take() {
            self.hold = Some(block_in_place(|| ready.engage())?);
        }
        self.drain_backlog().await?;
        self.realtime = Some(RealtimePriority::begin());
        match tokio::time::timeout(limit, self.interrupt(&detours)).await {
            // This process may have been stopped meanwhile.
            Ok(Ok(())) if self.progress.began.elapsed() > limit => Err(TooLong(limit).into()),
            Ok(result) => result,
            Err(_) => Err(TooLong(limit).into()),
        }
    }

    async fn interrupt(&mut self, detours: &[Detour]) -> Result<(), Cause> {
        let began = Instant::now();
        self.progress.began = began;
        if let Some(hold) = &mut self.hold {
            block_in_place(|| hold.engage_all())?;
        }
        // What these containers send passes the hold from now on.
        self.besides.lay(detours)?;
        let held = Instant::now();
        self.drain().await?;
        let drained = Instant::now();
        // Freezing comes before cutting off: what the container sends until its last instruction
        // still gets out, and nothing new gets in since the hold took effect.
        self.freeze().await?;
        let frozen = Instant::now();
        self.blocked = true;
        let plan = &self.migration.plan;
        plan.port.block()?;
        let (name, cgroup) = (plan.container.name.clone(), plan.cgroup.clone());
        let first = plan.process.pid;
        let landlock = std::mem::take(&mut self.landlock);
        let entered = spawn_blocking(move || {
            landlock.check(&name)?;
            Ok::<_, Cause>(exec_sessions::check(&name, &cgroup, first)?)
        });
        let blocked = Instant::now();
        // An exec session leads to errors of the dump that do not name it.
        let sent = self.dump_and_send().await;
        entered.await??;
        let (manifest, dumped) = sent?;
        let sent = Instant::now();
        // As late as it costs no time: the destination restores meanwhile.
        let context = self.migration.context;
        let records = engine_orders::read(&context.engine, &self.migration.plan.container);
        let prepared = self.restore(manifest).await?;
        let plan = &self.migration.plan;
        tunnel::check(plan.link.peer)?;
        plan.port.check_blocked()?;
        let (container, is_plain) = (&plan.container, plan.is_plain);
        engine_orders::check_frozen(&*context.engine, container, is_plain, records).await?;
        if !plan.cgroup.is_populated()? {
            return Err(Ended(container.name.clone()).into());
        }
        let answered = Instant::now();

        let parts = &mut self.progress.parts;
        parts.hold = span(began, held);
        parts.drain = span(held, drained);
        parts.freeze = span(drained, frozen);
        parts.block = span(frozen, blocked);
        parts.dump = span(blocked, dumped);
        parts.entries = from_micros(prepared.entries_us);
        parts.restore = from_micros(prepared.restore_us);
        parts.compare = from_micros(prepared.compare_us);
        // Whatever of the far end's turn it did not measure itself was spent on the way.
        let named = parts.entries + parts.restore + parts.compare;
        let far = span(sent, answered) - named;
        parts.transfer = span(dumped, sent) + far.max(0.0);
        Ok(())
    }

    /// Orders the restore, and marks this host's flows while the far end works.
    async fn restore(&mut self, manifest: Manifest) -> Result<protocol::message::Prepared, Cause> {
        self.migration.connection().send(&Message::Restore(manifest.into_wire())).await?;
        self.marked = true;
        block_in_place(|| self.set_marks(true))?;
        let plan = &self.migration.plan;
        let mut beside = self.besides.stand_ins(&plan.aliases)?;
        for far in &self.far_ends {
            let same = plan.addresses.iter().filter(|own| own.is_ipv4() == far.here.is_ipv4());
            beside.extend(same.map(|own| (*far, *own)));
        }
        self.migration.exchange(self.stand_ins.clone(), beside, &self.flows).await?;
        let plan = &mut self.migration.plan;
        let connection = &mut plan.link.connection;
        let signals = block_in_place(|| engine_orders::sent_signals(&plan.cgroup));
        block_in_place(|| {
            exec_sessions::check(&plan.container.name, &plan.cgroup, plan.process.pid)
        })?;
        verify_copy::tell(connection, &plan.cgroup, plan.process.pid).await?;
        let mut prepared = expect!(connection, deadline::STAGE, Prepared)?;
        verify_copy::check(&mut prepared.differences)?;
        self.progress.signals = signals;
        Ok(prepared)
    }

    /// Lets the original run on, as if nothing had happened.
    pub async fn go_back(mut self, cause: Cause) -> Failure {
        let mut leftovers = Vec::new();
        if let Some(prepared) = self.prepared.take() {
            prepared.abandon().await;
        }
        // CRIU is never signalled at work, nor the container thawed: its code would stay in the tasks.
        if let Some(dump) = self.dump.take()
            && tokio::time::timeout(DUMP_END, dump).await.is_err()
        {
            self.migration.is_dumping = true;
            return self.stay(cause, vec!["CRIU is still at work on it".to_owned()]).await;
        }
        let mut stuck = Vec::new();
        let mut note = |result: Result<(), Cause>| {
            leftovers.extend(result.err().map(|e| chain(e.as_ref())));
        };
        if std::mem::take(&mut self.marked) {
            note(self.set_marks(false));
        }
        note(self.migration.end_exchange().await);
        let plan = &self.migration.plan;
        // Each is tried whatever comes of the other.
        if self.blocked
            && let Err(e) = plan.reconnect()
        {
            stuck.push(format!("it could not be connected again: {}", chain(&e)));
        }
        note(self.migration.share.put_back().map_err(Cause::from));
        let plan = &self.migration.plan;
        if self.frozen
            && !engine_orders::is_pause(&cause)
            && let Err(e) = plan.cgroup.resume()
        {
            stuck.push(format!("it could not be thawed: {}", chain(&e)));
        }
        // The container answers those that ask for its address.
        let plan = &self.migration.plan;
        let (id, container) = (plan.container.id.clone(), plan.addresses.clone());
        let others = moved_containers::rejoin(&self.migration.context.directories, &id).await;
        let others = others.unwrap_or_else(|e| {
            note(Err(e));
            Vec::new()
        });
        note(self.release_hold().await.map(drop));
        note(moved_containers::forget_between(&container, &others));
        // Marks that lead elsewhere, or packets that are held, keep it from being heard as well.
        stuck.extend(leftovers);
        self.stay(cause, stuck).await
    }

    /// Ends the attempt with what could not be undone, if anything.
    async fn stay(mut self, cause: Cause, stuck: Vec<String>) -> Failure {
        self.end_turn();
        self.migration.go_back(cause, stuck).await
    }

    /// Writes the commit record.
    pub fn note_commit(&mut self) -> Result<(), journal::Error> {
        let at = journal::now();
        block_in_place(|| self.migration.journal.append(&Record::Committed { at }))
    }

    /// Lets the held packets go, in order; gives how many there were.
    pub async fn release_hold(&mut self) -> Result<u64, Cause> {
        let Some(hold) = self.hold.take() else { return Ok(0) };
        let tunnel = self.marked.then(|| self.migration.plan.link.peer.interface());
        let release = move || {
            let outlet = tunnel.and_then(|interface| Egress::open(&interface).ok());
            hold.release(Pace::default(), outlet)
        };
        let report = spawn_blocking(release).await??;
        Ok(report.counters.held)
    }

    /// Lets the next container be interrupted.
    pub fn end_turn(&mut self) {
        self.realtime = None;
        self.turn = None;
    }

    /// Hands the migration on, with the flows as they were before they were led away, and what was measured.
    #[must_use]
    pub fn finish(mut self) -> (Migration<'a>, Vec<Flow>, Progress) {
        let memory = self.memory.take();
        drop(spawn_blocking(move || drop(memory)));
        (self.migration, self.flows, self.progress)
    }
}

/// Returns microseconds as measured by the far end in milliseconds.
fn from_micros(us: u64) -> f64 {
    milliseconds(Duration::from_micros(us))
}
