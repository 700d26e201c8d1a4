//! Turns: how many containers of one host may be interrupted at the same time.
//!
//! A dump or a restore keeps one processor busy from its start to its end. Containers that are moved
//! at once would all be interrupted for as long as all of them take together; so they are prepared at
//! once, and interrupted in turn. A turn is a locked file in the run directory, which agents of both
//! roles share, and ends with its process at the latest.
//!
//! A migration needs a turn on both of its hosts, and takes either both or none: whoever finds the
//! second one taken gives the first one back. So two hosts that move containers to each other never
//! wait for each other with a turn in hand.
//!
//! What comes before is done in turn as well, by [`Place`]s, and what comes after [gives way](give_way).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::directories::create_private;

/// Between two attempts to get a turn.
pub const RETRY: Duration = Duration::from_millis(3);
/// Between two looks of work that gives way. Longer: who waits for a turn comes first.
const LOOK: Duration = Duration::from_millis(20);

/// Where the files of turns are, below the run directory.
const TURNS: &str = "turns";
/// The same of places.
const PLACES: &str = "places";
/// Processors for each turn, and for each place: the agents, the tunnel and the containers of others need some, too.
const PROCESSORS: usize = 2;

/// Turns cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be used.
    #[error(transparent)]
    Directory(#[from] crate::directories::Error),
    /// A lock failed.
    #[error("cannot lock {path}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The right to have one container of this host interrupted; given back when dropped.
#[derive(Debug)]
pub struct Turn {
    _file: Flock<File>,
}

impl Turn {
    /// Takes a turn of this host unless all are taken.
    ///
    /// # Errors
    /// [`Error`] when the run directory cannot be used.
    pub fn try_take(run: &Path) -> Result<Option<Self>, Error> {
        Ok(try_lock(&run.join(TURNS))?.map(|file| Self { _file: file }))
    }
}

/// A place in which to stage a container on this host; given back when dropped.
///
/// Staging and what comes with it take half a second of two processors. Containers that are staged all
/// at once are ready at the same time, late, and the first of them is interrupted while the others are
/// still being staged. So there are as many places as turns, and who has got a turn gives the place back.
#[derive(Debug)]
pub struct Place {
    _file: Flock<File>,
}

impl Place {
    /// Waits for a place, at most `limit`: then it goes without. Whoever has the place may be sending
    /// large files.
    pub async fn take(run: &Path, limit: Duration) -> Option<Self> {
        let give_up = Instant::now() + limit;
        loop {
            match Self::lock(run) {
                Ok(Some(place)) => return Some(place),
                Ok(None) if Instant::now() < give_up => tokio::time::sleep(LOOK).await,
                // Waiting is a courtesy.
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

/// Locks one of the files in a directory unless all are locked.
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

/// Waits until a turn of this host is free, at most `limit`, without taking it: before work that can
/// wait and would keep the processors from containers that are interrupted.
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
