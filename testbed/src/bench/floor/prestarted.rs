//! A program that is started in advance. The process exists, has joined its host's namespaces and waits. When its
//! standard input is closed, it executes the program. So a measurement has one execve(2) and the program itself,
//! without fork and setns.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::host_process::HostProcess;

/// The first argument of a waiting process.
const ARGUMENT: &str = "exec-when-told";
/// What a waiting process writes to standard error.
const WAITING: &str = "waiting";
/// The time limit until the process waits.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// The time limit for the program.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits for the end of standard input and executes the program in the arguments, if the first argument says so.
/// Called at the start of `main`.
pub fn become_program_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let program = arguments.next()?;
    eprintln!("{WAITING}");
    let mut nothing = Vec::new();
    // However standard input ends, it is the word to start.
    let _ = io::stdin().read_to_end(&mut nothing);
    let error = Command::new(&program).args(arguments).stdin(Stdio::null()).exec();
    eprintln!("cannot start {}: {error}", program.display());
    Some(ExitCode::FAILURE)
}

/// A waiting process.
#[derive(Debug)]
pub(super) struct Prestarted {
    process: HostProcess,
}

impl Prestarted {
    /// Starts the waiting process on a host.
    pub(super) fn new(host: &Host, line: &[String]) -> Result<Self> {
        let mut process = host.command("/proc/self/exe").args([ARGUMENT]).args(line).spawn()?;
        process.wait_for(WAITING, READY_LIMIT)?;
        Ok(Self { process })
    }

    /// Executes the program and waits until it has ended successfully.
    pub(super) fn run(mut self) -> Result<()> {
        self.process.close_stdin();
        self.end()
    }

    /// Executes the program and polls without pause until it has made a file.
    pub(super) fn begin_until(mut self, file: &Path) -> Result<Self> {
        self.process.close_stdin();
        let end = Instant::now() + READY_LIMIT;
        while !file.exists() {
            if !self.process.is_running() || Instant::now() >= end {
                let text = format!("{} did not come: {}", file.display(), self.process.stderr());
                return Err(Error::Check(text));
            }
            std::thread::yield_now();
        }
        Ok(self)
    }

    /// Waits until the program has ended successfully.
    pub(super) fn end(self) -> Result<()> {
        self.process.wait(LIMIT)?.success().map(drop)
    }
}
