//! The freezer of a container's cgroup (`cgroup.freeze` and `cgroup.events` in
//! `Documentation/admin-guide/cgroup-v2.rst`).

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Cgroup, Error, LOOK_EVERY_MS};
use crate::syscall_restart::{self, Since};

impl Cgroup {
    /// Freezes all tasks and waits until the kernel reports that they have stopped, about 2.5 ms.
    /// Blocks the calling thread. A cgroup that is frozen already stays so.
    ///
    /// # Errors
    /// [`Error::NotFrozen`] when `deadline` passes; the cgroup is thawed then, and no task is left stopped.
    pub fn freeze(&self, deadline: Instant) -> Result<(), Error> {
        self.write_state(b"1")?;
        match self.await_frozen(deadline) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.thaw()?;
                Err(Error::NotFrozen { path: self.path.clone() })
            }
            Err(error) => {
                self.thaw()?;
                Err(error)
            }
        }
    }

    /// Thaws the tasks. Does not wait; a cgroup that is not frozen stays so.
    ///
    /// # Errors
    /// [`Error::Access`], for instance when the cgroup is gone (ENODEV).
    pub fn thaw(&self) -> Result<(), Error> {
        self.write_state(b"0")
    }

    /// Thaws the tasks as if they had never been stopped ([`Cgroup::rewind_calls`]). Does not wait; a
    /// cgroup that is not frozen stays so.
    ///
    /// # Errors
    /// As [`Cgroup::thaw`].
    pub fn resume(&self) -> Result<(), Error> {
        self.rewind_calls();
        self.thaw()
    }

    /// Thaws tasks that were frozen and nothing else, as if they had never been stopped. The kernel resumes most of their
    /// calls by itself, with the rest of their time.
    ///
    /// # Errors
    /// As [`Cgroup::thaw`].
    pub fn resume_undumped(&self) -> Result<(), Error> {
        self.rewind(Since::Frozen);
        self.thaw()
    }

    /// Makes the frozen tasks that were stopped in a system call restart it ([`syscall_restart::rewind`]). A call
    /// that cannot be set back is logged: it returns EINTR. Tasks that are not frozen are left alone, since
    /// looking at them would stop them.
    pub fn rewind_calls(&self) {
        self.rewind(Since::Dumped);
    }

    fn rewind(&self, since: Since) {
        if !self.is_frozen().is_ok_and(|is_frozen| is_frozen) {
            return;
        }
        match self.pids().map(|pids| syscall_restart::rewind(&pids, since)) {
            Ok(Ok(calls)) => tracing::debug!(calls, "system calls are made again"),
            Ok(Err(error)) => tracing::warn!(source = %error, "a system call is cut short"),
            Err(error) => tracing::warn!(source = %error, "system calls are cut short"),
        }
    }

    /// Requests the freeze of all tasks, and does not wait.
    ///
    /// # Errors
    /// [`Error::Access`].
    pub fn request_freeze(&self) -> Result<(), Error> {
        self.write_state(b"1")
    }

    /// Returns whether all tasks are stopped at this moment, by us or by a frozen parent.
    ///
    /// # Errors
    /// [`Error::Access`], for instance when the cgroup is gone (ENODEV).
    pub fn is_frozen(&self) -> Result<bool, Error> {
        Ok(self.event("frozen")? == Some(true))
    }

    /// Returns whether the freeze of this cgroup itself was requested (`cgroup.freeze`), whether or not its tasks
    /// have stopped by now.
    ///
    /// # Errors
    /// [`Error::Access`], for instance when the cgroup is gone (ENODEV).
    pub fn is_freeze_requested(&self) -> Result<bool, Error> {
        let mut byte = [0; 1];
        self.freeze.read_at(&mut byte, 0).map_err(|source| self.access("cgroup.freeze", source))?;
        Ok(byte[0] == b'1')
    }

    fn write_state(&self, state: &[u8]) -> Result<(), Error> {
        (&self.freeze).write_all(state).map_err(|source| self.access("cgroup.freeze", source))
    }

    /// Waits until all tasks of a cgroup whose freeze was requested have stopped; `false` when `deadline` passes.
    /// Blocks the calling thread.
    ///
    /// # Errors
    /// [`Error::Access`].
    pub fn await_frozen(&self, deadline: Instant) -> Result<bool, Error> {
        loop {
            if self.is_frozen()? {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            let mut fds = [PollFd::new(self.events.as_fd(), PollFlags::POLLPRI)];
            // An interrupted or failed wait is a shorter one; the deadline ends the loop.
            let _ = poll(&mut fds, PollTimeout::from(LOOK_EVERY_MS));
        }
    }
}
