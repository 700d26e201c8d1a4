//! A program that is started ahead of time: the process exists, has joined its host's namespaces and
//! waits; when its standard input is closed it becomes the program. So what is measured after that
//! is one `execve` and the program itself, and no fork and no joining of namespaces.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use crate::error::Result;
use crate::host::Host;
use crate::host::host_process::HostProcess;

/// First argument of a waiting process.
const ARGUMENT: &str = "exec-when-told";
/// What it writes to its standard error when it waits.
const WAITING: &str = "waiting";
/// How long it may take to get there.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// How long the program may take afterwards.
const LIMIT: Duration = Duration::from_secs(60);

/// Becomes the program in the arguments once told to, if this process was started for that. Called
/// at the start of `main`.
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

/// A program that waits for the word to start.
#[derive(Debug)]
pub(super) struct Prestarted {
    process: HostProcess,
}

impl Prestarted {
    /// Makes the waiting process on a host.
    pub(super) fn new(host: &Host, line: &[String]) -> Result<Self> {
        let mut process = host.command("/proc/self/exe").args([ARGUMENT]).args(line).spawn()?;
        process.wait_for(WAITING, READY_LIMIT)?;
        Ok(Self { process })
    }

    /// Lets it start, and waits for its successful end.
    pub(super) fn run(mut self) -> Result<()> {
        self.process.close_stdin();
        self.process.wait(LIMIT)?.success().map(drop)
    }
}
