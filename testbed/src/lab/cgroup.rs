//! The cgroup of a lab. It has all processes of the lab, so one write kills them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::slowdown;

/// The time limit for killed processes to end.
const LIMIT: Duration = Duration::from_secs(15);

/// Returns where this machine has its cgroup version 2 hierarchy.
///
/// # Errors
/// It has none mounted.
pub(crate) fn hierarchy() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context(|| "reading the mount table")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .map(|fields| PathBuf::from(fields[1]))
        .ok_or_else(|| {
            Error::Refused(
                "no cgroup2 file system is mounted; mount one, for example on /sys/fs/cgroup"
                    .to_owned(),
            )
        })
}

/// Creates a cgroup.
pub(crate) fn create(path: &Path) -> Result<()> {
    fs::create_dir_all(path).context(|| format!("creating the cgroup {}", path.display()))
}

/// Enables a cgroup's controllers for its children, as systemd does on most machines. A controller that the kernel
/// refuses is skipped; the test that needs it reports that.
pub(crate) fn delegate(path: &Path) -> Result<()> {
    let list = path.join("cgroup.controllers");
    let all = fs::read_to_string(&list).context(|| format!("reading {}", list.display()))?;
    for controller in all.split_whitespace() {
        let _ = fs::write(path.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(())
}

/// Kills every process in the cgroup and below it, frozen ones included, waits for their end, and removes the cgroups.
/// An absent cgroup is not an error.
pub(crate) fn destroy(path: &Path) -> Result<()> {
    let deadline = Instant::now() + slowdown::limit(LIMIT);
    while path.exists() {
        let kill = path.join("cgroup.kill");
        fs::write(&kill, "1").context(|| format!("writing {}", kill.display()))?;
        match remove_tree(path) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).context(|| {
                    format!(
                        "removing the cgroup {}, whose processes {:?} do not die",
                        path.display(),
                        processes(path)
                    )
                });
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    Ok(())
}

/// Removes cgroups from the innermost outwards.
fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// Returns the processes in a cgroup and below it.
pub(crate) fn processes(path: &Path) -> Vec<i32> {
    let mut all: Vec<i32> = fs::read_to_string(path.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(processes(&entry.path()));
        }
    }
    all
}
