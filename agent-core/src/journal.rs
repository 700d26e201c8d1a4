//! What a migration has done so far, on disk before it is done.
//!
//! One file per migration: a header line, then one JSON record a line, each synced before the act it
//! announces. Whoever finds the file after a crash knows how far the migration may have come and
//! what it made. The file goes when the migration has ended, either way.
//!
//! A last line without its newline was being written when the machine stopped: its act never began,
//! so it does not count. Anything else that cannot be read makes the whole file refused.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::directories::create_private;
use crate::identity::HostId;
use crate::message::MigrationId;

const HEADER: &str = "netmig journal 1";
/// A migration writes a handful of records of a few hundred bytes.
const SIZE_LIMIT: u64 = 1024 * 1024;

/// One step that is about to be taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "record")]
pub enum Record {
    /// The source is about to change something for the first time.
    Departure {
        /// The migration.
        migration: MigrationId,
        /// The container's ID.
        container: String,
        /// The container's name, for people.
        name: String,
        /// The container's addresses, by which its flows are found.
        addresses: Vec<IpAddr>,
        /// The destination as the user wrote it, to dial again.
        destination: String,
        /// The destination's identity.
        peer: HostId,
    },
    /// The source is about to hold the container's packets, cut it off and freeze it.
    Interruption {
        /// Its cgroup, an absolute path.
        cgroup: PathBuf,
        /// The host's side of its veth pair.
        port: String,
    },
    /// **The commit point.** The source has heard that the copy is prepared. From here on the
    /// original never runs again, whatever crashes.
    Committed,
    /// The destination has acknowledged; the original is about to be removed.
    Acknowledged,
    /// The destination is about to make something for the first time.
    Arrival {
        /// The migration.
        migration: MigrationId,
        /// The container's ID.
        container: String,
        /// The container's name, for people.
        name: String,
        /// The source's identity.
        peer: HostId,
    },
    /// The destination is about to restore an isolated copy.
    Restoring,
    /// The destination is about to make the copy audible: it is the container now.
    Activated,
}

/// A journal could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file failed.
    #[error("cannot use journal {path}")]
    File {
        /// The journal.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The directory failed.
    #[error(transparent)]
    Directory(#[from] crate::directories::Error),
    /// The file is not a journal of this version.
    #[error("{path} is not a journal that this version of netmig can read; nothing was done about it")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A record is damaged.
    #[error("line {line} of journal {path} is damaged; nothing was done about it")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// 1 is the header.
        line: usize,
    },
}

/// The journal of one migration, open for appending.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Starts the journal of `migration` below the state directory, with its first record.
    pub fn begin(state: &Path, migration: MigrationId, first: &Record) -> Result<Self, Error> {
        let directory = directory(state);
        create_private(&directory)?;
        let path = directory.join(migration.to_string());
        let open = || {
            let mut file =
                OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path)?;
            writeln!(file, "{HEADER}")?;
            file.sync_all()?;
            File::open(&directory)?.sync_all()?;
            Ok(file)
        };
        let file = open().map_err(|source| Error::File { path: path.clone(), source })?;
        let mut journal = Self { path, file };
        journal.append(first)?;
        Ok(journal)
    }

    /// Writes a record and waits until it is on disk.
    pub fn append(&mut self, record: &Record) -> Result<(), Error> {
        let mut write = || {
            let mut line = serde_json::to_vec(record)?;
            line.push(b'\n');
            self.file.write_all(&line)?;
            self.file.sync_data()
        };
        write().map_err(|source| Error::File { path: self.path.clone(), source })
    }

    /// The migration has ended and left nothing behind: the journal goes.
    pub fn end(self) -> Result<(), Error> {
        fs::remove_file(&self.path).map_err(|source| Error::File { path: self.path, source })
    }
}

/// The journals of migrations that have not ended.
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
    found.sort();
    Ok(found)
}

/// Reads a journal. Nothing is returned of one that is damaged.
pub fn read(path: &Path) -> Result<Vec<Record>, Error> {
    let file = |source| Error::File { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|f| f.take(SIZE_LIMIT).read_to_end(&mut bytes)).map_err(file)?;
    parse(&bytes).map_err(|line| match line {
        1 => Error::Foreign { path: path.to_owned() },
        line => Error::Damaged { path: path.to_owned(), line },
    })
}

/// Parses a journal's bytes; the error is the number of the line that is wrong.
pub fn parse(bytes: &[u8]) -> Result<Vec<Record>, usize> {
    let mut lines = bytes.split_inclusive(|&b| b == b'\n');
    let header = lines.next().and_then(|line| line.strip_suffix(b"\n"));
    if header != Some(HEADER.as_bytes()) {
        return Err(1);
    }
    lines
        .filter_map(|line| line.strip_suffix(b"\n"))
        .enumerate()
        .map(|(n, line)| serde_json::from_slice(line).map_err(|_| n + 2))
        .collect()
}

fn directory(state: &Path) -> PathBuf {
    state.join("journal")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn departure() -> Record {
        Record::Departure {
            migration: MigrationId([3; 16]),
            container: "c".repeat(64),
            name: "web".to_owned(),
            addresses: vec![IpAddr::from([10, 88, 0, 2])],
            destination: "b:7472".to_owned(),
            peer: HostId([9; 16]),
        }
    }

    #[test]
    fn records_are_read_back_and_the_end_leaves_nothing() {
        let state = tempfile::tempdir().unwrap();
        let mut journal =
            Journal::begin(state.path(), MigrationId([3; 16]), &departure()).unwrap();
        journal.append(&Record::Committed).unwrap();
        let found = unfinished(state.path()).unwrap();
        assert_eq!(read(&found[0]).unwrap(), [departure(), Record::Committed]);
        journal.end().unwrap();
        assert_eq!(unfinished(state.path()).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_torn_last_record_does_not_count() {
        let bytes = format!("{HEADER}\n{{\"record\":\"committed\"}}\n{{\"record\":\"ackn");
        assert_eq!(parse(bytes.as_bytes()), Ok(vec![Record::Committed]));
    }

    #[test]
    fn damage_and_foreign_files_are_refused() {
        assert_eq!(parse(b""), Err(1));
        assert_eq!(parse(b"\x7fELF\n"), Err(1));
        assert_eq!(parse(b"netmig journal 2\n"), Err(1));
        let damaged = format!("{HEADER}\n{{\"record\":\"committed\"}}\nrubbish\n");
        assert_eq!(parse(damaged.as_bytes()), Err(3));
    }
}
