//! Volumes that a container has left behind when it moved: which they are, as notes in the state directory.
//!
//! The source keeps a volume when the container goes. The container may come back to it: then the volume is replaced by the
//! container's own, for what the note names is an earlier state of that. Any other volume of the name is somebody else's.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use engine::volume::Volume;
use serde::{Deserialize, Serialize};
use state::cause::Cause;
use state::directories::Directories;
use state::id::{HostId, MigrationId};
use state::{json_files, private_file};

/// Directory of the notes, below that for lasting things.
const DIRECTORY: &str = "volumes";
/// Version of their form.
const VERSION: u32 = 1;

/// Most bytes of a volume's name: that of its note is longer, and file names have 255 at most.
pub const LONGEST_NAME: usize = 200;

/// A volume that was left behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptVolume {
    /// The volume's name.
    pub volume: String,
    /// When it was made, in the engine's words: a later volume of the name differs in it.
    pub created: String,
    /// The ID of the container that it belongs to.
    pub container: String,
    /// The migration by which that has gone.
    pub migration: MigrationId,
    /// The host that it has gone to.
    pub host: HostId,
    /// When, in seconds since 1970.
    pub at: u64,
    /// The nanoseconds beyond; an earlier version has not noted them.
    #[serde(default)]
    pub at_ns: Option<u32>,
}

/// Notes that a volume is left behind.
///
/// # Errors
/// The note cannot be written.
pub fn note(directories: &Directories, kept: &KeptVolume) -> Result<(), Cause> {
    Ok(json_files::write(&path(directories, &kept.volume), VERSION, kept)?)
}

/// Returns what is noted of a volume; `None` if it was not left behind.
///
/// # Errors
/// The note cannot be read.
pub fn find(directories: &Directories, volume: &str) -> Result<Option<KeptVolume>, Cause> {
    Ok(json_files::read(&path(directories, volume), VERSION)?)
}

/// What a volume is to a container that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The container has left it, and nothing has changed in it since.
    Left,
    /// The container has left it, and somebody has changed its files since.
    Changed,
    /// It is none of the container's.
    Other,
}

/// Whether a volume was changed cannot be told.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the files of the volume {volume} on this host")]
struct Unreadable {
    volume: String,
    #[source]
    source: io::Error,
}

/// Returns what a volume of this host is to a container. Blocks the calling thread.
///
/// # Errors
/// The note, or a file of the volume, cannot be read.
pub fn standing(
    directories: &Directories,
    volume: &Volume,
    container: &str,
) -> Result<Standing, Cause> {
    let Some(kept) = find(directories, &volume.name)? else { return Ok(Standing::Other) };
    if kept.container != container || kept.created != volume.created || !volume.is_plain() {
        return Ok(Standing::Other);
    }
    // All of that second, where no more is known.
    let at = (kept.at, kept.at_ns.unwrap_or(u32::MAX));
    let changed = changed_since(&volume.data, at);
    let failed = |source| Unreadable { volume: volume.name.clone(), source };
    Ok(match changed.map_err(failed)? {
        true => Standing::Changed,
        false => Standing::Left,
    })
}

/// Returns whether anything below a directory was changed later than `at`, in seconds since 1970 and nanoseconds.
fn changed_since(root: &Path, at: (u64, u32)) -> io::Result<bool> {
    let is_later = |seconds: i64, nanoseconds: i64| {
        let whole = u64::try_from(seconds).unwrap_or(0);
        (whole, u32::try_from(nanoseconds).unwrap_or(0)) > at
    };
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let entries = match fs::read_dir(&directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && directory != root => return Ok(true),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let meta = match entry.metadata() {
                // Somebody removes files at this moment.
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
                other => other?,
            };
            if is_later(meta.ctime(), meta.ctime_nsec()) {
                return Ok(true);
            }
            if meta.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    // A name that is gone changes its directory alone.
    let meta = fs::metadata(root)?;
    Ok(is_later(meta.mtime(), meta.mtime_nsec()))
}

/// Forgets that a volume was left behind: its container is back, or the volume is gone.
///
/// # Errors
/// The note cannot be removed.
pub fn forget(directories: &Directories, volume: &str) -> Result<(), Cause> {
    private_file::remove(&path(directories, volume))?;
    Ok(())
}

/// Volumes have names without slashes, which do not begin with a dot.
fn path(directories: &Directories, volume: &str) -> PathBuf {
    directories.state.join(DIRECTORY).join(format!("{volume}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_found_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let directories = Directories { state: dir.path().to_owned(), run: dir.path().to_owned() };
        let kept = KeptVolume {
            volume: "data".to_owned(),
            created: "2026".to_owned(),
            container: "a7".repeat(32),
            migration: MigrationId([7; 16]),
            host: HostId([2; 16]),
            at: 5,
            at_ns: Some(0),
        };
        assert_eq!(find(&directories, "data").unwrap(), None);
        note(&directories, &kept).unwrap();
        assert_eq!(find(&directories, "data").unwrap(), Some(kept));
        let volume = |created: &str| Volume {
            name: "data".to_owned(),
            driver: "local".to_owned(),
            data: dir.path().join("data"),
            created: created.to_owned(),
            ..Volume::default()
        };
        fs::create_dir(dir.path().join("data")).unwrap();
        let standing = |created, id: &str| standing(&directories, &volume(created), id).unwrap();
        assert_eq!(standing("2026", &"a7".repeat(32)), Standing::Changed, "after the fifth second");
        assert_eq!(standing("2027", &"a7".repeat(32)), Standing::Other, "a later one of the name");
        assert_eq!(standing("2026", &"b8".repeat(32)), Standing::Other, "another container's");
        let later = KeptVolume { at: u64::MAX, ..find(&directories, "data").unwrap().unwrap() };
        note(&directories, &later).unwrap();
        assert_eq!(standing("2026", &"a7".repeat(32)), Standing::Left);
        let file = dir.path().join("data/file");
        fs::write(&file, "").unwrap();
        let meta = fs::metadata(&file).unwrap();
        let seconds = u64::try_from(meta.ctime()).unwrap();
        let nanoseconds = u32::try_from(meta.ctime_nsec()).unwrap();
        for (at, expected) in [
            ((seconds, Some(nanoseconds)), Standing::Left),
            ((seconds, nanoseconds.checked_sub(1)), Standing::Changed),
            ((seconds, None), Standing::Left),
            ((seconds - 1, None), Standing::Changed),
        ] {
            let of_second = KeptVolume { at: at.0, at_ns: at.1, ..later.clone() };
            note(&directories, &of_second).unwrap();
            assert_eq!(standing("2026", &"a7".repeat(32)), expected, "{at:?} for {meta:?}");
        }
        forget(&directories, "data").unwrap();
        forget(&directories, "data").unwrap();
        assert_eq!(find(&directories, "data").unwrap(), None);
    }
}
