//! Locks by which a process tells that something in the kernel is its own, and not left by a dead one.
//!
//! A journal tells that only until the container is handed over. A destination counts packets until its
//! conversation with the source ends, which is later.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::byte_lock;
use crate::id::MigrationId;

/// The name of the file of the locks, in the run directory.
const FILE: &str = "migrations.lock";

/// A migration's lock cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody has it.
    #[error("another process is at work on the migration {0}")]
    Taken(MigrationId),
    /// The file of the locks cannot be used.
    #[error("cannot lock {path}")]
    File {
        /// The file of the locks.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// The lock of one migration on this host; released when dropped.
#[derive(Debug)]
#[must_use = "the lock is given back when this is dropped"]
pub struct MigrationLock {
    _file: File,
}

impl MigrationLock {
    /// Takes a migration's lock.
    ///
    /// # Errors
    /// [`Error`], also if somebody has it.
    pub fn take(run: &Path, migration: MigrationId) -> Result<Self, Error> {
        let path = run.join(FILE);
        let taken = byte_lock::try_take(&path, place(migration));
        let file = taken.map_err(|source| Error::File { path, source })?;
        file.map(|file| Self { _file: file }).ok_or(Error::Taken(migration))
    }

    /// Returns whether some process has a migration's lock.
    ///
    /// # Errors
    /// [`Error::File`], if the kernel does not tell.
    pub fn is_taken(run: &Path, migration: MigrationId) -> Result<bool, Error> {
        let path = run.join(FILE);
        let taken = byte_lock::is_taken(&path, place(migration));
        taken.map_err(|source| Error::File { path, source })
    }
}

fn place(migration: MigrationId) -> i64 {
    // Its text has nothing but hexadecimal digits.
    byte_lock::place(&migration.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_is_somebodys_as_long_as_its_lock_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (MigrationId([7; 16]), MigrationId([8; 16]));
        let is_taken = |migration| MigrationLock::is_taken(dir.path(), migration).unwrap();
        assert!(!is_taken(one));
        let lock = MigrationLock::take(dir.path(), one).unwrap();
        assert!(is_taken(one) && is_taken(one) && !is_taken(other));
        assert!(matches!(MigrationLock::take(dir.path(), one), Err(Error::Taken(_))));
        drop(lock);
        assert!(!is_taken(one));
    }
}
