//! One agent of a host at a time makes or removes tunnels and rules.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::fwmark_setting;
use state::cause::Cause;
use state::deadline;

/// Between two attempts to get the lock.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Another agent does not let go.
#[derive(Debug, thiserror::Error)]
#[error("another agent has kept {path} locked for too long; is one of them stopped?")]
pub struct Locked {
    /// The lock's file.
    path: PathBuf,
}

/// Held while a tunnel or the table is made or removed; agents of both roles take it.
#[derive(Debug)]
pub struct SteeringLock {
    _file: Flock<File>,
}

impl SteeringLock {
    /// Waits for the lock. It must not be held while waiting for another host: two hosts that move containers to each
    /// other would block each other.
    ///
    /// # Errors
    /// The lock file cannot be used, another process holds the lock for too long, or the setting of mark bits cannot be
    /// read.
    pub async fn take(run: &Path) -> Result<Self, Cause> {
        let path = run.join("peers.lock");
        let give_up = Instant::now() + deadline::LOCK;
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => {
                    let lock = Self { _file: file };
                    // Whoever had it may have changed them.
                    fwmark_setting::refresh()?;
                    return Ok(lock);
                }
                Err((file, Errno::EWOULDBLOCK)) if Instant::now() < give_up => file,
                Err((_, Errno::EWOULDBLOCK)) => return Err(Locked { path }.into()),
                Err((_, errno)) => return Err(std::io::Error::from(errno).into()),
            };
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
