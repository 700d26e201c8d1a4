//! A process that outlives a killed agent-client and recovers its migration at once.
//!
//! It waits for the journal's lock, which the kernel takes from a process that dies. Then the
//! journal is gone, because the migration has ended, or there is something to recover. A migration
//! that is in doubt is asked about again and again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agent_core::directories::Directories;
use agent_core::journal;
use agent_core::message::MigrationId;
use nix::fcntl::{Flock, FlockArg};

use crate::exit::Exit;
use crate::migrate::Context;

/// Between two attempts at a migration that is in doubt.
const RETRY: Duration = Duration::from_secs(2);
/// How long it is tried; after that it is left to a person.
const PERSISTENCE: Duration = Duration::from_secs(3600);
/// What it says goes here, in the volatile directory.
const LOG: &str = "recover.log";

/// Starts the guardian of a migration whose journal exists and is locked.
pub fn start(directories: &Directories, migration: MigrationId) -> io::Result<()> {
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(directories.run.join(LOG))?;
    // This very program, even if its file has been replaced meanwhile.
    Command::new("/proc/self/exe")
        .arg("--state-dir")
        .arg(&directories.state)
        .arg("--run-dir")
        .arg(&directories.run)
        .args(["recover", "--watch"])
        .arg(journal::path(&directories.state, migration))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map(drop)
}

/// Waits until the owner of a journal has ended. Blocks; done before anything else is started, since
/// mostly there is nothing to do.
pub fn wait_for_owner(path: &Path) -> io::Result<()> {
    // Of its own session: neither Ctrl-C nor the end of the terminal is meant for it.
    nix::unistd::setsid()?;
    let journal = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    match Flock::lock(journal, FlockArg::LockExclusive) {
        Ok(_) => Ok(()),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// Recovers the migration of the journal, until it is not in doubt any more.
pub async fn run(context: &Context, path: PathBuf) -> Exit {
    let give_up = Instant::now() + PERSISTENCE;
    loop {
        match super::recover(context, &path).await {
            Some(Exit::InDoubt) if Instant::now() < give_up => tokio::time::sleep(RETRY).await,
            Some(exit) => return exit,
            None => return Exit::Moved,
        }
    }
}
