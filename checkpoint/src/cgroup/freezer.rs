//! The freezer of a container's cgroup (`cgroup.freeze` and `cgroup.events` in
//! `Documentation/admin-guide/cgroup-v2.rst`).

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Cgroup, Error, LOOK_EVERY_MS};
use crate::syscall_restart;

impl Cgroup {
    /// Freezes all tasks and waits until the kernel says that they have stopped, about 2.5 ms.
    /// Blocks the calling thread. A cgroup that is frozen already stays so.
    ///
    /// # Errors
    /// [`Error::NotFrozen`] when `deadline` passes; the tasks go on then, none is left stopped.
    pub fn freeze(&self, deadline: Instant) -> Result<(), Error> {
        self.write_state(b"1")?;
        match self.wait_frozen(deadline) {
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

    /// Lets the tasks go on. Does not wait; a cgroup that is not frozen stays so.
    ///
    /// # Errors
    /// [`Error::Access`], for instance when the cgroup is gone (ENODEV).
    pub fn thaw(&self) -> Result<(), Error> {
        self.write_state(b"0")
    }

    /// Lets the tasks go on as if they had never been stopped ([`Cgroup::rewind_calls`]). Does not wait; a
    /// cgroup that is not frozen stays so.
    ///
    /// # Errors
    /// As [`Cgroup::thaw`].
    pub fn resume(&self) -> Result<(), Error> {
        self.rewind_calls();
        self.thaw()
    }

    /// Has the frozen tasks that were stopped in a system call make it again ([`syscall_restart::rewind`]). A call
    /// that cannot be set back is logged: it returns EINTR. Tasks that are not frozen are left alone, since
    /// looking at them would stop them.
    pub fn rewind_calls(&self) {
        if !self.is_frozen().is_ok_and(|is_frozen| is_frozen) {
            return;
        }
        match self.pids().map(|pids| syscall_restart::rewind(&pids)) {
            Ok(Ok(calls)) => tracing::debug!(calls, "system calls are made again"),
            Ok(Err(error)) => tracing::warn!(source = %error, "a system call is cut short"),
            Err(error) => tracing::warn!(source = %error, "system calls are cut short"),
        }
    }

    /// Waits until all tasks of a cgroup that was told to freeze have stopped; `false` when `deadline` passes.
    /// Blocks the calling thread.
    ///
    /// # Errors
    /// [`Error::Access`].
    pub fn await_frozen(&self, deadline: Instant) -> Result<bool, Error> {
        self.wait_frozen(deadline)
    }

    /// Tells the tasks to freeze, and does not wait.
    ///
    /// # Errors
    /// [`Error::Access`].
    pub fn tell_to_freeze(&self) -> Result<(), Error> {
        self.write_state(b"1")
    }

    /// Whether all tasks are stopped at this moment, by us or by a frozen parent.
    ///
    /// # Errors
    /// [`Error::Access`], for instance when the cgroup is gone (ENODEV).
    pub fn is_frozen(&self) -> Result<bool, Error> {
        Ok(self.event("frozen")? == Some(true))
    }

    /// Whether this cgroup itself was told to freeze (`cgroup.freeze`), whatever its tasks do at
    /// this moment: true from before `podman pause`, for instance.
    ///
    /// # Errors
    /// [`Error::Access`], for instance when the cgroup is gone (ENODEV).
    pub fn is_told_to_freeze(&self) -> Result<bool, Error> {
        let mut byte = [0; 1];
        self.freeze.read_at(&mut byte, 0).map_err(|source| self.access("cgroup.freeze", source))?;
        Ok(byte[0] == b'1')
    }

    fn write_state(&self, state: &[u8]) -> Result<(), Error> {
        (&self.freeze).write_all(state).map_err(|source| self.access("cgroup.freeze", source))
    }

    /// Waits for `frozen 1`; false when the deadline passes.
    fn wait_frozen(&self, deadline: Instant) -> Result<bool, Error> {
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
