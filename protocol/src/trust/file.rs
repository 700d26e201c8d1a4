//! The files of peers and invitations: TOML that people may read and edit, with the version of its form.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use state::private_file;

/// Size limit of a file.
const LIMIT: u64 = 64 * 1024;
/// The version of the form that is written. A file without one is of version 1, too.
const VERSION: u32 = 1;

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refuses, or the file is open to other users.
    #[error(transparent)]
    File(#[from] private_file::Error),
    /// A later version of netmig has written the file.
    #[error(
        "{path} was written by a later version of netmig (form {version}, this one knows {VERSION}); \
         run that version"
    )]
    Later {
        /// The file.
        path: PathBuf,
        /// The version of its form.
        version: u32,
    },
    /// The file holds something else.
    #[error(
        "{path} is damaged: {why}; correct the file, or remove it and pair with that host anew"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// All that is known of a file before its version is.
#[derive(Deserialize)]
struct Head {
    #[serde(default = "first")]
    version: u32,
}

fn first() -> u32 {
    1
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    version: u32,
    #[serde(flatten)]
    content: &'a T,
}

/// Reads a file; `None` if there is none.
///
/// # Errors
/// The file cannot be read, is of a later version, or is damaged.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let Some(bytes) = private_file::read(path, LIMIT)? else { return Ok(None) };
    let damaged = |why: String| Error::Damaged { path: path.to_owned(), why };
    let text = String::from_utf8(bytes).map_err(|e| damaged(e.to_string()))?;
    let mut table: toml::Table =
        text.parse().map_err(|e: toml::de::Error| damaged(e.to_string()))?;
    let Head { version } = table.clone().try_into().map_err(|e| damaged(e.to_string()))?;
    if version > VERSION {
        return Err(Error::Later { path: path.to_owned(), version });
    }
    table.remove("version");
    table.try_into().map(Some).map_err(|e| damaged(e.to_string()))
}

/// Writes a file in place of an earlier one.
///
/// # Errors
/// The kernel refuses.
pub fn write<T: Serialize>(path: &Path, content: &T) -> Result<(), Error> {
    let text = toml::to_string(&Versioned { version: VERSION, content })
        .map_err(|e| Error::Damaged { path: path.to_owned(), why: e.to_string() })?;
    Ok(private_file::replace(path, text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, Debug, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Content {
        name: String,
    }

    fn read_text(text: &str) -> Result<Option<Content>, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        private_file::replace(&path, text.as_bytes()).unwrap();
        read(&path)
    }

    #[test]
    fn what_is_written_has_a_version_and_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        let content = Content { name: "b".to_owned() };
        write(&path, &content).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("version = 1\n"));
        assert_eq!(read(&path).unwrap(), Some(content));
        assert_eq!(read::<Content>(&dir.path().join("none.toml")).unwrap(), None);
    }

    #[test]
    fn a_file_of_an_earlier_release_is_read() {
        assert_eq!(read_text("name = \"b\"\n").unwrap().unwrap().name, "b");
    }

    #[test]
    fn a_file_of_a_later_version_is_not_called_damaged() {
        let refused = read_text("version = 2\nnew = true\n").unwrap_err();
        assert!(matches!(refused, Error::Later { version: 2, .. }), "{refused}");
        assert!(refused.to_string().contains("run that version"), "{refused}");
    }

    #[test]
    fn rubbish_is_named() {
        for text in ["name = 1", "version = \"x\"", "version = 1\nother = 1", "[", ""] {
            let refused = read_text(text).unwrap_err().to_string();
            assert!(refused.contains("x.toml is damaged"), "{refused}");
        }
    }
}
