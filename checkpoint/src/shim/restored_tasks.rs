//! The tasks that a runtime restores, until they are frozen. A limit of processors that the container has would hold the
//! restore up, since a part of it is done by the tasks themselves. It is lifted until they are about to be resumed.

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::chain;
use crate::cgroup::{self, Cgroup, CpuLimit};
use crate::criu_gate::Attend;

/// The tasks of one restore.
pub(super) struct RestoredTasks {
    /// The container's full ID.
    id: String,
    /// CRIU's log, to which an error is added: CRIU's own lines say only that its client has failed.
    log: PathBuf,
    limits: Mutex<Option<Lifted>>,
}

/// Limits that were lifted.
struct Lifted {
    cgroup: Cgroup,
    before: Vec<CpuLimit>,
    set: Vec<CpuLimit>,
}

impl RestoredTasks {
    pub(super) fn new(id: String, log: PathBuf) -> Self {
        Self { id, log, limits: Mutex::new(None) }
    }

    /// Lifts the limits of the container if this process is in its cgroup.
    fn lift(&self, process: i32) -> Result<Option<Lifted>, cgroup::Error> {
        let cgroup = match Cgroup::of_pid(process, &self.id) {
            // Not yet, or never.
            Err(cgroup::Error::NotOwn { .. }) => return Ok(None),
            other => other?,
        };
        let before = cgroup.cpu_limits()?;
        let set: Vec<CpuLimit> = before.iter().map(|limit| limit.lifted()).collect();
        let lifted = Lifted { cgroup, before, set };
        if lifted.before != lifted.set
            && let Err(error) = lifted.cgroup.set_cpu_limits(&lifted.set)
        {
            // Some may have been set.
            lifted.put_back()?;
            return Err(error);
        }
        Ok(Some(lifted))
    }

    /// Freezes what CRIU is about to let go. runc puts CRIU itself into the container's cgroup, where it would
    /// stop as well: it comes to this process's own.
    fn try_freeze(&self, first: i32, criu: i32) -> Result<(), cgroup::Error> {
        let lifted = self.limits.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(lifted) = lifted {
            lifted.put_back()?;
        }
        let container = match Cgroup::of_pid(first, &self.id) {
            // crun restores some containers in its own cgroup and moves them afterwards. They are frozen as soon
            // as it has ended (`Staged::frozen_cgroup`).
            Err(cgroup::Error::NotOwn { .. }) => return Ok(()),
            other => other?,
        };
        if container.pids()?.contains(&criu) {
            cgroup::bring_here(criu)?;
        }
        container.freeze_restored_tasks()
    }
}

impl Lifted {
    fn put_back(&self) -> Result<(), cgroup::Error> {
        match self.before == self.set {
            true => Ok(()),
            false => self.cgroup.set_cpu_limits(&self.before),
        }
    }
}

impl Attend for RestoredTasks {
    fn at_work(&self, process: i32) {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        if limits.is_some() {
            return;
        }
        // If they cannot be lifted, the restore takes longer, and nothing else.
        *limits = self.lift(process).ok().flatten();
    }

    fn freeze(&self, first: i32, criu: i32) -> io::Result<()> {
        self.try_freeze(first, criu).map_err(|error| {
            let line = format!("Error (netmig): the copy cannot be frozen: {}\n", chain(&error));
            let log = fs::OpenOptions::new().append(true).create(true).open(&self.log);
            let _ = log.and_then(|mut log| log.write_all(line.as_bytes()));
            io::Error::other(error)
        })
    }
}
