//! The dump, and what of it goes to the destination while it is being made.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use checkpoint::images::{Chunk, Follower, Manifest};
use checkpoint::rcu_grace_periods::GracePeriods;
use checkpoint::realtime::{MANY_FILES, RealtimePriority};
use checkpoint::runtime::Waiting;
use checkpoint::socket_options::{Looked, SocketSettings};
use checkpoint::tasks::TaskSettings;
use checkpoint::tree::Tasks;
use checkpoint::unread::Unread;
use protocol::wire::PIECE;
use state::cause::Cause;
use state::deadline;
use tokio::task::{JoinHandle, block_in_place, spawn_blocking};

use super::flows::Collected;
use super::{DUMP_END, Interruption};
use crate::convert::{Settings, Wire};
use crate::source::memory_rounds::MemoryRounds;
use crate::source::preparation::NotPrepared;
use crate::source::prepared_dump::{EndedDump, PreparedDump, request};
use crate::source::trees::{self, CarriedTree};
use crate::state_stream::peer::PeerSink;
use crate::state_stream::{StatePart, StateSink};

/// Between two looks at the datagram queues.
const DRAIN_PAUSE: Duration = Duration::from_micros(200);
/// Most pieces of images in one message: there is a small one for each connection.
const BATCH: usize = 128;
/// Most sockets or threads in one message about settings.
const SETTINGS: usize = 512;
/// Between two looks at the growing images.
const FOLLOW_PAUSE: Duration = Duration::from_millis(1);

/// Everything that is read of a frozen container, beside CRIU's dump.
struct Capture {
    images: JoinHandle<Result<Manifest, Cause>>,
    settings: JoinHandle<Result<BTreeSet<Unread>, Cause>>,
    network: JoinHandle<Result<(), Cause>>,
    flows: JoinHandle<Result<Collected, Cause>>,
    trees: JoinHandle<Result<(), Cause>>,
    memory: JoinHandle<Result<Option<MemoryRounds>, Cause>>,
    /// Held until the dump has ended.
    _warmup: GracePeriods,
}

impl Interruption<'_> {
    /// Waits until the container has read the datagrams that it had received.
    pub(super) async fn drain(&mut self) -> Result<(), Cause> {
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
    pub(super) async fn dump_and_send(&mut self) -> Result<(Manifest, Instant), Cause> {
        let (sink, mut parts) = PeerSink::new();
        let done = Arc::new(AtomicBool::new(false));
        let mut capture = self.begin_capture(Arc::new(sink), &done)?;
        let connection = self.migration.connection();
        let mut files = 0;
        while let Some(part) = parts.recv().await {
            if let StatePart::Chunks(chunks) = &part {
                files += chunks.iter().filter(|chunk| chunk.offset == 0).count();
            }
            if files > MANY_FILES && !done.load(Ordering::Acquire) {
                self.realtime = None;
            }
            connection.send(&part.into()).await?;
        }
        let dumped = self.end_dump().await?;
        self.send_last_pages(&mut capture).await?;
        let manifest = self.end_capture(capture).await?;
        self.progress.checkpoint_bytes = manifest.files.iter().map(|file| file.length).sum();
        Ok((manifest, dumped))
    }

    /// Begins to read everything of the frozen container at once, into one sink.
    fn begin_capture(
        &mut self,
        sink: Arc<dyn StateSink>,
        done: &Arc<AtomicBool>,
    ) -> Result<Capture, Cause> {
        let prepared = self.prepared.take().ok_or(NotPrepared)?;
        let PreparedDump { waiting, follower, warmup } = prepared;
        if let Some(memory) = &mut self.memory {
            block_in_place(|| memory.leave_out())?;
            if let Some((device, segments)) = memory.shared_files() {
                waiting.leave_shared_memory_out(device, &segments)?;
            }
        }
        self.dump = Some(self.start_dump(waiting, Arc::clone(done)));
        Ok(Capture {
            images: follow(follower, Arc::clone(done), Arc::clone(&sink)),
            settings: self.send_settings(Arc::clone(&sink)),
            network: self.check_network(),
            flows: self.collect_flows(Arc::clone(&sink)),
            memory: self.send_rest_of_memory(Arc::clone(&sink)),
            trees: self.send_changes(sink),
            _warmup: warmup,
        })
    }

    /// Sends what the container has written since the last round.
    fn send_rest_of_memory(
        &mut self,
        sink: Arc<dyn StateSink>,
    ) -> JoinHandle<Result<Option<MemoryRounds>, Cause>> {
        let memory = self.memory.take();
        spawn_blocking(move || {
            let Some(mut memory) = memory else { return Ok(None) };
            memory.rest(&*sink)?;
            Ok(Some(memory))
        })
    }

    /// Sends pages of code that the dump has touched, and names those that go over after the decision.
    async fn send_last_pages(&mut self, capture: &mut Capture) -> Result<(), Cause> {
        let Some(mut memory) = (&mut capture.memory).await?? else { return Ok(()) };
        let (sink, mut parts) = PeerSink::new();
        let images = self.images.path().to_owned();
        let pass = spawn_blocking(move || {
            memory.code(&sink)?;
            memory.name_later(&images, &sink)?;
            Ok::<_, Cause>(memory)
        });
        while let Some(part) = parts.recv().await {
            self.migration.connection().send(&part.into()).await?;
        }
        // The kernel takes some 20 ms for a GiB to forget what it has noted, which nobody has to wait for now.
        let memory = pass.await??;
        self.progress.memory = memory.report();
        self.progress.memory.least_processors = self.migration.share.processors();
        self.memory = Some(memory);
        Ok(())
    }

    /// Waits until the dump has ended, and returns when it did.
    async fn end_dump(&mut self) -> Result<Instant, Cause> {
        let Some(dump) = &mut self.dump else { return Ok(Instant::now()) };
        let ended = dump.await;
        // A task that has ended must not be waited for again, whichever way it ended.
        self.dump = None;
        let ended = ended??;
        self.realtime = Some(ended.realtime);
        self.migration.share.put_back()?;
        Ok(ended.at)
    }

    /// Waits until everything was read.
    async fn end_capture(&mut self, capture: Capture) -> Result<Manifest, Cause> {
        let collected = capture.flows.await??;
        self.conntrack = Some(collected.conntrack);
        self.flows = collected.flows;
        self.stand_ins = collected.stand_ins;
        self.far_ends = collected.far_ends;
        self.besides = collected.besides;
        self.migration.note_detours(&collected.detours).await?;
        self.besides.lay(&collected.detours)?;
        capture.trees.await??;
        capture.network.await??;
        self.progress.unread = capture.settings.await??;
        capture.images.await?
    }

    /// Starts the dump as a task of its own: when this migration turns back it must be waited for,
    /// never ended.
    fn start_dump(
        &self,
        waiting: Waiting,
        done: Arc<AtomicBool>,
    ) -> JoinHandle<Result<EndedDump, checkpoint::runtime::Error>> {
        let plan = &self.migration.plan;
        let id = plan.container.id.clone();
        let cgroup = Arc::clone(&plan.cgroup);
        let images = self.images.path().to_owned();
        let work = self.migration.work.to_owned();
        let config = self.criu_config.clone();
        tokio::spawn(async move {
            let request = request(&id, &images, &work, &config, Some(&cgroup));
            let dump = async { waiting.go(request)?.wait(Instant::now() + DUMP_END).await };
            let result = dump.await;
            let ended = EndedDump { at: Instant::now(), realtime: RealtimePriority::begin() };
            done.store(true, Ordering::Release);
            result.map(|_| ended)
        })
    }

    /// Reads settings that CRIU does not restore, while it dumps. Each part fits into a message. Returns what the container has
    /// not read.
    fn send_settings(
        &self,
        sink: Arc<dyn StateSink>,
    ) -> JoinHandle<Result<BTreeSet<Unread>, Cause>> {
        let plan = &self.migration.plan;
        let (cgroup, monitor) = (Arc::clone(&plan.cgroup), plan.container.monitor_pid);
        let of_cgroup = self.migration.share.unchanged(cgroup.settings());
        spawn_blocking(move || {
            let Looked { settings: sockets, unread } = SocketSettings::read(&cgroup.pids()?)?;
            let tasks = TaskSettings::read(&cgroup, monitor);
            let of_sockets = sockets
                .chunks(SETTINGS)
                .map(|part| Settings { sockets: part.to_vec(), ..Settings::default() });
            let of_tasks = tasks
                .chunks(SETTINGS)
                .map(|part| Settings { tasks: part.to_vec(), ..Settings::default() });
            let of_cgroup = Settings { cgroup: of_cgroup, ..Settings::default() };
            for part in of_sockets.chain(of_tasks).chain([of_cgroup]) {
                sink.put(StatePart::Settings(part.into_wire()))?;
            }
            Ok(unread)
        })
    }

    /// Looks at the network of a container that may have changed it until it was frozen.
    fn check_network(&self) -> JoinHandle<Result<(), Cause>> {
        let plan = &self.migration.plan;
        let (network, namespace) = (Arc::clone(&plan.network), Arc::clone(&plan.namespace));
        let cgroup = Arc::clone(&plan.cgroup);
        spawn_blocking(move || network.check_frozen(&namespace, &cgroup.pids()?))
    }

    /// Sends what changed in the trees and in the log since their first pass.
    fn send_changes(&mut self, sink: Arc<dyn StateSink>) -> JoinHandle<Result<(), Cause>> {
        let trees = std::mem::take(&mut self.trees);
        self.progress.files_read = SystemTime::now();
        let log = self.log.take();
        spawn_blocking(move || {
            if let Some(mut log) = log {
                log.pass(&*sink)?;
            }
            for CarriedTree { which, source, snapshot } in trees {
                trees::send(which, &*sink, |records| {
                    source.changes_since(snapshot, Tasks::Frozen, records)
                })?;
            }
            Ok(())
        })
    }
}

/// Follows the images in a thread of its own and sends them as they grow.
fn follow(
    follower: Follower,
    done: Arc<AtomicBool>,
    sink: Arc<dyn StateSink>,
) -> JoinHandle<Result<Manifest, Cause>> {
    spawn_blocking(move || {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let send = |batch: &mut Vec<_>| {
            let part = StatePart::Chunks(std::mem::take(batch));
            sink.put(part).map_err(|_| checkpoint::images::Error::Closed)
        };
        let mut take = |chunk: Chunk| {
            bytes += chunk.bytes.len();
            batch.push(chunk.into_wire());
            if batch.len() < BATCH && bytes < PIECE {
                return Ok(());
            }
            bytes = 0;
            send(&mut batch)
        };
        let manifest = follower.run(&done, FOLLOW_PAUSE, &mut take)?;
        send(&mut batch)?;
        Ok(manifest)
    })
}
