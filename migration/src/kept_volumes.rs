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
    Ok(match changed_since(&volume.data, kept.at)? {
        true => Standing::Changed,
        false => Standing::Left,
    })
}

/// Returns whether anything below a directory was changed in a later second than `at`, in seconds since 1970.
fn changed_since(root: &Path, at: u64) -> io::Result<bool> {
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if u64::try_from(meta.ctime()).unwrap_or(0) > at {
                return Ok(true);
            }
            if meta.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    // A name that is gone changes its directory alone.
    Ok(u64::try_from(fs::metadata(root)?.mtime()).unwrap_or(0) > at)
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
        forget(&directories, "data").unwrap();
        forget(&directories, "data").unwrap();
        assert_eq!(find(&directories, "data").unwrap(), None);
    }
}
