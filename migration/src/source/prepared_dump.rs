//! The dump before the interruption: the runtime is started, has looked at the container, and waits in
//! front of CRIU.

use std::path::Path;
use std::time::{Duration, Instant};

use checkpoint::cgroup::Cgroup;
use checkpoint::criu::ConfigDir;
use checkpoint::criu_gate::Gate;
use checkpoint::images::{Chunk, Follower, ImageDir};
use checkpoint::rcu_grace_periods::GracePeriods;
use checkpoint::realtime::RealtimePriority;
use checkpoint::runtime::{Checkpoint, Waiting};
use state::cause::Cause;

use super::plan::Plan;

/// How long the runtime may take to come to CRIU before nobody waits for it any more.
const SETTLE: Duration = Duration::from_millis(250);
/// How long it may take to end when the migration turns back.
const END: Duration = Duration::from_secs(2);

/// A runtime that waits, and who reads what it writes.
#[derive(Debug)]
pub struct PreparedDump {
    /// The runtime.
    pub waiting: Waiting,
    /// Its images.
    pub follower: Follower,
    /// Held until it has ended.
    pub warmup: GracePeriods,
}

/// A dump that has ended.
pub struct EndedDump {
    /// When it did.
    pub at: Instant,
    /// What comes now is not to wait for anything.
    pub realtime: RealtimePriority,
}

impl PreparedDump {
    /// Starts the runtime, and waits until it waits.
    pub fn start(
        plan: &Plan,
        work: &Path,
        images: &ImageDir,
        config: &ConfigDir,
    ) -> Result<Self, Cause> {
        let warmup = GracePeriods::for_dump();
        let gate = Gate::create(&work.join("gate"), &plan.shim, &plan.criu)?;
        let request = request(&plan.container.id, images.path(), work, config, None);
        let mut waiting = plan.runtime.start_waiting(&request, gate)?;
        if !waiting.settle(&request, SETTLE)? {
            tracing::debug!("the runtime takes long to come to CRIU");
        }
        Ok(Self { waiting, follower: Follower::new(images.path())?, warmup })
    }

    /// Returns what it has written until now.
    pub fn first_chunks(&mut self) -> Result<Vec<Chunk>, Cause> {
        let mut chunks = Vec::new();
        self.follower.poll(&mut |chunk| {
            chunks.push(chunk);
            Ok(())
        })?;
        Ok(chunks)
    }

    /// Ends it. The container was not touched.
    pub async fn abandon(self) {
        self.waiting.abandon(END).await;
    }
}

/// Returns what is dumped and where to.
pub fn request<'a>(
    id: &'a str,
    images: &'a Path,
    work: &'a Path,
    config: &'a ConfigDir,
    frozen: Option<&'a Cgroup>,
) -> Checkpoint<'a> {
    Checkpoint { id, images, work, config, frozen, external_unix: false, shell_job: false }
}
