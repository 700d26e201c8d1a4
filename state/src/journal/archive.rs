//! Journals of arrivals that have ended, kept for sources that may still ask about them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ownership::destination::Holding;

use super::{Error, Journal, Record, read, remembered, write_record};
use crate::directories::create_private;
use crate::id::MigrationId;

/// Number of arrivals that are kept although their sources have said that they will not ask again. An arrival whose source
/// has not said so is kept for ever: a source in doubt must never be told that no copy exists.
const SETTLED: usize = 1024;
/// The directory of arrivals whose sources will not ask again, below that of the others.
const SETTLED_DIRECTORY: &str = "settled";

impl Journal {
    /// Moves the journal to the archive below the state directory: the migration has ended here.
    ///
    /// # Errors
    /// [`Error`], if the archive cannot be created or the file cannot be moved.
    pub fn archive(self, state: &Path) -> Result<(), Error> {
        let directory = archive(state);
        create_private(&directory)?;
        let keep = || {
            if let Some(name) = self.path.file_name() {
                fs::rename(&self.path, directory.join(name))?;
            }
            File::open(&directory)?.sync_all()
        };
        keep().map_err(|source| Error::File { path: self.path.clone(), source })
    }
}

/// Returns the records of an arrival whose copy was activated here, if they are kept.
///
/// # Errors
/// As [`read`].
pub fn archived(state: &Path, migration: MigrationId) -> Result<Option<Vec<Record>>, Error> {
    let directory = archive(state);
    // A journal is moved from the first directory to the second, never back.
    for directory in [directory.clone(), directory.join(SETTLED_DIRECTORY)] {
        match read(&directory.join(migration.to_string())) {
            Ok(records) => return Ok(Some(records)),
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// Adds a record to an arrival that is kept, and waits until it is on disk. Returns whether it is kept.
///
/// # Errors
/// [`Error::File`], if the record cannot be written.
pub fn append_archived(
    state: &Path,
    migration: MigrationId,
    record: &Record,
) -> Result<bool, Error> {
    let path = archive(state).join(migration.to_string());
    let file = match OpenOptions::new().append(true).open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(|source| Error::File { path: path.clone(), source })?,
    };
    let written = file.metadata().and_then(|meta| {
        let written = write_record(&file, record).and_then(|()| file.sync_data());
        if written.is_err() {
            file.set_len(meta.len())?;
        }
        written
    });
    written.map(|()| true).map_err(|source| Error::File { path, source })
}

/// Returns the arrivals that are kept and whose memory has not arrived whole, as far as their records tell.
///
/// # Errors
/// [`Error::File`], if the archive cannot be listed. Journals that cannot be read are left out.
pub fn outstanding(state: &Path) -> Result<Vec<(MigrationId, Vec<Record>)>, Error> {
    let directory = archive(state);
    let entries = match fs::read_dir(&directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|source| Error::File { path: directory.clone(), source })?,
    };
    let mut all = Vec::new();
    for entry in entries.flatten().filter(|entry| entry.path().is_file()) {
        let records = read(&entry.path()).unwrap_or_default();
        let Some(Record::Arrival { migration, .. }) = records.first() else { continue };
        if remembered(&records) == Holding::Outstanding {
            all.push((*migration, records));
        }
    }
    Ok(all)
}

/// Returns whether a container has arrived here by a migration that began at `since` or later, in seconds since 1970.
///
/// # Errors
/// [`Error::File`], if the archive cannot be listed. Journals that cannot be read are left out.
pub fn has_arrived_since(state: &Path, id: &str, since: u64) -> Result<bool, Error> {
    let directory = archive(state);
    for directory in [directory.clone(), directory.join(SETTLED_DIRECTORY)] {
        let entries = match fs::read_dir(&directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|source| Error::File { path: directory.clone(), source })?,
        };
        for entry in entries.flatten() {
            let records = read(&entry.path()).unwrap_or_default();
            let is_it = matches!(
                records.first(),
                Some(Record::Arrival { container, began, .. }) if container == id && *began >= since
            );
            let is_here = records.iter().any(|record| matches!(record, Record::HandedOver { .. }));
            if is_it && is_here {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Notes that the source of an arrival will not ask about it again: its records are removed once there are many
/// later ones. Absent means done.
///
/// # Errors
/// [`Error::File`], if the journal cannot be moved.
pub fn settle(state: &Path, migration: MigrationId) -> Result<(), Error> {
    let directory = archive(state);
    let path = directory.join(migration.to_string());
    let settled = directory.join(SETTLED_DIRECTORY);
    let move_there = || {
        fs::create_dir_all(&settled)?;
        match fs::rename(&path, settled.join(migration.to_string())) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => prune(&settled),
        }
    };
    move_there().map_err(|source| Error::File { path: path.clone(), source })
}

/// Removes the oldest journals beyond the limit.
fn prune(directory: &Path) -> io::Result<()> {
    let mut all = Vec::<(SystemTime, PathBuf)>::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        all.push((entry.metadata()?.modified()?, entry.path()));
    }
    all.sort();
    let surplus = all.len().saturating_sub(SETTLED);
    all.into_iter().take(surplus).try_for_each(|(_, path)| fs::remove_file(path))
}

fn archive(state: &Path) -> PathBuf {
    state.join("arrived")
}
