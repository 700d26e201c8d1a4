//! Notes: JSON files in a directory of their own, each with the version of its form. Several processes read and
//! replace them at the same time.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::private_file;
use crate::versioned_file::{self, Json};

pub use crate::versioned_file::Error;

/// The extension of notes' names.
const EXTENSION: &str = "json";

/// Writes a note in place of an earlier one of this name, and makes the directory if it is missing.
///
/// # Errors
/// [`Error::File`], if the kernel refuses.
pub fn write<T: Serialize>(path: &Path, version: u32, note: &T) -> Result<(), Error> {
    versioned_file::write::<Json, T>(path, version, note)
}

/// Reads a note; `None` if there is none. `known` is the latest version that the caller reads.
///
/// # Errors
/// [`Error`]: the note cannot be read, is of a later version, or holds something else.
pub fn read<T: DeserializeOwned>(path: &Path, known: u32) -> Result<Option<T>, Error> {
    versioned_file::read::<Json, T>(path, known)
}

/// Reads all notes of a directory, with their paths; none if there is no directory. Notes that are removed or
/// written meanwhile are left out.
///
/// # Errors
/// As [`read`], of any of them.
pub fn all<T: DeserializeOwned>(directory: &Path, known: u32) -> Result<Vec<(PathBuf, T)>, Error> {
    let mut notes = Vec::new();
    for path in paths(directory).map_err(private_file::Error::of(directory))? {
        if let Some(note) = read(&path, known)? {
            notes.push((path, note));
        }
    }
    Ok(notes)
}

/// Lists the notes of a directory. Removes unfinished files of killed processes.
fn paths(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if private_file::is_unfinished(&path) {
            private_file::forget_unfinished(&path);
        } else if path.extension().is_some_and(|extension| extension == EXTENSION) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_come_back_whatever_lies_beside_them() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("notes");
        assert!(all::<String>(&directory, 1).unwrap().is_empty());
        for name in ["b", "a"] {
            write(&directory.join(name).with_extension("json"), 1, &name).unwrap();
        }
        for beside in ["x.new", ".a.json.7-1.new", ".hidden", "README"] {
            private_file::replace(&directory.join(beside), b"{\"version\":1,\"note\":\"x\"}")
                .unwrap();
        }
        let notes: Vec<String> = all(&directory, 1).unwrap().into_iter().map(|(_, n)| n).collect();
        assert_eq!(notes, ["a", "b"]);
        assert_eq!(read::<String>(&directory.join("c.json"), 1).unwrap(), None);
    }

    #[test]
    fn a_note_that_cannot_be_read_is_refused_among_others() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("b.json"), 1, &"b").unwrap();
        private_file::replace(&dir.path().join("a.json"), b"{").unwrap();
        let error = all::<String>(dir.path(), 1).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("a.json"), "{error}");
    }
}
