//! What several migrations with one peer share: its tunnel and its steering rules.
//!
//! They are made by the first migration that needs them and stay while flows are steered to the peer
//! or another migration with it is under way.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use netmig::flow::Conntrack;
use netmig::peer::PeerNumber;
use netmig::table::Table;
use netmig::tunnel;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::cause::Cause;
use crate::deadline;
use crate::directories::Directories;
use crate::identity;
use crate::journal::{self, Record};
use crate::message::MigrationId;

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
pub struct PeerLock {
    _file: Flock<File>,
}

impl PeerLock {
    /// Waits for the lock. Nobody may keep it while waiting for another host: two hosts that move
    /// containers to each other would wait for each other.
    pub async fn take(run: &Path) -> Result<Self, Cause> {
        let path = run.join("peers.lock");
        let give_up = Instant::now() + deadline::LOCK;
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => return Ok(Self { _file: file }),
                Err((file, Errno::EWOULDBLOCK)) if Instant::now() < give_up => file,
                Err((_, Errno::EWOULDBLOCK)) => return Err(Locked { path }.into()),
                Err((_, errno)) => return Err(std::io::Error::from(errno).into()),
            };
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Removes tunnel, rules and marks' steering of `peer` unless flows or migrations other than
/// `ended` need them; removes the table with the last peer. Absent means done.
pub async fn release(
    directories: &Directories,
    peer: PeerNumber,
    ended: MigrationId,
) -> Result<(), Cause> {
    let _lock = PeerLock::take(&directories.run).await?;
    if needed_by_migration(&directories.state, peer, ended)? {
        return Ok(());
    }
    if Conntrack::open()?.is_marked_for(peer)? {
        return Ok(());
    }
    let mut table = Table::open()?;
    table.unsteer(peer)?;
    tunnel::remove(peer).await?;
    if table.read()?.rules.is_empty() {
        table.remove()?;
    }
    Ok(())
}

fn needed_by_migration(state: &Path, peer: PeerNumber, ended: MigrationId) -> Result<bool, Cause> {
    for path in journal::unfinished(state)? {
        // A journal that cannot be read might need it.
        let Ok(records) = journal::read(&path) else { return Ok(true) };
        let other = records.iter().any(|record| match record {
            Record::Departure { migration, peer: host, .. }
            | Record::Arrival { migration, peer: host, .. } => {
                *migration != ended
                    && identity::peer_number(state, *host).is_ok_and(|number| number == peer)
            }
            _ => false,
        });
        if other {
            return Ok(true);
        }
    }
    Ok(false)
}
