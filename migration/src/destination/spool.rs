//! What comes of a container's files before there is a container to put it into.
//!
//! A first pass over large files may take minutes, and podman holds a container's lock from its staging on.
//! So the messages of the first pass are kept in a file of the state directory, and applied once the
//! container is staged.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use protocol::message::{FRAME_LIMIT, Message, MigrationId};
use state::cause::Cause;
use state::directories::{Directories, create_private};

/// Where the files are, below the state directory: they may be larger than the host's memory.
const DIRECTORY: &str = "spool";

/// What cannot be kept.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// More than the peer may store.
    #[error("the container's files are larger than the {limit} bytes that are allowed")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// The file fails.
    #[error("cannot keep what comes of the container's files in {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The first pass over a container's files. Removed when dropped.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    file: BufWriter<File>,
    room: u64,
    limit: u64,
}

impl Spool {
    /// Makes an empty one that holds at most `limit` bytes.
    pub fn create(
        directories: &Directories,
        migration: MigrationId,
        limit: u64,
    ) -> Result<Self, Cause> {
        create_private(&directories.state.join(DIRECTORY))?;
        let path = path(directories, migration);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&path).map_err(|e| fail(&path)(e))?;
        Ok(Self { path, file: BufWriter::with_capacity(1 << 20, file), room: limit, limit })
    }

    /// Keeps a message.
    pub fn keep(&mut self, message: &Message) -> Result<(), Cause> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes)?;
        let left = self.room.checked_sub(bytes.len() as u64);
        self.room = left.ok_or(Error::TooLarge { limit: self.limit })?;
        let length =
            u32::try_from(bytes.len()).map_err(|_| Error::TooLarge { limit: self.limit })?;
        let mut write = || {
            self.file.write_all(&length.to_le_bytes())?;
            self.file.write_all(&bytes)
        };
        Ok(write().map_err(fail(&self.path))?)
    }

    /// Gives every message again, in order.
    pub fn replay(
        &mut self,
        mut sink: impl FnMut(Message) -> Result<(), Cause>,
    ) -> Result<(), Cause> {
        let rewound = self.file.flush().and_then(|()| {
            let mut file = self.file.get_ref().try_clone()?;
            file.seek(SeekFrom::Start(0))?;
            Ok(file)
        });
        let mut file = BufReader::with_capacity(1 << 20, rewound.map_err(fail(&self.path))?);
        let mut bytes = Vec::new();
        while let Some(length) = next_length(&mut file).map_err(fail(&self.path))? {
            bytes.resize(length, 0);
            file.read_exact(&mut bytes).map_err(fail(&self.path))?;
            sink(Message::decode(&bytes)?)?;
        }
        let end = self.file.seek(SeekFrom::End(0));
        end.map(drop).map_err(|e| fail(&self.path)(e).into())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Err(error) = remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a file stays");
        }
    }
}

/// Removes what a dead process has kept of a migration. Absent means done.
pub fn remove(directories: &Directories, migration: MigrationId) -> Result<(), Cause> {
    let path = path(directories, migration);
    Ok(remove_file(&path).map_err(fail(&path))?)
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

fn fail(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File { path, source }
}

/// The length of the next message; `None` at the end.
fn next_length(file: &mut impl Read) -> io::Result<Option<usize>> {
    let mut length = [0; 4];
    match file.read_exact(&mut length) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
        Ok(()) => match usize::try_from(u32::from_le_bytes(length)) {
            Ok(length) if length <= FRAME_LIMIT => Ok(Some(length)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::message::Data;

    fn directories(dir: &Path) -> Directories {
        Directories { state: dir.to_owned(), run: dir.to_owned() }
    }

    fn data(bytes: &[u8]) -> Message {
        Message::LogData(Data(bytes.to_vec()))
    }

    fn contents(spool: &mut Spool) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut take = |message| {
            if let Message::LogData(Data(bytes)) = message {
                all.push(bytes);
            }
            Ok(())
        };
        spool.replay(&mut take).unwrap();
        all
    }

    #[test]
    fn messages_come_again_in_order_and_as_often_as_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let directories = directories(dir.path());
        let id = MigrationId([5; 16]);
        let mut spool = Spool::create(&directories, id, 1 << 20).unwrap();
        assert_eq!(contents(&mut spool), Vec::<Vec<u8>>::new());
        spool.keep(&data(b"one")).unwrap();
        spool.keep(&data(b"two")).unwrap();
        for _ in 0..2 {
            assert_eq!(contents(&mut spool), [b"one".to_vec(), b"two".to_vec()]);
        }
        spool.keep(&data(b"three")).unwrap();
        assert_eq!(contents(&mut spool).len(), 3);
        drop(spool);
        assert_eq!(fs::read_dir(dir.path().join(DIRECTORY)).unwrap().count(), 0);
        remove(&directories, id).unwrap();
    }

    #[test]
    fn no_more_is_kept_than_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool =
            Spool::create(&directories(dir.path()), MigrationId([5; 16]), 1000).unwrap();
        spool.keep(&data(&[0; 500])).unwrap();
        let refused = spool.keep(&data(&[0; 500])).unwrap_err();
        assert!(refused.to_string().contains("1000 bytes"), "{refused}");
    }
}
