//! What keeps a tunnel although no mark says so.

use std::net::IpAddr;
use std::path::PathBuf;

use netmig::flow::Counted;
use netmig::peer_number::PeerNumber;
use serde::{Deserialize, Serialize};

use super::{CLAIMS, VERSION};
use crate::steering_lock::SteeringLock;
use crate::{peer_numbers, port_forward};
use state::cause::Cause;
use state::directories::Directories;
use state::id::MigrationId;
use state::{json_files, private_file};

/// A note that flows of a container need the tunnel to a peer of which their marks say nothing. It keeps
/// this tunnel for as long as there are such flows, should nobody take it back.
///
/// An anchor makes one when the container is about to move on: the peer may have become the container's
/// host and answer by this tunnel. The container's new host makes one for the tunnel to the host from
/// which it came: packets pass there until the anchors have been told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The peers to which marks lead these flows now, to the container or to their anchors.
    pub with: Vec<PeerNumber>,
    /// The peer whose tunnel they need.
    pub to: PeerNumber,
    /// The container's addresses.
    pub container: Vec<IpAddr>,
}

impl Claim {
    /// Writes the claim of a migration.
    ///
    /// # Errors
    /// The note cannot be written.
    pub fn write(
        &self,
        directories: &Directories,
        migration: MigrationId,
        _: &SteeringLock,
    ) -> Result<(), Cause> {
        Ok(json_files::write(&Self::path(directories, migration), VERSION, self)?)
    }

    /// Returns the claim of a migration, if it has one.
    ///
    /// # Errors
    /// The note cannot be read.
    pub fn find(directories: &Directories, migration: MigrationId) -> Result<Option<Self>, Cause> {
        Ok(json_files::read(&Self::path(directories, migration), VERSION)?)
    }

    /// Returns whether a migration has a claim.
    #[must_use]
    pub fn exists(directories: &Directories, migration: MigrationId) -> bool {
        Self::path(directories, migration).exists()
    }

    /// Removes the claim of a migration, and returns it if there was one.
    ///
    /// # Errors
    /// The note cannot be read or removed.
    pub fn remove(
        directories: &Directories,
        migration: MigrationId,
    ) -> Result<Option<Self>, Cause> {
        let path = Self::path(directories, migration);
        let claim = json_files::read(&path, VERSION)?;
        private_file::remove(&path)?;
        Ok(claim)
    }

    /// Returns whether the flows that it speaks of exist, or new ones may come.
    pub(super) fn holds(
        &self,
        directories: &Directories,
        marked: &[Counted],
    ) -> Result<bool, Cause> {
        for note in port_forward::all(directories)? {
            if note.addresses.iter().any(|ip| self.container.contains(ip))
                && let Some(number) = peer_numbers::find_number(&directories.state, note.host)?
                && self.with.contains(&number)
            {
                return Ok(true);
            }
        }
        let next = |Counted { flow, .. }: &Counted| {
            [flow.leads_to(&self.container), flow.anchor(&self.container)]
        };
        Ok(marked.iter().flat_map(next).flatten().any(|peer| self.with.contains(&peer)))
    }

    pub(super) fn path(directories: &Directories, migration: MigrationId) -> PathBuf {
        directories.run.join(CLAIMS).join(format!("{migration}.json"))
    }
}

/// Returns whether a claim needs the peer. A claim whose flows have ended is forgotten.
pub(super) fn claimed(
    directories: &Directories,
    peer: PeerNumber,
    marked: &[Counted],
) -> Result<bool, Cause> {
    for (path, claim) in claims(directories)? {
        if claim.to != peer {
            continue;
        }
        if claim.holds(directories, marked)? {
            return Ok(true);
        }
        private_file::remove(&path)?;
    }
    Ok(false)
}

pub(super) fn claims(directories: &Directories) -> Result<Vec<(PathBuf, Claim)>, Cause> {
    Ok(json_files::all(&directories.run.join(CLAIMS), VERSION)?)
}
