//! A process that outlives a killed agent and settles its migration at once.
//!
//! It waits for the journal's lock, which the kernel takes from a process that dies. Then the
//! journal is gone, because the migration has ended, or there is something to settle. A service
//! manager that kills the whole group of processes of a killed agent (systemd's `KillMode=`) must be
//! told not to.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{dup2_stderr, setsid};
use tokio::process::Command;

use crate::directories::Directories;

/// What a guardian that has something to do says goes here, in the volatile directory.
const LOG: &str = "recover.log";

/// Starts this very program once more, even if its file has been replaced meanwhile, with `command`
/// and the journal as its last arguments. The journal exists and is locked. The runtime, in which
/// this has to be called, reaps it.
pub fn start(directories: &Directories, command: &[&str], journal: &Path) -> io::Result<()> {
    Command::new("/proc/self/exe")
        .arg("--state-dir")
        .arg(&directories.state)
        .arg("--run-dir")
        .arg(&directories.run)
        .args(command)
        .arg(journal)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(drop)
}

/// Waits until the owner of a journal has ended; `false` if it left nothing to do. Blocks: it comes
/// before anything else in the guardian's life, since mostly that is all.
pub fn wait(directories: &Directories, journal: &Path) -> io::Result<bool> {
    // Of its own session: neither Ctrl-C nor the end of the terminal is meant for it.
    setsid()?;
    let file = match File::open(journal) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    drop(Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?);
    if !journal.exists() {
        return Ok(false);
    }
    let log = directories.run.join(LOG);
    dup2_stderr(OpenOptions::new().append(true).create(true).mode(0o600).open(log)?)?;
    Ok(true)
}
