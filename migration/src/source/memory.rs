//! How the memory of the container gets to the destination.

use std::path::Path;
use std::time::{Duration, Instant};

use checkpoint::cgroup::Cgroup;
use checkpoint::direct_io;
use checkpoint::lazy_pages;
use checkpoint::write_tracking;
use engine::inspect::Container;
use protocol::message::{MEMORY, POST_COPY, SHARED_MEMORY};
use protocol::wire::Connection;
use state::blocker::Blocker;

use super::failure::Failure;
use super::forecast::ExpectedInterruption;
use crate::request::{MemoryMode, NonConverging, Options};

/// Why memory cannot go over after the decision.
pub(super) const NO_POST_COPY: &str =
    "the destination's agent-server does not take memory after the decision";

/// The same for this host's kernel: on Linux 6.1 a container that changed its mappings meanwhile was seen to end.
pub(super) const OLD_KERNEL: &str =
    "this host's kernel is too old for memory that goes over after the decision (Linux 6.7 can)";

/// When the memory goes over.
#[derive(Debug)]
pub enum MemoryPlan {
    /// While the container is frozen.
    Frozen,
    /// While it runs.
    Running {
        /// The rest goes over after the decision, when so many rounds have gone over before.
        post_copy: Option<usize>,
        /// The user wants nothing else.
        is_ordered: bool,
        /// Why the container cannot be moved otherwise.
        blocked: Option<Blocker>,
    },
}

impl MemoryPlan {
    /// Chooses how the memory goes over, and leaves it out of the interruption that is expected if it goes before.
    ///
    /// # Errors
    /// A refusal, if it cannot go as the user wants.
    pub fn choose(
        options: &Options,
        connection: &Connection,
        cgroup: &Cgroup,
        expected: &mut ExpectedInterruption,
    ) -> Result<Self, Failure> {
        let mode = options.memory;
        let is_ordered = !matches!(mode, MemoryMode::Auto | MemoryMode::Stop);
        let post_copy = match mode {
            MemoryMode::PostCopy => Some(0),
            MemoryMode::Hybrid => Some(1),
            MemoryMode::Auto | MemoryMode::Stop | MemoryMode::PreCopy => None,
        };
        let is_wanted = is_ordered || mode == MemoryMode::Auto && expected.is_memory_slow();
        if !is_wanted {
            return Ok(Self::Frozen);
        }
        let reason = if post_copy.is_some() && !connection.has(POST_COPY) {
            Some(NO_POST_COPY.to_owned())
        } else if post_copy.is_some() && write_tracking::stops() {
            Some(OLD_KERNEL.to_owned())
        } else if connection.has(MEMORY) {
            write_tracking::obstacle().or_else(|| match post_copy {
                // No page goes over before the container is frozen.
                Some(0) => None,
                _ => direct_io::find(&cgroup.pids().ok()?).map(|file| file.to_string()),
            })
        } else {
            Some(
                "the destination's agent-server does not take memory while the container runs"
                    .to_owned(),
            )
        };
        match reason {
            None => {
                if options.non_converging == NonConverging::Throttle && post_copy.is_none() {
                    can_slow_down(cgroup)?;
                }
                let blocked = expected.leave_memory_out(connection.has(SHARED_MEMORY));
                Ok(Self::Running { post_copy, is_ordered, blocked })
            }
            Some(reason) if is_ordered => {
                let code = if post_copy.is_some() { "no-post-copy" } else { "no-pre-copy" };
                let message = format!("{reason}; move it with --memory stop");
                Err(Failure::blocked(vec![Blocker::new(code, message)]))
            }
            Some(reason) => {
                tracing::info!("memory goes over while the container is frozen: {reason}");
                Ok(Self::Frozen)
            }
        }
    }
}

/// Checks that the kernel can limit how much of the processors the container uses. To freeze it again and again would do, too,
/// but each freeze ends system calls of its tasks.
fn can_slow_down(cgroup: &Cgroup) -> Result<(), Failure> {
    let limits = cgroup.cpu_limits().map_err(|e| Failure::Refused(e.into()))?;
    if limits.is_empty() {
        let message = "this host's kernel cannot limit the processors that the container uses: the controller \"cpu\" is not \
                       enabled for its control group of version 2; use --non-converging go-on or go-back";
        return Err(Failure::blocked(vec![Blocker::new("no-throttle", message)]));
    }
    Ok(())
}

/// How long a move waits for it: less than the far end waits for the offer (`deadline::ANSWER`). Somebody may have stopped what does it.
const LIMIT: Duration = Duration::from_secs(15);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Waits until all memory of a container is in place. A dump would not have the pages that are missing.
pub async fn await_whole(run: &Path, container: &Container) -> Result<(), Failure> {
    let give_up = Instant::now() + LIMIT;
    let look = || lazy_pages::is_under_way(run, &container.id);
    while look().map_err(|e| Failure::Refused(e.into()))? {
        if Instant::now() >= give_up {
            let message = format!(
                "{} is busy: pages of its memory are still put in place after its last move; try again when that is over",
                container.name
            );
            return Err(Failure::blocked(vec![Blocker::new("busy", message)]));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}
