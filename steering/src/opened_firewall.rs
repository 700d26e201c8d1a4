//! Chains of others that are open for flows to a peer (`migrate --open-firewall`), as notes in the volatile
//! directory: one for each migration that has opened any.
//!
//! A note is written before its rules are. Who loads the host's firewall anew removes the rules, and the
//! [reconciler](crate::reconciler) puts them back from the notes. They go with the tunnel to the peer, or with the
//! migration that has opened them, if it goes back.

use std::path::{Path, PathBuf};

use netmig::path_trial::DropRule;
use netmig::peer_number::PeerNumber;
use netmig::table::{RuleTag, Table};
use serde::{Deserialize, Serialize};

use crate::steering_lock::SteeringLock;
use state::cause::Cause;
use state::directories::Directories;
use state::id::MigrationId;
use state::json_files;
use state::private_file;

/// Directory of the notes, below that for volatile things.
const DIRECTORY: &str = "opened";
/// Version of their form.
const VERSION: u32 = 1;

/// What one migration has opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Opened {
    /// Flows that are led to this peer pass.
    peer: PeerNumber,
    /// Its name, which the rules show to people.
    name: RuleTag,
    chains: Vec<DropRule>,
}

/// Opens a chain for flows to a peer, and notes that a migration has done so.
///
/// # Errors
/// nftables refuses, or the note cannot be written.
pub fn open(
    directories: &Directories,
    migration: MigrationId,
    (peer, name): (PeerNumber, &RuleTag),
    chain: &DropRule,
    _: &SteeringLock,
) -> Result<(), Cause> {
    let path = path(directories, migration);
    let new = || Opened { peer, name: name.clone(), chains: Vec::new() };
    let mut note = json_files::read(&path, VERSION)?.unwrap_or_else(new);
    note.chains.push(chain.clone());
    json_files::write(&path, VERSION, &note)?;
    Ok(Table::open()?.open_chain(chain, peer, name)?)
}

/// Puts back the rules that are missing in chains that are there, for flows to these peers. Returns how many
/// chains were opened again. The caller holds the [`SteeringLock`].
///
/// # Errors
/// A note cannot be read, or nftables refuses.
pub fn reopen(directories: &Directories, peers: &[PeerNumber]) -> Result<usize, Cause> {
    let mut opened = 0;
    for (_, Opened { peer, name, chains }) in all(directories)? {
        if peers.contains(&peer) {
            opened += Table::open()?.reopen_chains(&chains, peer, &name)?;
        }
    }
    Ok(opened)
}

/// Closes what is open for flows to a peer, of which there are none any more. The caller holds the
/// [`SteeringLock`].
///
/// # Errors
/// nftables refuses, or a note cannot be removed.
pub fn close(directories: &Directories, table: &mut Table, peer: PeerNumber) -> Result<(), Cause> {
    // Also those that no note tells of.
    table.close_chains(peer)?;
    for (path, note) in all(directories)? {
        if note.peer == peer {
            private_file::remove(&path)?;
        }
    }
    Ok(())
}

/// Closes what a migration that goes back has opened, but for chains that an earlier one has opened for the
/// same peer.
///
/// # Errors
/// As [`close`].
pub async fn withdraw(directories: &Directories, migration: MigrationId) -> Result<(), Cause> {
    let own = path(directories, migration);
    if !own.exists() {
        return Ok(());
    }
    let _lock = SteeringLock::take(&directories.run).await?;
    let (this, others): (Vec<_>, Vec<_>) =
        all(directories)?.into_iter().partition(|(path, _)| *path == own);
    for (path, Opened { peer, mut chains, .. }) in this {
        let is_needed = |chain: &DropRule| {
            let of_peer = others.iter().filter(|(_, other)| other.peer == peer);
            of_peer.flat_map(|(_, other)| &other.chains).any(|other| other.is_same_chain(chain))
        };
        chains.retain(|chain| !is_needed(chain));
        Table::open()?.close_chains_of(&chains, peer)?;
        private_file::remove(&path)?;
    }
    Ok(())
}

fn all(directories: &Directories) -> Result<Vec<(PathBuf, Opened)>, Cause> {
    Ok(json_files::all(&directory(&directories.run), VERSION)?)
}

fn directory(run: &Path) -> PathBuf {
    run.join(DIRECTORY)
}

fn path(directories: &Directories, migration: MigrationId) -> PathBuf {
    directory(&directories.run).join(format!("{migration}.json"))
}
