//! Freezes the tasks of a cgroup, and nobody else who is in it.
//!
//! crun with systemd's cgroups keeps a process of its own in the container's cgroup, which it waits for at
//! the end of a restore (`restore_proxy_process`, `src/libcrun/container.c`). A frozen cgroup would stop
//! that one as well. So the tasks go to a cgroup below, which is frozen, and come back once the whole is
//! frozen and crun has ended. A task that goes from a frozen cgroup to a frozen one stays frozen all the
//! time (`cgroup_freezer_migrate_task`, `kernel/cgroup/freezer.c`).

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;

use super::{Cgroup, Error};

/// The cgroup below a container's, for the time of its restore.
const APART: &str = "netmig-restored";
/// Most rounds in which tasks are moved: those that are made meanwhile need another one.
const ROUNDS: usize = 16;

impl Cgroup {
    /// Freezes the tasks that are in this cgroup itself, and none that is in a cgroup below it. Does not wait
    /// for them to stop. They count as tasks of a cgroup below until [`Cgroup::rejoin`].
    ///
    /// # Errors
    /// [`Error::Access`].
    pub(crate) fn freeze_apart(&self) -> Result<(), Error> {
        if !self.has_others()? {
            return self.tell_to_freeze();
        }
        let apart = self.path.join(APART);
        match fs::create_dir(&apart) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::Access { path: apart, source: e });
            }
            _ => {}
        }
        write(&apart.join("cgroup.freeze"), "1")?;
        move_tasks(&self.path, &apart)
    }

    /// Takes back the tasks of [`Cgroup::freeze_apart`]; returns whether there were any. This cgroup must have
    /// been told to freeze.
    ///
    /// # Errors
    /// [`Error::Access`].
    pub fn rejoin(&self) -> Result<bool, Error> {
        let apart = self.path.join(APART);
        if !apart.exists() {
            return Ok(false);
        }
        move_tasks(&apart, &self.path)?;
        fs::remove_dir(&apart).map_err(|source| Error::Access { path: apart, source })?;
        Ok(true)
    }

    /// Whether there is a process in a cgroup below.
    fn has_others(&self) -> Result<bool, Error> {
        let below = self.pids()?.len();
        Ok(below > processes(&self.path)?.len())
    }
}

/// Moves every process from one cgroup itself to another one.
fn move_tasks(from: &Path, to: &Path) -> Result<(), Error> {
    let to = to.join("cgroup.procs");
    for _ in 0..ROUNDS {
        let processes = processes(from)?;
        if processes.is_empty() {
            return Ok(());
        }
        for process in processes {
            match write(&to, &process.to_string()) {
                // It has ended.
                Err(Error::Access { source, .. })
                    if source.raw_os_error() == Some(Errno::ESRCH as i32) => {}
                other => other?,
            }
        }
    }
    Err(Error::NotFrozen { path: from.to_path_buf() })
}

/// The processes in a cgroup itself.
fn processes(cgroup: &Path) -> Result<Vec<i32>, Error> {
    let path = cgroup.join("cgroup.procs");
    let text = fs::read_to_string(&path).map_err(|source| Error::Access { path, source })?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect())
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(|source| Error::Access { path: path.to_path_buf(), source })
}
