//! Turns: they limit how many containers of one host are interrupted at the same time.
//!
//! A dump or a restore keeps one processor busy from its start to its end. If several containers were interrupted
//! at the same time, each interruption would last as long as all of them together. So containers are prepared at
//! the same time, and interrupted in turn. A turn is a locked file in the run directory, which agents of both
//! roles share; it ends with its process at the latest.
//!
//! A migration needs a turn on both of its hosts, and takes either both or none: a source that finds the second
//! one taken releases the first one. So two hosts that move containers to each other never block each other.
//!
//! Staging is limited in the same way by [`Place`]s, and work after the interruption [gives way](give_way).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::directories::create_private;

/// Time between two attempts to take a turn.
pub const RETRY: Duration = Duration::from_millis(3);
/// Time between two looks of work that gives way. It is longer, so that a migration that waits for a turn is
/// first.
const LOOK: Duration = Duration::from_millis(20);

/// The directory of the turns' files, below the run directory.
const TURNS: &str = "turns";
/// The directory of the places' files, below the run directory.
const PLACES: &str = "places";
/// Number of processors for each turn and each place: the agents, the tunnel and other containers need some as
/// well.
const PROCESSORS: usize = 2;

/// Turns cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be used.
    #[error(transparent)]
    Directory(#[from] crate::directories::Error),
    /// A file cannot be locked.
    #[error("cannot lock {path}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// The right to interrupt one container of this host; released when dropped.
#[derive(Debug)]
pub struct Turn {
    _file: Flock<File>,
}

impl Turn {
    /// Takes a turn of this host; `None` if all are taken.
    ///
    /// # Errors
    /// [`Error`], if the run directory cannot be used.
    pub fn try_take(run: &Path) -> Result<Option<Self>, Error> {
        Ok(try_lock(&run.join(TURNS))?.map(|file| Self { _file: file }))
    }
}

/// The right to stage a container on this host; released when dropped.
///
/// Staging takes half a second of two processors. If all containers were staged at the same time, all of them
/// would be ready late, and the first one would be interrupted while the others are still being staged. So there
/// are as many places as turns, and a migration that gets a turn releases its place.
#[derive(Debug)]
pub struct Place {
    _file: Flock<File>,
}

impl Place {
    /// Waits for a place for at most `limit`; `None` after that. The migration that has the place may be sending
    /// large files.
    pub async fn take(run: &Path, limit: Duration) -> Option<Self> {
        let give_up = Instant::now() + limit;
        loop {
            match Self::lock(run) {
                Ok(Some(place)) => return Some(place),
                Ok(None) if Instant::now() < give_up => tokio::time::sleep(LOOK).await,
                // Staging works without a place as well.
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Takes a place if one is free.
    #[must_use]
    pub fn try_take(run: &Path) -> Option<Self> {
        Self::lock(run).ok().flatten()
    }

    fn lock(run: &Path) -> Result<Option<Self>, Error> {
        Ok(try_lock(&run.join(PLACES))?.map(|file| Self { _file: file }))
    }
}

/// Locks one of the files in a directory; `None` if all are locked.
fn try_lock(directory: &Path) -> Result<Option<Flock<File>>, Error> {
    create_private(directory)?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    for number in 0..(processors / PROCESSORS).max(1) {
        let path = directory.join(number.to_string());
        let failed = |source| Error::Lock { path: path.clone(), source };
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => return Ok(Some(file)),
            Err((_, Errno::EWOULDBLOCK)) => {}
            Err((_, errno)) => return Err(failed(errno.into())),
        }
    }
    Ok(None)
}

/// Waits until a turn of this host is free, for at most `limit`, and does not take it. Called before work that can
/// wait and would take processor time from interrupted containers.
pub async fn give_way(run: &Path, limit: Duration) {
    let give_up = Instant::now() + limit;
    while matches!(Turn::try_take(run), Ok(None)) && Instant::now() < give_up {
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_can_wait_does_so_and_not_for_ever() {
        let run = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3600);
        give_way(run.path(), hour).await;
        let mut taken = Vec::new();
        while let Some(turn) = Turn::try_take(run.path()).unwrap() {
            taken.push(turn);
        }
        let began = Instant::now();
        give_way(run.path(), Duration::from_millis(30)).await;
        assert!(began.elapsed() >= Duration::from_millis(30));
        drop(taken);
        give_way(run.path(), hour).await;
    }

    #[tokio::test]
    async fn places_are_limited_and_nobody_waits_for_one_for_ever() {
        let run = tempfile::tempdir().unwrap();
        let short = Duration::from_millis(30);
        let mut taken = Vec::new();
        while let Some(place) = Place::take(run.path(), short).await {
            taken.push(place);
            assert!(taken.len() < 10_000, "places are limited");
        }
        assert!(!taken.is_empty());
        assert!(Place::try_take(run.path()).is_none());
        assert!(Turn::try_take(run.path()).unwrap().is_some(), "turns are not places");
        taken.pop();
        assert!(Place::try_take(run.path()).is_some());
        assert!(Place::take(run.path(), Duration::from_secs(3600)).await.is_some());
    }

    #[test]
    fn a_turn_is_free_again_after_its_end_and_not_before() {
        let run = tempfile::tempdir().unwrap();
        let mut taken = Vec::new();
        while let Some(turn) = Turn::try_take(run.path()).unwrap() {
            taken.push(turn);
            assert!(taken.len() < 100_000, "turns are limited");
        }
        assert!(!taken.is_empty());
        assert!(Turn::try_take(run.path()).unwrap().is_none());
        taken.pop();
        assert!(Turn::try_take(run.path()).unwrap().is_some());
    }
}
