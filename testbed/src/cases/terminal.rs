//! Drives a program on a pseudo-terminal: reads its output and types.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::pty::{OpenptyResult, Winsize, openpty};

use crate::error::{Context, Error, Result};
use crate::host::host_process::{HostCommand, HostProcess};

/// Width and height of the terminal.
const SIZE: Winsize = Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
/// The request for the cursor's position (ECMA-48, DSR) and the answer of the terminal.
const WHERE: (&str, &str) = ("\x1b[6n", "\x1b[1;1R");

/// A running program and the other end of its terminal.
pub(crate) struct Terminal {
    process: Option<HostProcess>,
    master: File,
    shown: String,
    read: usize,
}

impl Terminal {
    /// Starts a program whose standard input, output and error are a terminal.
    pub(crate) fn start(command: HostCommand<'_>) -> Result<Self> {
        let OpenptyResult { master, slave } =
            openpty(Some(&SIZE), None).context(|| "opening a pseudo-terminal")?;
        // A daemon that the program leaves behind would keep the descriptors open.
        for end in [&master, &slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
                .context(|| "setting up a pseudo-terminal")?;
        }
        let process = Some(command.spawn_on(&slave)?);
        Ok(Self { process, master: File::from(master), shown: String::new(), read: 0 })
    }

    /// Types text.
    pub(crate) fn send(&mut self, text: &str) -> Result<()> {
        self.master.write_all(text.as_bytes()).context(|| "typing at a terminal")
    }

    /// Waits for `text` in the output after the text that was expected before.
    pub(crate) fn expect(&mut self, text: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(at) = self.shown[self.read..].find(text) {
                self.read += at + text.len();
                return Ok(());
            }
            if !self.listen(deadline)? {
                return Err(Error::Check(format!(
                    "no {text:?} on the terminal: {}",
                    self.screen()
                )));
            }
        }
    }

    /// Reads to the end of the program. Returns its exit code.
    pub(crate) fn finish(&mut self, limit: Duration) -> Result<Option<i32>> {
        let deadline = Instant::now() + limit;
        while self.listen(deadline)? {}
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(process) = self.process.take() else { return Ok(None) };
        Ok(process.wait(left)?.status.code())
    }

    /// Returns the whole output.
    pub(crate) fn screen(&self) -> String {
        self.shown.escape_debug().to_string()
    }

    /// Reads more output. Returns false at the end of the program or at the deadline.
    fn listen(&mut self, deadline: Instant) -> Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        if nix::poll::poll(&mut polled, timeout).context(|| "waiting at a terminal")? == 0 {
            return Ok(false);
        }
        let mut buffer = [0; 4096];
        match self.master.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(count) => {
                let text = String::from_utf8_lossy(&buffer[..count]);
                for _ in text.matches(WHERE.0) {
                    self.master.write_all(WHERE.1.as_bytes()).context(|| "answering a program")?;
                }
                self.shown.push_str(&text);
                Ok(true)
            }
            // The last process has closed its end.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error).context(|| "reading a terminal"),
        }
    }
}
