//! Small files of the state directory that only root may read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::directories;

/// The extension of files that are being written and will replace others.
const UNFINISHED: &str = "new";
/// The age at which such a file counts as abandoned. Writing one takes milliseconds.
const ABANDONED: Duration = Duration::from_secs(600);

/// A file of the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refuses.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Other users may have read or written the file.
    #[error(
        "{path} is open to others (owner {owner}, mode {mode:04o}); if you are sure that nobody used that, give it to root with mode 0600, otherwise remove it and pair the hosts anew"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// The user ID of its owner.
        owner: u32,
        /// The permission bits.
        mode: u32,
    },
    /// The file is larger than netmig writes it.
    #[error("{path} is larger than {limit} bytes, so netmig did not write it; move it away")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that netmig writes, in bytes.
        limit: u64,
    },
    /// The file's directory cannot be created.
    #[error(transparent)]
    Directory(#[from] directories::Error),
}

impl Error {
    /// Returns a function for `map_err` on an operation on `path`.
    pub fn of(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::File { path: path.to_owned(), source }
    }
}

/// Reads a whole file of at most `limit` bytes; `None` if there is none.
///
/// # Errors
/// [`Error`], if the file is larger, belongs to another user or can be read by others, or the kernel refuses.
pub fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let mut file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::of(path))?,
    };
    let metadata = file.metadata().map_err(Error::of(path))?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if owner != nix::unistd::geteuid().as_raw() || mode & 0o077 != 0 {
        return Err(Error::Exposed { path: path.to_owned(), owner, mode });
    }
    let mut bytes = Vec::new();
    (&mut file).take(limit + 1).read_to_end(&mut bytes).map_err(Error::of(path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge { path: path.to_owned(), limit });
    }
    Ok(Some(bytes))
}

/// Replaces a file atomically and durably, with mode 0600. If several processes do so at the same time, the last
/// one wins.
///
/// # Errors
/// [`Error::File`], if the kernel refuses.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write_whole(path, bytes).map_err(Error::of(path))
}

/// Removes a file; returns whether there was one.
///
/// # Errors
/// [`Error::File`], if the kernel refuses.
pub fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::of(path)(e)),
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (fresh, mut file) = unfinished(path)?;
    let mut written = || {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    if let Err(e) = written() {
        // On a full disk the file exists, and is empty.
        let _ = fs::remove_file(&fresh);
        return Err(e);
    }
    if let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Creates a file beside `path` with a name that no other process or thread uses: several may replace the same
/// file.
fn unfinished(path: &Path) -> io::Result<(PathBuf, File)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    loop {
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let fresh = path.with_file_name(format!(".{name}.{process}-{number}.{UNFINISHED}"));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh) {
            // It was left by a killed process with the same ID.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other.map(|file| (fresh, file)),
        }
    }
}

/// Returns whether a file is being written and will replace another one.
pub(crate) fn is_unfinished(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == UNFINISHED)
}

/// Removes such a file if it is abandoned.
pub(crate) fn forget_unfinished(path: &Path) {
    let age = fs::metadata(path).and_then(|file| file.modified()).map(|time| time.elapsed());
    if matches!(age, Ok(Ok(age)) if age > ABANDONED) {
        // A file that stays does no harm.
        let _ = fs::remove_file(path);
    }
}

/// The lock of a state directory, which agents of both roles share. A process holds it while it changes the
/// directory.
#[derive(Debug)]
pub struct StateLock {
    _file: Flock<File>,
}

/// Takes the lock of a state directory. Blocks while another process holds it, for milliseconds.
///
/// # Errors
/// [`Error::File`], if the directory does not exist or cannot be written.
pub fn lock(state: &Path) -> Result<StateLock, Error> {
    let path = state.join("lock");
    let handle = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(Error::of(&path))?;
    Flock::lock(handle, FlockArg::LockExclusive)
        .map(|file| StateLock { _file: file })
        .map_err(|(_, errno)| Error::of(&path)(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_come_back_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        assert!(read(&path, 10).unwrap().is_none());
        replace(&path, b"12345").unwrap();
        assert_eq!(read(&path, 5).unwrap().unwrap(), b"12345");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
    }

    #[test]
    fn nothing_is_left_of_a_file_that_could_not_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"12345").is_err());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(left, [path]);
    }

    #[test]
    fn large_and_open_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        replace(&path, b"12345").unwrap();
        assert!(matches!(read(&path, 4), Err(Error::TooLarge { limit: 4, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read(&path, 5), Err(Error::Exposed { mode: 0o640, .. })));
    }

    #[test]
    fn two_may_replace_a_file_at_one_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        std::thread::scope(|scope| {
            for text in [b"12345", b"67890"] {
                let path = &path;
                scope.spawn(move || (0..100).for_each(|_| replace(path, text).unwrap()));
            }
        });
        let text = read(&path, 5).unwrap().unwrap();
        assert!(text == b"12345" || text == b"67890", "{text:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
