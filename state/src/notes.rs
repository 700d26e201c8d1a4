//! Notes: small JSON files in a directory of their own, each with the version of its form. Several processes
//! read and replace them at one time.
//!
//! What cannot be read is refused, and never taken for absent: flows may depend on it.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::directories::create_private;
use crate::private_file;

/// Most bytes of a note: one that forwards 4,096 ports takes less than a megabyte.
const LIMIT: u64 = 4 << 20;
/// How notes' names end.
const EXTENSION: &str = "json";

/// A note could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file or its directory failed.
    #[error(transparent)]
    File(#[from] private_file::Error),
    /// A later version has written it.
    #[error(
        "{path} was written by a later version of netmig (form {version}, this one knows {known}); \
         run that version"
    )]
    Later {
        /// The note.
        path: PathBuf,
        /// Its form.
        version: u32,
        /// The latest form that this version reads.
        known: u32,
    },
    /// It is not a note.
    #[error(
        "{path} is not what netmig writes there, and flows may depend on it; remove it if you know that \
         none do"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// What is known of a note before its form is. The first ones had no version and no frame.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Frame<T> {
    version: u32,
    note: T,
}

/// Writes a note in place of an earlier one of this name, and makes the directory if it is missing.
///
/// # Errors
/// The kernel refuses.
pub fn write<T: Serialize>(path: &Path, version: u32, note: &T) -> Result<(), Error> {
    if let Some(directory) = path.parent() {
        create_private(directory).map_err(private_file::Error::from)?;
    }
    let text = serde_json::to_vec(&Frame { version, note }).map_err(damaged(path))?;
    Ok(private_file::replace(path, &text)?)
}

/// Reads a note; `None` if there is none.
///
/// # Errors
/// [`Error::Later`], [`Error::Damaged`], or the file cannot be read.
pub fn read<T: DeserializeOwned>(path: &Path, known: u32) -> Result<Option<T>, Error> {
    let Some(text) = private_file::read(path, LIMIT)? else { return Ok(None) };
    let Head { version } = serde_json::from_slice(&text).map_err(damaged(path))?;
    let note = match version {
        0 => serde_json::from_slice(&text),
        version if version > known => {
            return Err(Error::Later { path: path.to_owned(), version, known });
        }
        _ => serde_json::from_slice::<Frame<T>>(&text).map(|frame| frame.note),
    };
    note.map(Some).map_err(damaged(path))
}

/// Reads all notes of a directory, with their paths; none if there is no directory. Those that are removed
/// meanwhile are left out, and so is what is being written.
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

/// Where notes are. Removes what a process that was killed did not finish.
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

fn damaged(path: &Path) -> impl Fn(serde_json::Error) -> Error {
    move |source| Error::Damaged { path: path.to_owned(), source }
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
    fn notes_of_the_first_form_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        private_file::replace(&path, br#"{"b":3}"#).unwrap();
        let note: std::collections::BTreeMap<String, u8> = read(&path, 1).unwrap().unwrap();
        assert_eq!(note["b"], 3);
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let refusal = |text: &str| {
            private_file::replace(&path, text.as_bytes()).unwrap();
            all::<String>(dir.path(), 2).unwrap_err()
        };
        let later = refusal(r#"{"version":3,"of":"another form"}"#);
        assert!(matches!(later, Error::Later { version: 3, known: 2, .. }), "{later}");
        for text in ["", "{", "[]", r#"{"version":2}"#, r#"{"version":-1}"#, "\u{0}"] {
            let error = refusal(text);
            assert!(matches!(error, Error::Damaged { .. }), "{text}: {error}");
            assert!(error.to_string().contains("a.json"), "{error}");
        }
    }
}
