//! The conditions for the end of a client: a time, the end of standard input, or SIGTERM or SIGINT.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The conditions that end a client.
pub struct Stop {
    deadline: Option<Instant>,
    stdin: Option<io::Stdin>,
    signals: SignalFd,
}

impl Stop {
    /// Sets the conditions: after `seconds`, when standard input closes if `until_stdin_closes`, and on SIGTERM or
    /// SIGINT. Blocks the two signals in the calling thread, so call it before other threads start.
    ///
    /// # Errors
    /// The kernel refused the signal descriptor.
    pub fn new(seconds: Option<f64>, until_stdin_closes: bool) -> io::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGINT);
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self {
            deadline: seconds.map(|s| Instant::now() + Duration::from_secs_f64(s.max(0.0))),
            stdin: until_stdin_closes.then(io::stdin),
            signals,
        })
    }

    /// Returns the descriptors that become readable when the client may have to end.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = vec![self.signals.as_fd()];
        all.extend(self.stdin.as_ref().map(AsFd::as_fd));
        all
    }

    /// Returns whether the time has passed.
    pub fn time_is_over(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// Returns whether a signal came or standard input was closed. Reads and ignores other input.
    ///
    /// # Errors
    /// Reading a descriptor failed.
    pub fn was_asked(&self) -> io::Result<bool> {
        if self.signals.read_signal()?.is_some() {
            return Ok(true);
        }
        let Some(stdin) = &self.stdin else { return Ok(false) };
        let mut polled = [nix::poll::PollFd::new(stdin.as_fd(), nix::poll::PollFlags::POLLIN)];
        if nix::poll::poll(&mut polled, nix::poll::PollTimeout::ZERO)? == 0 {
            return Ok(false);
        }
        let mut scratch = [0; 512];
        Ok(nix::unistd::read(stdin.as_fd(), &mut scratch)? == 0)
    }
}
