//! The cgroup (version 2) of a container: found by its process, frozen, thawed, measured.
//!
//! Freezing the wrong cgroup can stop a whole host. So a [`Cgroup`] exists only for a directory whose name carries the
//! container's full ID and that holds the container's process.
//! Kernel reference: `Documentation/admin-guide/cgroup-v2.rst`, "Core Interface Files".

mod controllers;
mod cpu_limit;
mod freeze_watch;
mod freezer;
mod locate;
mod partial_freeze;
mod tasks_outside;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::procfs;

pub use self::controllers::{CgroupSetting, Error as SettingError};
pub use self::cpu_limit::{CPU_MAX, CpuLimit};
pub use self::freeze_watch::FreezeWatch;

/// Longest sleep between two looks at `cgroup.events`, in milliseconds. The kernel wakes us by
/// POLLPRI, but at most once in 10 ms (`CGROUP_FILE_NOTIFY_MIN_INTV` in
/// `kernel/cgroup/cgroup.c`): a freeze soon after a thaw would be told late.
const LOOK_EVERY_MS: u16 = 1;
/// Deepest tree of sub-cgroups that is walked.
const DEPTH: usize = 16;
/// Most processes that are listed.
const MOST_PIDS: usize = 1 << 20;

/// What can go wrong with a container's cgroup.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of procfs or cgroupfs could not be read or written.
    #[error("cannot access {path}")]
    Access {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process ID cannot be that of a container.
    #[error("process ID {0} is not that of a container; is the container running?")]
    BadPid(i32),
    /// Not the full ID of a container.
    #[error("{0:?} is not a full container ID of 64 hexadecimal digits")]
    BadId(String),
    /// The process is in a cgroup that is not the container's own.
    #[error(
        "cgroup {cgroup:?} of process {pid} is not that of container {id}; \
         a container with --cgroups=disabled or a custom cgroup cannot be moved"
    )]
    NotOwn {
        /// The cgroup as the kernel names it.
        cgroup: String,
        /// The process.
        pid: i32,
        /// The container.
        id: String,
    },
    /// No cgroup of version 2 for the process, or none mounted here.
    #[error("no cgroup v2 hierarchy with {0:?} is mounted; mount cgroup2 at /sys/fs/cgroup")]
    NotMounted(String),
    /// Not all tasks stopped in time; the cgroup was thawed again.
    #[error("tasks in {path} did not freeze in time (uninterruptible I/O?); it is thawed again")]
    NotFrozen {
        /// The cgroup's directory.
        path: PathBuf,
    },
    /// Killed tasks are still there.
    #[error("killed tasks in {path} do not end (uninterruptible I/O?)")]
    NotKilled {
        /// The cgroup's directory.
        path: PathBuf,
    },
}

/// The cgroup of one container, with its control files open, so that freezing is one write.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    freeze: File,
    events: File,
}

impl Cgroup {
    /// Finds the cgroup of container `id` (64 hexadecimal digits) by its first process.
    ///
    /// A container that divides its own cgroup (systemd inside puts itself into `init.scope`)
    /// has its processes further down; the container's own cgroup is what is returned. It is
    /// the one that the runtime names to CRIU as `freeze-cgroup`: were it another, CRIU would
    /// wait for tasks that a parent keeps frozen.
    ///
    /// # Errors
    /// When the process or its cgroup is not what a container's must be; see [`Error`].
    pub fn of_pid(pid: i32, id: &str) -> Result<Self, Error> {
        if pid <= 1 {
            return Err(Error::BadPid(pid));
        }
        let proc_file = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let cgroups = read(&proc_file)?;
        let mounts = read(Path::new("/proc/self/mountinfo"))?;
        let path = locate::directory(&cgroups, &mounts, pid, id)?;
        let cgroup = Self::open(path)?;
        // The path was put together from two files of two namespaces: make sure that it leads
        // to the process.
        if !cgroup.pids()?.contains(&pid) {
            return Err(Error::NotOwn {
                cgroup: cgroup.path.to_string_lossy().into_owned(),
                pid,
                id: id.to_owned(),
            });
        }
        Ok(cgroup)
    }

    /// Opens the control files below `path`.
    fn open(path: PathBuf) -> Result<Self, Error> {
        let file = |name: &str, write: bool| {
            let path = path.join(name);
            OpenOptions::new()
                .read(true)
                .write(write)
                .open(&path)
                .map_err(|source| Error::Access { path, source })
        };
        let freeze = file("cgroup.freeze", true)?;
        let events = file("cgroup.events", false)?;
        Ok(Self { path, freeze, events })
    }

    /// Returns the cgroup's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Kills every task, frozen or not: none of them runs again (`cgroup.kill`, since Linux 5.14). Waits until
    /// they are gone. Blocks the calling thread.
    ///
    /// # Errors
    /// [`Error::Access`]; [`Error::NotKilled`] when `deadline` passes. A cgroup that is gone (ENODEV, ENOENT)
    /// counts as killed.
    pub fn kill(&self, deadline: Instant) -> Result<(), Error> {
        match fs::write(self.path.join("cgroup.kill"), "1") {
            Err(e) if is_gone(&e) => return Ok(()),
            other => other.map_err(|source| self.access("cgroup.kill", source))?,
        }
        while self.is_populated()? {
            if Instant::now() >= deadline {
                return Err(Error::NotKilled { path: self.path.clone() });
            }
            let mut fds = [PollFd::new(self.events.as_fd(), PollFlags::POLLPRI)];
            let _ = poll(&mut fds, PollTimeout::from(LOOK_EVERY_MS));
        }
        Ok(())
    }

    /// Returns whether any process is left in it or below.
    ///
    /// # Errors
    /// [`Error::Access`]; a cgroup that is gone (ENODEV) counts as empty.
    pub fn is_populated(&self) -> Result<bool, Error> {
        match self.event("populated") {
            Ok(value) => Ok(value == Some(true)),
            Err(Error::Access { source, .. })
                if source.raw_os_error() == Some(nix::libc::ENODEV) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns all processes in it and its sub-cgroups, in ascending order. Processes of other PID
    /// namespaces that cannot be named here are left out.
    ///
    /// # Errors
    /// [`Error::Access`].
    pub fn pids(&self) -> Result<Vec<i32>, Error> {
        let mut pids = Vec::new();
        collect_pids(&self.path, DEPTH, &mut pids)?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Returns the memory in use, in bytes: `memory.current` where the memory controller is in this
    /// hierarchy, else the anonymous and shared resident memory of its processes, which counts
    /// shared pages once for each process and no page cache.
    ///
    /// # Errors
    /// [`Error::Access`].
    pub fn memory_current(&self) -> Result<u64, Error> {
        let path = self.path.join("memory.current");
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| Error::Access {
                path,
                source: io::Error::new(io::ErrorKind::InvalidData, "not a number"),
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Ok(self.pids()?.into_iter().map(procfs::resident_memory).sum())
            }
            Err(source) => Err(Error::Access { path, source }),
        }
    }

    /// Returns a value of `cgroup.events`, without allocating: this runs in the interruption.
    fn event(&self, key: &str) -> Result<Option<bool>, Error> {
        let mut buffer = [0; 256];
        let n = self
            .events
            .read_at(&mut buffer, 0)
            .map_err(|source| self.access("cgroup.events", source))?;
        Ok(value_of(&buffer[..n], key))
    }

    fn access(&self, name: &str, source: io::Error) -> Error {
        Error::Access { path: self.path.join(name), source }
    }
}

/// Returns a value of `cgroup.events`, given its content.
fn value_of(events: &[u8], key: &str) -> Option<bool> {
    let text = std::str::from_utf8(events).unwrap_or_default();
    let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.find(|(name, _)| *name == key).map(|(_, value)| value == "1")
}

/// Adds the processes of `dir` and of its sub-cgroups; one that vanishes meanwhile has none.
fn collect_pids(dir: &Path, depth: usize, pids: &mut Vec<i32>) -> Result<(), Error> {
    let path = dir.join("cgroup.procs");
    match fs::read_to_string(&path) {
        Ok(text) => {
            // 0 is a process that has no number in our PID namespace.
            let numbers = text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0);
            pids.extend(numbers.take(MOST_PIDS.saturating_sub(pids.len())));
        }
        Err(e) if is_gone(&e) => return Ok(()),
        // A threaded sub-cgroup lists its processes in its parent alone.
        Err(e) if e.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => {}
        Err(source) => return Err(Error::Access { path, source }),
    }
    if depth == 0 {
        return Ok(());
    }
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if is_gone(&e) => return Ok(()),
        Err(source) => return Err(Error::Access { path: dir.into(), source }),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect_pids(&entry.path(), depth - 1, pids)?;
        }
    }
    Ok(())
}

/// Returns whether a cgroup or process ended while we looked.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
}

/// Returns the directory of the cgroup that this text of a `/proc/PID/cgroup` tells, whichever it is.
///
/// # Errors
/// [`Error::NotMounted`], [`Error::Access`].
pub(crate) fn directory(cgroups: &str) -> Result<PathBuf, Error> {
    let mounts = read(Path::new("/proc/self/mountinfo"))?;
    locate::whole(cgroups, &mounts).ok_or_else(|| Error::NotMounted(cgroups.trim().to_owned()))
}

/// Opens the list of processes of the cgroup of a process, to which others are added.
///
/// # Errors
/// [`Error::NotMounted`], [`Error::Access`].
pub fn members(pid: i32) -> Result<File, Error> {
    let cgroups = read(Path::new(&format!("/proc/{pid}/cgroup")))?;
    let path = directory(&cgroups)?.join("cgroup.procs");
    OpenOptions::new().write(true).open(&path).map_err(|source| Error::Access { path, source })
}

/// Moves a process into the cgroup of the calling process.
///
/// # Errors
/// [`Error::NotMounted`], [`Error::Access`].
pub(crate) fn bring_here(pid: i32) -> Result<(), Error> {
    let path = directory(&read(Path::new("/proc/self/cgroup"))?)?.join("cgroup.procs");
    fs::write(&path, pid.to_string()).map_err(|source| Error::Access { path, source })
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .map_err(|source| Error::Access { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_processes_and_names_are_refused() {
        let id = "a".repeat(64);
        for pid in [i32::MIN, -1, 0, 1] {
            assert!(matches!(Cgroup::of_pid(pid, &id), Err(Error::BadPid(_))), "{pid}");
        }
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(Cgroup::of_pid(own, &id).is_err());
        assert!(matches!(Cgroup::of_pid(own, ""), Err(Error::BadId(_))));
    }
}
