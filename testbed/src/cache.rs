//! The testbed's directories: a cache that outlives runs, and those of running labs.

use std::fs::{self, File, OpenOptions};
use std::hash::Hasher;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::error::{Context, Error, Result};

/// The environment variable with the directory of the cache, instead of `/var/cache/netmig-testbed`. It must be on a
/// disk file system that supports overlays (ext4, xfs, btrfs).
pub const DIRECTORY_VARIABLE: &str = "NETMIG_TESTBED_DIR";

/// Returns the cache directory.
pub fn directory() -> PathBuf {
    std::env::var_os(DIRECTORY_VARIABLE)
        .map_or_else(|| PathBuf::from("/var/cache/netmig-testbed"), PathBuf::from)
}

/// Returns the directory with the disk directories of labs.
pub fn lab_directories() -> PathBuf {
    directory().join("labs")
}

/// Returns the directory with the run-time directories of labs, which have locks and state.
pub fn run_directories() -> PathBuf {
    PathBuf::from("/run/netmig-testbed")
}

/// Creates a directory for root alone, with those above it.
///
/// # Errors
/// The directory could not be created.
pub fn create_private(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .context(|| format!("creating the directory {}", path.display()))
}

/// Waits for the lock of `path` and holds it until the file is dropped.
///
/// # Errors
/// The lock file cannot be created or locked.
pub fn lock(path: &Path) -> Result<File> {
    let file = open_lock(path)?;
    file.lock().context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

/// Opens a lock file without locking it.
pub(crate) fn open_lock(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .context(|| format!("opening the lock file {}", path.display()))
}

/// Returns an entry of the cache and creates it if it does not exist. `make` fills a temporary path, which is renamed
/// to `NAME-KEY` when it is complete. Entries of the same name with other keys are removed, unless a lab or another
/// run of a testbed may use them. Concurrent callers wait for one another.
///
/// # Errors
/// `make` failed, or the entry could not be renamed.
pub fn entry(name: &str, key: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let root = directory();
    create_private(&root)?;
    let path = root.join(format!("{name}-{key}"));
    let mut in_use = IN_USE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let in_use = match &mut *in_use {
        Some(file) => file,
        none => none.insert(share(&root.join("in-use.lock"))?),
    };
    let _lock = lock(&root.join(format!("{name}.lock")))?;
    if path.exists() {
        return Ok(path);
    }
    let unfinished = root.join(format!("{name}.tmp"));
    remove(&unfinished)?;
    make(&unfinished)?;
    if is_empty(&lab_directories()) && in_use.try_lock().is_ok() {
        remove_older(&root, name)?;
    }
    // A failed attempt to make a lock exclusive may lose it (flock(2)).
    in_use.lock_shared().context(|| "sharing the cache's lock")?;
    fs::rename(&unfinished, &path).context(|| format!("putting {} in place", path.display()))?;
    Ok(path)
}

/// The lock that every program which uses an entry of the cache shares until it ends.
static IN_USE: Mutex<Option<File>> = Mutex::new(None);

fn share(path: &Path) -> Result<File> {
    let file = open_lock(path)?;
    file.lock_shared().context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none())
}

/// Removes entries of `name` under any key.
fn remove_older(root: &Path, name: &str) -> Result<()> {
    let list = || format!("listing {}", root.display());
    for entry in fs::read_dir(root).context(list)? {
        let entry = entry.context(list)?;
        let is_older = entry
            .file_name()
            .to_str()
            .and_then(|other| other.strip_prefix(name)?.strip_prefix('-'))
            .is_some_and(|key| key.len() == KEY_LENGTH && !key.contains('-'));
        if is_older {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a file or a directory with its contents. An absent path is not an error.
///
/// # Errors
/// Something could not be removed.
pub fn remove(path: &Path) -> Result<()> {
    let outcome = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match outcome {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.context(|| format!("removing {}", path.display())),
    }
}

const KEY_LENGTH: usize = 16;

/// A hash of everything from which a cache entry is made.
#[derive(Default)]
pub struct Key(std::hash::DefaultHasher);

impl Key {
    /// Adds bytes.
    #[must_use]
    pub fn with(mut self, ingredient: impl AsRef<[u8]>) -> Self {
        let bytes = ingredient.as_ref();
        self.0.write_usize(bytes.len());
        self.0.write(bytes);
        self
    }

    /// Adds the contents of a file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn with_file(self, path: &Path) -> Result<Self> {
        let bytes = fs::read(path).context(|| format!("reading {}", path.display()))?;
        Ok(self.with(bytes))
    }

    /// Returns the key in hexadecimal.
    pub fn finish(&self) -> String {
        format!("{:0KEY_LENGTH$x}", self.0.finish())
    }
}

/// Checks that the cache is on a file system that hosts can use.
///
/// # Errors
/// The file system does not support overlays.
pub fn check_file_system() -> Result<()> {
    const OVERLAYFS: i64 = 0x794c_7630;
    const TMPFS: i64 = 0x0102_1994;
    let root = directory();
    create_private(&root)?;
    let statistics = nix::sys::statfs::statfs(&root)
        .context(|| format!("asking for the file system of {}", root.display()))?;
    let found = match statistics.filesystem_type().0 {
        OVERLAYFS => "an overlay",
        TMPFS => "tmpfs",
        _ => return Ok(()),
    };
    Err(Error::Refused(format!(
        "{} is on {found}, where containers of the lab cannot be stored; set {DIRECTORY_VARIABLE} \
         to a directory on ext4, xfs or btrfs",
        root.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_ingredients_apart() {
        let key = |parts: &[&str]| parts.iter().fold(Key::default(), |key, part| key.with(part));
        assert_eq!(key(&["a", "b"]).finish(), key(&["a", "b"]).finish());
        assert_ne!(key(&["a", "b"]).finish(), key(&["ab"]).finish());
        assert_eq!(key(&[]).finish().len(), KEY_LENGTH);
    }

    #[test]
    fn removing_nothing_is_fine() {
        remove(Path::new("/nonexistent/netmig-testbed")).unwrap();
    }
}
