//! Enters the namespaces and the cgroup of a host.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::sched::{CloneFlags, setns};

use crate::subprocess;

/// The namespaces of a process, and the cgroup for processes that enter them.
#[derive(Debug)]
pub(crate) struct Namespaces {
    pidfd: OwnedFd,
    cgroup: PathBuf,
}

impl Namespaces {
    /// Opens the namespaces of process `pid`. Processes that enter them move to `cgroup`.
    pub(crate) fn of(pid: i32, cgroup: &Path) -> io::Result<Self> {
        Ok(Self { pidfd: subprocess::pidfd(pid)?, cgroup: cgroup.to_owned() })
    }

    /// Starts a program in all namespaces.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let all = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWCGROUP;
        self.prepare(command, all)?;
        // setns(2) of a PID namespace affects the later children of the calling thread. A thread of its own keeps
        // other children of this program out.
        std::thread::scope(|scope| {
            let spawner = scope.spawn(|| {
                setns(&self.pidfd, CloneFlags::CLONE_NEWPID)?;
                command.spawn()
            });
            spawner.join().unwrap_or_else(|_| Err(io::Error::other("the spawning thread died")))
        })
    }

    /// Starts a program of this machine in the network namespace alone.
    pub(crate) fn spawn_in_network(&self, command: &mut Command) -> io::Result<Child> {
        self.prepare(command, CloneFlags::CLONE_NEWNET)?;
        command.spawn()
    }

    /// Makes the child join the cgroup and the namespaces before it executes the program.
    fn prepare(&self, command: &mut Command, namespaces: CloneFlags) -> io::Result<()> {
        let mut members = OpenOptions::new().write(true).open(self.cgroup.join("cgroup.procs"))?;
        let pidfd = self.pidfd.try_clone()?;
        // SAFETY: the closure runs in the child between fork and exec; it makes system calls on
        // descriptors it owns and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                members.write_all(b"0")?;
                setns(&pidfd, namespaces)?;
                if namespaces.contains(CloneFlags::CLONE_NEWNS) {
                    nix::unistd::chdir(c"/")?;
                }
                Ok(())
            });
        }
        Ok(())
    }
}
