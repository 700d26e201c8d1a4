//! The journal of a migration: each step is on disk before it is taken.
//!
//! There is one file per migration: a header line, then one JSON record per line, each synced before the step that
//! it announces. After a crash the file says how far the migration may have come and what it has created. The file
//! is removed when the migration has ended, either way.
//!
//! The process at work holds a lock on the file (flock(2)), which the kernel releases when the process ends. The
//! process that gets the lock by [`claim`] owns the migration.
//!
//! A destination that has activated its copy keeps the file in another directory ([`Journal::archive`]): a source
//! that asks later, even after restarts, must not be told that no copy exists.
//!
//! A last line without its newline was being written when the machine stopped. Its step never began, so it is
//! ignored. A file in which anything else cannot be read is refused as a whole.

mod archive;
mod record;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use ownership::destination::{self, Holding};
use ownership::source::Departure;

use crate::directories::create_private;
use crate::id::MigrationId;

pub use self::archive::{append_archived, archived, has_arrived_since, outstanding, settle};
pub use self::record::{Process, Record};

const HEADER: &str = "netmig journal 2";
/// Journals of this earlier version are read as well: a host may be upgraded while a move is in doubt.
const EARLIER: &str = "netmig journal 1";
/// Maximum size of a journal in bytes: a migration writes some records of a few hundred bytes.
const SIZE_LIMIT: u64 = 1024 * 1024;

/// A journal cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be used.
    #[error("cannot use journal {path}")]
    File {
        /// The journal.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The directory cannot be used.
    #[error(transparent)]
    Directory(#[from] crate::directories::Error),
    /// The file is not a journal of a known version.
    #[error(
        "{path} is not a journal that this version of netmig can read; nothing was done about it"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A record is damaged.
    #[error("line {line} of journal {path} is damaged; nothing was done about it")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The number of the line; 1 is the header.
        line: usize,
    },
}

/// The journal of one migration, open for appending and locked while this exists.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: Flock<File>,
}

impl Journal {
    /// Begins the journal of a migration below the state directory with its first record. The file appears there
    /// complete and locked, or not at all.
    ///
    /// # Errors
    /// [`Error`], if the file cannot be created, or a journal of this migration exists.
    pub fn begin(state: &Path, migration: MigrationId, first: &Record) -> Result<Self, Error> {
        let directory = directory(state);
        create_private(&directory)?;
        let path = path(state, migration);
        let fresh = unmade(&path);
        let make = || {
            let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&fresh)?;
            let mut file =
                Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e)?;
            writeln!(file, "{HEADER}")?;
            write_record(&file, first)?;
            file.sync_all()?;
            // Unlike rename(2), this does not replace the journal of another process.
            fs::hard_link(&fresh, &path)?;
            Ok(file)
        };
        let made = make();
        let removed = fs::remove_file(&fresh).and_then(|()| File::open(&directory)?.sync_all());
        let file = made.map_err(|source| Error::File { path: path.clone(), source })?;
        let journal = Self { path, file };
        if let Err(source) = removed {
            let path = journal.path.clone();
            journal.end()?;
            return Err(Error::File { path, source });
        }
        Ok(journal)
    }

    /// Appends a record and waits until it is on disk.
    ///
    /// # Errors
    /// [`Error::File`], if the record cannot be written. Then the journal does not contain it.
    pub fn append(&mut self, record: &Record) -> Result<(), Error> {
        let write = || {
            let length = self.file.metadata()?.len();
            let written = write_record(&self.file, record).and_then(|()| self.file.sync_data());
            if written.is_err() {
                // A partial record, or one that may not survive, would make later ones unreadable.
                self.file.set_len(length)?;
                self.file.sync_data()?;
            }
            written
        };
        write().map_err(|source| Error::File { path: self.path.clone(), source })
    }

    /// Removes the journal: the migration has ended and left nothing behind.
    ///
    /// # Errors
    /// [`Error::File`], if the file cannot be removed.
    pub fn end(self) -> Result<(), Error> {
        fs::remove_file(&self.path).map_err(|source| Error::File { path: self.path, source })
    }
}

/// Removes the remains of a journal whose process died before the journal appeared. Absent means done.
///
/// # Errors
/// The file cannot be removed.
pub fn forget_unmade(path: &Path) -> io::Result<()> {
    match fs::remove_file(unmade(path)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Returns the path at which a journal is created before it appears at `path`.
fn unmade(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}"))
}

fn write_record(mut file: &File, record: &Record) -> io::Result<()> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    file.write_all(&line)
}

/// Returns whether a migration has a journal here that has not ended.
///
/// # Errors
/// [`Error::File`], if the kernel cannot tell: that is not the same as no journal.
pub fn exists(state: &Path, migration: MigrationId) -> Result<bool, Error> {
    let path = path(state, migration);
    path.try_exists().map_err(|source| Error::File { path: path.clone(), source })
}

/// Returns how far a departure with these records has come.
#[must_use]
pub fn reached(records: &[Record]) -> Departure {
    let of = |record: &Record| match record {
        Record::Withdrawn => Departure::Withdrawn,
        Record::Acknowledged => Departure::Acknowledged,
        Record::PagesOutstanding => Departure::Outstanding,
        Record::Committed { .. } => Departure::Committed,
        Record::Interruption { .. } => Departure::Interrupted,
        _ => Departure::Preparing,
    };
    records.iter().map(of).max().unwrap_or(Departure::Preparing)
}

/// Returns what the records of an arrival that the engine has taken over, or that was lost, tell of it.
#[must_use]
pub fn remembered(records: &[Record]) -> Holding {
    let has = |record| records.contains(&record);
    let wants_none = has(Record::PagesWhole) || has(Record::EndedIncomplete);
    destination::remembered(has(Record::PostCopy), wants_none, has(Record::Lost))
}

/// Returns the present time in seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Takes over a journal whose process has died, with its records; `None` if the process is still at work, or has
/// just ended the journal.
///
/// # Errors
/// [`Error`], if the journal cannot be read or locked, or is damaged.
pub fn claim(path: &Path) -> Result<Option<(Journal, Vec<Record>)>, Error> {
    let error = |source| Error::File { path: path.to_owned(), source };
    let file = match OpenOptions::new().read(true).append(true).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(error)?,
    };
    let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => file,
        Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
        Err((_, errno)) => return Err(error(errno.into())),
    };
    // Its owner may have removed it between opening and locking.
    let ours = file.metadata().map_err(error)?.ino();
    match fs::metadata(path) {
        Ok(there) if there.ino() == ours => {}
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(error(e)),
        _ => return Ok(None),
    }
    let bytes = bounded(&mut *file).map_err(error)?;
    let records = parse(&bytes).map_err(|line| refusal(path, line))?;
    let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
    if whole < bytes.len() {
        file.set_len(whole as u64).map_err(error)?;
    }
    Ok(Some((Journal { path: path.to_owned(), file }, records)))
}

/// Returns the paths of the journals of migrations that have not ended.
///
/// # Errors
/// [`Error::File`], if their directory cannot be read.
pub fn unfinished(state: &Path) -> Result<Vec<PathBuf>, Error> {
    let path = directory(state);
    let file = |source| Error::File { path: path.clone(), source };
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(file(e)),
    };
    let mut found: Vec<PathBuf> =
        entries.map(|entry| entry.map(|e| e.path())).collect::<io::Result<_>>().map_err(file)?;
    // A name that begins with a dot is that of a journal that was being created; nothing was done yet.
    found.retain(|path| !path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b".")));
    found.sort();
    Ok(found)
}

/// Reads a journal.
///
/// # Errors
/// [`Error`], if the journal cannot be read or is damaged.
pub fn read(path: &Path) -> Result<Vec<Record>, Error> {
    let file = |source| Error::File { path: path.to_owned(), source };
    let bytes = File::open(path).and_then(bounded).map_err(file)?;
    parse(&bytes).map_err(|line| refusal(path, line))
}

/// Reads a whole file, unless it is longer than a journal may be: a part of a journal would be another journal.
fn bounded(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(SIZE_LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SIZE_LIMIT {
        Err(io::ErrorKind::FileTooLarge.into())
    } else {
        Ok(bytes)
    }
}

fn refusal(path: &Path, line: usize) -> Error {
    match line {
        1 => Error::Foreign { path: path.to_owned() },
        line => Error::Damaged { path: path.to_owned(), line },
    }
}

/// Parses the bytes of a journal.
///
/// # Errors
/// The number of the line that is wrong.
pub fn parse(bytes: &[u8]) -> Result<Vec<Record>, usize> {
    let mut lines = bytes.split_inclusive(|&b| b == b'\n');
    let header = lines.next().and_then(|line| line.strip_suffix(b"\n"));
    if header != Some(HEADER.as_bytes()) && header != Some(EARLIER.as_bytes()) {
        return Err(1);
    }
    lines
        .filter_map(|line| line.strip_suffix(b"\n"))
        .enumerate()
        .map(|(n, line)| serde_json::from_slice(line).map_err(|_| n + 2))
        .collect()
}

/// Returns the path of a migration's journal, below the state directory.
#[must_use]
pub fn path(state: &Path, migration: MigrationId) -> PathBuf {
    directory(state).join(migration.to_string())
}

fn directory(state: &Path) -> PathBuf {
    state.join("journal")
}

#[cfg(test)]
mod tests;
