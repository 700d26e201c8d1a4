//! The memory, in rounds while the container runs.

use std::sync::Arc;
use std::time::Duration;

use checkpoint::direct_io::{self, DirectFile};
use checkpoint::write_tracking;
use protocol::message::{LEAN_MEMORY, POST_COPY, SHARED_MEMORY};
use state::blocker::Blocker;
use state::cause::{Cause, chain};
use state::directories::create_private;
use state::journal::Record;
use tokio::task::{block_in_place, spawn_blocking};

use super::Preparation;
use crate::event::Steps;
use crate::request::{NonConverging, Options};
use crate::source::frozen_original::Original;
use crate::source::memory::{MemoryPlan, NO_POST_COPY, OLD_KERNEL};
use crate::source::memory_rounds::{MemoryRounds, Next, Takes};
use crate::source::memory_service::{MemoryService, PATIENCE};
use crate::source::migration::Migration;
use crate::source::path_trial;
use crate::state_stream::StateSink;
use crate::state_stream::peer::PeerSink;

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

/// A file was opened for direct I/O after the preflight.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0}; it was opened while memory went over: try again, and memory goes over while the container is frozen"
)]
struct OpenedMeanwhile(DirectFile);

impl Preparation<'_> {
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
            let has_sent = rounds.count() > 0;
            self.ready.memory = Some(rounds);
            return if has_sent { self.check_direct_io() } else { Ok(()) };
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
        self.check_direct_io()
    }

    /// Refuses memory that has gone over while something wrote to it past the kernel's notes.
    fn check_direct_io(&self) -> Result<(), Cause> {
        let cgroup = &self.migration.plan.cgroup;
        match block_in_place(|| Ok::<_, Cause>(direct_io::find(&cgroup.pids()?)))? {
            None => Ok(()),
            Some(file) => Err(OpenedMeanwhile(file).into()),
        }
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
}
