//! What goes to the destination before the interruption, and the tunnel by which flows will.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use checkpoint::tree::{Source, Tasks};
use checkpoint::write_tracking;
use netmig::flow::{NoAlias, Readdressed};
use netmig::tunnel;
use protocol::expect;
use protocol::message::{Data, LEAN_MEMORY, Message, POST_COPY, SHARED_MEMORY, Tree};
use protocol::wire::PIECE;
use state::blocker::Blocker;
use state::cause::{Cause, chain};
use state::deadline;
use state::directories::create_private;
use state::journal::Record;
use steering::reconciler;
use steering::tunnels::{self, SteeringLock, TunnelEnd};
use tokio::io::AsyncReadExt;
use tokio::task::{block_in_place, spawn_blocking};

use super::Preparation;
use crate::convert::Wire;
use crate::event::Steps;
use crate::request::{NonConverging, Options};
use crate::source::anchors::Anchors;
use crate::source::container_log::CarriedLog;
use crate::source::engine_orders::Ended;
use crate::source::frozen_original::Original;
use crate::source::memory::{MemoryPlan, NO_POST_COPY, OLD_KERNEL};
use crate::source::memory_rounds::{MemoryRounds, Next, Takes};
use crate::source::memory_service::{MemoryService, PATIENCE};
use crate::source::migration::Migration;
use crate::source::path_trial;
use crate::source::plan::Plan;
use crate::source::trees::{self, CarriedTree, Which};
use crate::state_stream::StateSink;
use crate::state_stream::peer::PeerSink;

/// The destination's end of the tunnel is of another kind than this host's.
#[derive(Debug, thiserror::Error)]
#[error("the destination has answered with another kind of tunnel than this host asked for")]
struct NotAsAsked;

/// The container writes its memory too fast.
#[derive(Debug, thiserror::Error)]
#[error(
    "the container writes its memory so fast that the rest would take {:.2} s once it is frozen{}, and {:.2} s are allowed: allow \
     more (--downtime-limit), or have the move go on all the same (--non-converging go-on)",
    .expected.as_secs_f64(),
    slowed(*.processors),
    .limit.as_secs_f64()
)]
struct NotConverging {
    expected: Duration,
    limit: Duration,
    /// How many processors it had, if it was slowed down.
    processors: Option<f64>,
}

fn slowed(processors: Option<f64>) -> String {
    processors.map_or_else(String::new, |it| {
        format!(" although it was slowed down to {it:.2} processors")
    })
}

/// The destination speaks of addresses that are none of the container's.
#[derive(Debug, thiserror::Error)]
#[error("the destination gives the container addresses in place of some that it does not have")]
struct NotItsAddresses;

impl Preparation<'_> {
    /// Makes this host's end of the tunnel and hears of the other one.
    pub(super) async fn offer_tunnel(&mut self) -> Result<TunnelEnd, Cause> {
        let link = &self.migration.plan.link;
        let (peer, address) = (link.peer, link.connection.peer().ip());
        let direct = self.migration.plan.offer.direct.is_some();
        let run = &self.migration.context.directories.run;
        let lock = SteeringLock::take(run).await?;
        let local = tunnels::prepare(peer, address, direct).await?;
        // The journal keeps the tunnel from being removed meanwhile.
        drop(lock);
        self.migration.tunnel_kind = local.kind.to_string();
        let connection = &mut self.migration.plan.link.connection;
        connection.send(&Message::TunnelOffer(local.into_wire())).await?;
        let answer = TunnelEnd::from_wire(expect!(connection, deadline::ANSWER, TunnelAnswer)?)?;
        if answer.is_direct() != direct {
            return Err(NotAsAsked.into());
        }
        self.migration.anchors =
            Anchors::agree(self.migration.context, &mut self.migration.plan).await;
        Ok(answer)
    }

    pub(super) async fn connect_tunnel(&mut self, end: &TunnelEnd) -> Result<(), Cause> {
        let link = &self.migration.plan.link;
        let _lock = SteeringLock::take(&self.migration.context.directories.run).await?;
        tunnels::complete(link.peer, link.connection.peer().ip(), end).await?;
        Ok(reconciler::start(
            &self.migration.context.directories,
            self.migration.context.background.reconciler,
        )?)
    }

    pub(super) async fn ship_image(&mut self, steps: &mut Steps<'_>) -> Result<(), Cause> {
        let image = self.migration.plan.offer.image.clone();
        let connection = &mut self.migration.plan.link.connection;
        let before = connection.sent();
        connection.send(&Message::ImageBegin(image.clone())).await?;
        // Its name may be another image's by now.
        let mut save = self.migration.context.engine.save_image(&image.id)?;
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            let read = save.stream().take(PIECE as u64).read_to_end(&mut piece).await?;
            if read == 0 {
                break;
            }
            connection.send_bulk(&Message::ImageData(Data(piece))).await?;
            steps.add_bytes(read as u64);
        }
        save.finish().await?;
        connection.send(&Message::ImageEnd(())).await?;
        expect!(connection, deadline::IMAGE, ImageStored)?;
        steps.add_sent(connection.sent() - before);
        let destination = &self.migration.plan.link.destination.host;
        self.migration.sent_image = Some(format!(
            "image {} is at {destination} now; remove it there if it is not wanted",
            image.name
        ));
        Ok(())
    }

    /// Waits for the stage, and meanwhile tries the tunnel together with the far end: what the far
    /// end says of a failure counts more than its silence in the tunnel.
    pub(super) async fn await_stage(&mut self) -> Result<(), Cause> {
        let Plan { link, runtime, criu, .. } = &mut self.migration.plan;
        let staged = async {
            let readdressed = expect!(link.connection, deadline::STAGE, Staged)?;
            Ok::<_, Cause>(readdressed)
        };
        let heard = async {
            // The first packet through a tunnel waits for its handshake: not inside the interruption.
            tunnel::establish(link.peer).await?;
            Ok(tunnel::confirm(link.peer).await?)
        };
        let warmed = async { Ok(runtime.warm(criu).await?) };
        let (others, (), ()) = tokio::try_join!(staged, heard, warmed)?;
        let own = &self.migration.plan.addresses;
        let sound = |(old, new): &(IpAddr, IpAddr)| {
            own.contains(old) && old != new && old.is_ipv4() == new.is_ipv4()
        };
        if others.len() > own.len() || !others.iter().all(sound) {
            return Err(NotItsAddresses.into());
        }
        let aliases = &self.migration.plan.aliases;
        let become_new = |(old, new)| {
            let tunnel = aliases.of(old)?.address;
            Ok::<_, NoAlias>(Readdressed { old, tunnel, new })
        };
        self.migration.plan.readdressed =
            others.into_iter().map(become_new).collect::<Result<_, _>>()?;
        Ok(())
    }

    pub(super) async fn send_files(&mut self, steps: &mut Steps<'_>) -> Result<(), Cause> {
        let before = self.migration.plan.link.connection.sent();
        let container = &self.migration.plan.container;
        let mut sources = Vec::new();
        if let (Some(upper), Some(merged)) = (&container.upper, &container.merged) {
            sources.push((Tree::Root, Source::overlay(upper, merged)?));
        }
        if let Some(shm) = container.shm.as_deref().filter(|path| path.is_dir()) {
            let shm = seen_inside(shm, self.migration.plan.process.pid)
                .ok_or_else(|| Ended(container.name.clone()))?;
            sources.push((Tree::SharedMemory, Source::plain(&shm)?));
        }
        if let Some(path) = container.log.as_deref().filter(|path| path.is_file()) {
            let mut log = CarriedLog::open(path)?;
            let pass = move |sink: &dyn StateSink| {
                log.pass(sink)?;
                Ok(log)
            };
            let log = self.send_parts(steps, pass).await?;
            self.ready.log = Some(log);
        }
        for (tree, source) in sources {
            let which = Which::Own(tree);
            let pass = move |sink: &dyn StateSink| {
                let (snapshot, _) =
                    trees::send(which, sink, |records| source.first_pass(Tasks::Running, records))?;
                Ok(CarriedTree { which, source, snapshot })
            };
            let carried = self.send_parts(steps, pass).await?;
            let connection = &mut self.migration.plan.link.connection;
            expect!(connection, deadline::TREE, TreeApplied)?;
            self.ready.trees.push(carried);
        }
        steps.add_sent(self.migration.plan.link.connection.sent() - before);
        Ok(())
    }

    /// Sends the memory in rounds while the container runs, if that was planned.
    pub(super) async fn send_memory(
        &mut self,
        steps: &mut Steps<'_>,
        options: &Options,
    ) -> Result<(), Cause> {
        let plan = &self.migration.plan;
        let MemoryPlan::Running { post_copy, .. } = plan.memory else { return Ok(()) };
        steps.begin("memory, while it runs");
        create_private(&self.migration.work)?;
        let (cgroup, connection) = (Arc::clone(&plan.cgroup), &plan.link.connection);
        let takes = Takes {
            empty_pages: connection.has(LEAN_MEMORY),
            shared_memory: connection.has(SHARED_MEMORY),
        };
        let rounds = MemoryRounds::prepare(&self.migration.work, &plan.criu, cgroup, takes).await;
        let mut rounds = match rounds {
            Ok(rounds) => rounds,
            Err(cause) => return self.give_memory_up(cause),
        };
        if rounds.freezes() && post_copy != Some(0) {
            block_in_place(|| self.migration.note_interruption())?;
        }
        let before = self.migration.plan.link.connection.sent();
        if post_copy == Some(0) {
            // No process can wait for a page of what it shares.
            let round = move |sink: &dyn StateSink| {
                rounds.shared_round(sink)?;
                Ok(rounds)
            };
            rounds = self.send_parts(steps, round).await?;
        }
        while post_copy.is_none_or(|most| rounds.count() < most) {
            let round = move |sink: &dyn StateSink| {
                let next = rounds.round(sink);
                Ok((rounds, next))
            };
            let (back, next) = self.send_parts(steps, round).await?;
            rounds = back;
            match next {
                Ok(Next::Round) => {}
                Ok(Next::Rest) => break,
                Ok(Next::Stuck) if self.slow_down(&mut rounds, options)? => {}
                Ok(Next::Stuck) => break,
                // Nothing of it can be followed here.
                Err(cause) if rounds.count() == 0 => return self.give_memory_up(cause),
                Err(cause) => return Err(cause),
            }
        }
        steps.add_sent(self.migration.plan.link.connection.sent() - before);
        self.ready.memory = Some(rounds);
        Ok(())
    }

    /// Slows a container down whose rest would take too long, if the user wants that. Returns whether there is to be another
    /// round.
    fn slow_down(&mut self, rounds: &mut MemoryRounds, options: &Options) -> Result<bool, Cause> {
        let is_wanted = options.non_converging == NonConverging::Throttle;
        if !is_wanted || rounds.expected() <= options.downtime_limit {
            return Ok(false);
        }
        let is_slower = block_in_place(|| self.migration.slow_down(rounds.processors()))?;
        rounds.begin_again();
        Ok(is_slower)
    }

    /// Has the memory go over while the container is frozen, unless the user or the length of that forbids it.
    fn give_memory_up(&mut self, cause: Cause) -> Result<(), Cause> {
        match std::mem::replace(&mut self.migration.plan.memory, MemoryPlan::Frozen) {
            MemoryPlan::Running { is_ordered: false, blocked: None, .. } => {
                tracing::info!(
                    "memory goes over while the container is frozen: {}",
                    chain(&*cause)
                );
                Ok(())
            }
            MemoryPlan::Running { is_ordered: false, blocked: Some(blocker), .. } => {
                Err(path_trial::Blocked(vec![blocker]).into())
            }
            _ => Err(cause),
        }
    }

    /// Sends what was written while the container was staged, in the last rounds.
    ///
    /// # Errors
    /// As much is written meanwhile that the rest would take too long, and the user wants the move to go back then.
    pub(super) async fn send_memory_again(&mut self, options: &Options) -> Result<(), Cause> {
        let Some(mut rounds) = self.ready.memory.take() else { return Ok(()) };
        if let MemoryPlan::Running { post_copy: Some(_), .. } = self.migration.plan.memory {
            self.leave_rest_for_later(&mut rounds, options).await?;
            self.ready.memory = Some(rounds);
            return Ok(());
        }
        // The first of them has what was written in more time than a round takes.
        rounds.begin_again();
        loop {
            let (sink, mut parts) = PeerSink::new();
            let pass = spawn_blocking(move || rounds.round(&sink).map(|next| (rounds, next)));
            while let Some(part) = parts.recv().await {
                self.migration.plan.link.connection.send_bulk(&part.into()).await?;
            }
            let (back, next) = pass.await??;
            rounds = back;
            match next {
                Next::Round => {}
                Next::Rest => break,
                Next::Stuck if self.slow_down(&mut rounds, options)? => {}
                Next::Stuck => break,
            }
        }
        let (expected, limit) = (rounds.expected(), options.downtime_limit);
        if expected > limit {
            match options.non_converging {
                NonConverging::GoOn => {}
                NonConverging::GoBack | NonConverging::Throttle => {
                    let processors = self.migration.share.processors();
                    return Err(NotConverging { expected, limit, processors }.into());
                }
                NonConverging::PostCopy => self.leave_rest_for_later(&mut rounds, options).await?,
            }
        }
        self.ready.memory = Some(rounds);
        Ok(())
    }

    /// Has the rest of the memory go over after the decision, and connects with the destination for that.
    async fn leave_rest_for_later(
        &mut self,
        rounds: &mut MemoryRounds,
        options: &Options,
    ) -> Result<(), Cause> {
        let Migration { context, plan, journal, .. } = &mut self.migration;
        let refused = |reason: String| {
            let message = format!("{reason}; move it with --memory pre-copy or stop");
            path_trial::Blocked(vec![Blocker::new("no-post-copy", message)])
        };
        if write_tracking::stops() {
            return Err(refused(OLD_KERNEL.to_owned()).into());
        }
        if !plan.link.connection.has(POST_COPY) {
            return Err(refused(NO_POST_COPY.to_owned()).into());
        }
        let original = Original::new(Some(Arc::clone(&plan.cgroup)));
        let state = context.directories.state.clone();
        let service =
            MemoryService::start(state, plan.far_end(), original, PATIENCE, options.bulk).await;
        let service = service.map_err(|e| refused(chain(&e)))?;
        block_in_place(|| journal.append(&Record::PostCopy))?;
        rounds.leave_rest_for_later();
        self.migration.memory_service = Some(service);
        Ok(())
    }

    /// Sends what `pass` puts into the sink, as it comes, and returns what `pass` returns.
    pub(super) async fn send_parts<T: Send + 'static>(
        &mut self,
        steps: &mut Steps<'_>,
        pass: impl FnOnce(&dyn StateSink) -> Result<T, Cause> + Send + 'static,
    ) -> Result<T, Cause> {
        let (sink, mut parts) = PeerSink::new();
        let pass = spawn_blocking(move || pass(&sink));
        let connection = &mut self.migration.plan.link.connection;
        while let Some(part) = parts.recv().await {
            let payload = part.payload();
            connection.send_bulk(&part.into()).await?;
            steps.add_bytes(payload);
        }
        pass.await?
    }
}

/// Returns the container's mount of its shared memory, by the path through its first process: a file that is open below the
/// engine's own mount would keep the engine from unmounting it when it stops the container. `mount` is the engine's
/// own, which is returned unless the container has the same directory there; `None` is returned when the process has
/// ended.
fn seen_inside(mount: &Path, pid: i32) -> Option<PathBuf> {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    std::fs::metadata(&root).ok()?;
    let inside = root.join("dev/shm");
    let identity = |path: &Path| {
        let directory = std::fs::symlink_metadata(path).ok()?;
        Some((directory.dev(), directory.ino()))
    };
    let own = identity(mount);
    Some(if own.is_some() && identity(&inside) == own { inside } else { mount.to_owned() })
}
