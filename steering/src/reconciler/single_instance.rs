//! One reconciler for a host.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use state::directories::Directories;

/// Locked by the one reconciler, in the volatile directory.
pub(super) const LOCK: &str = "keeper.lock";

/// Returns whether this host has a reconciler.
///
/// # Errors
/// Its lock file cannot be used.
pub fn is_at_work(directories: &Directories) -> io::Result<bool> {
    match File::open(directories.run.join(LOCK)) {
        Ok(file) => match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(false),
            Err((_, Errno::EWOULDBLOCK)) => Ok(true),
            Err((_, errno)) => Err(errno.into()),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Returns `None` if another process has it.
pub(super) fn lock(directories: &Directories) -> io::Result<Option<Flock<File>>> {
    let path = directories.run.join(LOCK);
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}
