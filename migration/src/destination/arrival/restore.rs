//! The restore: a copy that is frozen, cut off, complete, and compared with the original.

use std::time::{Duration, Instant};

use checkpoint::cgroup::Cgroup;
use checkpoint::criu::ConfigDir;
use checkpoint::facts::ContainerFacts;
use checkpoint::images::ImageDir;
use checkpoint::lazy_pages;
use checkpoint::socket_options::SocketSettings;
use checkpoint::tasks::TaskSettings;
use netmig::tunnel;
use protocol::message::Prepared;
use protocol::wire::Connection;
use state::cause::Cause;
use state::deadline;
use tokio::task::{block_in_place, spawn_blocking};

use super::memory::{MemoryGone, MemoryLate};
use super::{Arrival, EngineGone, Incomplete};
use crate::convert::{Settings, Wire};
use crate::destination::verify_copy;

impl Arrival {
    /// Restores the copy; `ordered` is when the source has ordered it.
    pub(super) async fn restore(
        &mut self,
        connection: &mut Connection,
        images: &ImageDir,
        criu_config: &ConfigDir,
        settings: &Settings,
        ordered: Instant,
    ) -> Result<Prepared, Cause> {
        let mut staged = self.staged.take().ok_or(Incomplete("itself"))?;
        let go = Instant::now();
        let follows = self.lazy_pages.is_some();
        let restoring = staged.restore(images.path(), criu_config.path(), follows, deadline::STAGE);
        let (restored, prepared_ends) = tokio::join!(restoring, self.prepare_far_ends());
        let staged = self.staged.insert(staged);
        let restored = restored?;
        prepared_ends?;
        let restore = go.elapsed();
        let done = Instant::now();
        // Nothing of the copy runs before its source has decided.
        let cgroup = self.cgroup.insert(block_in_place(|| staged.frozen_cgroup())?);
        if let Some(lazy_pages) = &mut self.lazy_pages {
            let named = lazy_pages.name_container(restored.pid, &self.offer.id).await;
            named.map_err(|_| MemoryGone)?;
            let pids = cgroup.pids()?;
            // They may be at the source.
            let fetched = spawn_blocking(move || lazy_pages::fetch_arguments(&pids));
            let fetched = tokio::time::timeout(deadline::ANSWER, fetched).await;
            fetched.map_err(|_| MemoryLate)???;
        }
        block_in_place(|| set(settings, cgroup))?;
        let copy = block_in_place(|| ContainerFacts::read(cgroup, restored.pid))?;
        let differences = verify_copy::compare(connection, &copy).await?;
        if !staged.is_awaited() {
            return Err(EngineGone(self.host.engine.kind()).into());
        }
        if self.lazy_pages.as_ref().is_some_and(|lazy_pages| !lazy_pages.is_well()) {
            return Err(MemoryGone.into());
        }
        staged.check_room()?;
        tunnel::check(self.anchor)?;
        Ok(Prepared {
            entries_us: micros(go - ordered),
            restore_us: micros(restore),
            compare_us: micros(done.elapsed()),
            differences: differences.into_wire(),
        })
    }
}

/// Sets on a frozen copy what CRIU does not restore.
fn set(Settings { sockets, tasks, cgroup }: &Settings, copy: &Cgroup) -> Result<(), Cause> {
    copy.apply(cgroup)?;
    if sockets.is_empty() && tasks.is_empty() {
        return Ok(());
    }
    let pids = copy.pids()?;
    SocketSettings::apply(sockets, &pids)?;
    Ok(TaskSettings::apply(tasks, &pids)?)
}

/// Returns a time in the protocol's unit.
fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
