//! What comes of a container's files before there is a container to put it into.
//!
//! A first pass over large files may take minutes, and podman holds a container's lock from its staging on.
//! So the first pass is kept in a file of the state directory, and applied once the container is staged.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use protocol::message::MigrationId;
use state::cause::Cause;
use state::directories::{Directories, create_private};

use crate::state_stream::file::{StateFile, StateReader};
use crate::state_stream::{Error, StatePart, StateSink};

/// Where the files are, below the state directory: they may be larger than the host's memory.
const DIRECTORY: &str = "spool";

/// The first pass over a container's files. Removed when dropped.
#[derive(Debug)]
pub struct Spool(StateFile);

impl Spool {
    /// Makes an empty one that holds at most `limit` bytes.
    pub fn create(
        directories: &Directories,
        migration: MigrationId,
        limit: u64,
    ) -> Result<Self, Cause> {
        create_private(&directories.state.join(DIRECTORY))?;
        Ok(Self(StateFile::create(path(directories, migration), limit)?))
    }

    /// Keeps a part.
    pub fn keep(&self, part: StatePart) -> Result<(), Error> {
        self.0.put(part)
    }

    /// Returns every part again, in order.
    pub fn replay(&self) -> Result<StateReader, Error> {
        self.0.read()
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Err(error) = remove_file(self.0.path()) {
            tracing::warn!(path = %self.0.path().display(), %error, "a file stays");
        }
    }
}

/// Removes what a dead process has kept of a migration. Absent means done.
pub fn remove(directories: &Directories, migration: MigrationId) -> Result<(), Cause> {
    let path = path(directories, migration);
    Ok(remove_file(&path).map_err(|source| Error::File { path, source })?)
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn path(directories: &Directories, migration: MigrationId) -> PathBuf {
    directories.state.join(DIRECTORY).join(migration.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::message::Data;

    #[test]
    fn the_file_goes_with_its_owner_or_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let directories = Directories { state: dir.path().to_owned(), run: dir.path().to_owned() };
        let id = MigrationId([5; 16]);
        let spool = Spool::create(&directories, id, 1 << 20).unwrap();
        spool.keep(StatePart::LogData(Data(b"one".to_vec()))).unwrap();
        assert_eq!(spool.replay().unwrap().count(), 1);
        let files = || fs::read_dir(dir.path().join(DIRECTORY)).unwrap().count();
        assert_eq!(files(), 1);
        std::mem::forget(spool);
        remove(&directories, id).unwrap();
        assert_eq!(files(), 0);
        remove(&directories, id).unwrap();
        drop(Spool::create(&directories, id, 1 << 20).unwrap());
        assert_eq!(files(), 0);
    }
}
