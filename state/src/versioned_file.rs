//! Small private files, each with the version of its form: JSON for programs, TOML for files that people may
//! edit.
//!
//! A file that cannot be read is refused, and never taken for absent.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::directories::create_private;
use crate::private_file;

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refuses, or the file is open to other users.
    #[error(transparent)]
    File(#[from] private_file::Error),
    /// A later version of netmig has written the file.
    #[error(
        "{path} was written by a later version of netmig (form {version}, this one knows {known}); \
         run that version"
    )]
    Later {
        /// The file.
        path: PathBuf,
        /// The version of its form.
        version: u32,
        /// The latest version that this agent reads.
        known: u32,
    },
    /// The file holds something else.
    #[error("{path} is not what netmig writes there; {remedy}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
        /// Where the file goes wrong.
        #[source]
        source: Cause,
    },
}

/// The format of a file.
pub trait Format {
    /// Maximum size of a file in bytes.
    const LIMIT: u64;
    /// What to do about a damaged file.
    const REMEDY: &'static str;

    /// Returns the version that a text names.
    ///
    /// # Errors
    /// The text is not in this format.
    fn version(text: &[u8]) -> Result<u32, Cause>;

    /// Reads the content of a text whose form has this version.
    ///
    /// # Errors
    /// The content is something else.
    fn content<T: DeserializeOwned>(text: &[u8], version: u32) -> Result<T, Cause>;

    /// Returns the text of a content.
    ///
    /// # Errors
    /// The content has no form in this format.
    fn text<T: Serialize>(version: u32, content: &T) -> Result<Vec<u8>, Cause>;
}

/// JSON: an object with the version and the content. The first files had neither, but the bare content.
#[derive(Clone, Copy, Debug)]
pub enum Json {}

/// TOML: the version, and beside it the fields of the content. A file without a version is of version 1.
#[derive(Clone, Copy, Debug)]
pub enum Toml {}

#[derive(Serialize, Deserialize)]
struct Frame<T> {
    version: u32,
    note: T,
}

#[derive(Serialize)]
struct Beside<'a, T> {
    version: u32,
    #[serde(flatten)]
    content: &'a T,
}

#[derive(Deserialize)]
struct Version {
    version: Option<u32>,
}

impl Format for Json {
    /// A note that forwards 4,096 ports takes less than a megabyte.
    const LIMIT: u64 = 4 << 20;
    const REMEDY: &'static str = "flows may depend on it; remove it if you know that none do";

    fn version(text: &[u8]) -> Result<u32, Cause> {
        let Version { version } = serde_json::from_slice(text)?;
        Ok(version.unwrap_or(0))
    }

    fn content<T: DeserializeOwned>(text: &[u8], version: u32) -> Result<T, Cause> {
        if version == 0 {
            return Ok(serde_json::from_slice(text)?);
        }
        Ok(serde_json::from_slice::<Frame<T>>(text)?.note)
    }

    fn text<T: Serialize>(version: u32, note: &T) -> Result<Vec<u8>, Cause> {
        Ok(serde_json::to_vec(&Frame { version, note })?)
    }
}

impl Format for Toml {
    const LIMIT: u64 = 64 << 10;
    const REMEDY: &'static str = "correct it, or remove it and pair with that host anew";

    fn version(text: &[u8]) -> Result<u32, Cause> {
        let Version { version } = toml::from_slice(text)?;
        Ok(version.unwrap_or(1))
    }

    fn content<T: DeserializeOwned>(text: &[u8], _version: u32) -> Result<T, Cause> {
        let mut table: toml::Table = toml::from_slice(text)?;
        table.remove("version");
        Ok(table.try_into()?)
    }

    fn text<T: Serialize>(version: u32, content: &T) -> Result<Vec<u8>, Cause> {
        Ok(toml::to_string(&Beside { version, content })?.into_bytes())
    }
}

/// Reads a file; `None` if there is none. `known` is the latest version that the caller reads.
///
/// # Errors
/// [`Error`]: the file cannot be read, is of a later version, or holds something else.
pub fn read<F: Format, T: DeserializeOwned>(path: &Path, known: u32) -> Result<Option<T>, Error> {
    let Some(text) = private_file::read(path, F::LIMIT)? else { return Ok(None) };
    let version = F::version(&text).map_err(damaged::<F>(path))?;
    if version > known {
        return Err(Error::Later { path: path.to_owned(), version, known });
    }
    F::content(&text, version).map(Some).map_err(damaged::<F>(path))
}

/// Writes a file in place of an earlier one, and makes its directory if that is missing.
///
/// # Errors
/// [`Error::File`], if the kernel refuses.
pub fn write<F: Format, T: Serialize>(path: &Path, version: u32, content: &T) -> Result<(), Error> {
    if let Some(directory) = path.parent() {
        create_private(directory).map_err(private_file::Error::from)?;
    }
    let text = F::text(version, content).map_err(damaged::<F>(path))?;
    Ok(private_file::replace(path, &text)?)
}

fn damaged<F: Format>(path: &Path) -> impl Fn(Cause) -> Error {
    move |source| Error::Damaged { path: path.to_owned(), remedy: F::REMEDY, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, Debug, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Content {
        name: String,
    }

    fn content() -> Content {
        Content { name: "b".to_owned() }
    }

    /// Reads a text as a file of version 2.
    fn read_text<F: Format>(text: &str) -> Result<Option<Content>, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        private_file::replace(&path, text.as_bytes()).unwrap();
        read::<F, _>(&path, 2)
    }

    #[test]
    fn what_is_written_has_a_version_and_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d/x");
        write::<Toml, _>(&path, 1, &content()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "version = 1\nname = \"b\"\n");
        assert_eq!(read::<Toml, _>(&path, 1).unwrap(), Some(content()));
        write::<Json, _>(&path, 1, &content()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, r#"{"version":1,"note":{"name":"b"}}"#);
        assert_eq!(read::<Json, _>(&path, 1).unwrap(), Some(content()));
        assert_eq!(read::<Json, Content>(&dir.path().join("none"), 1).unwrap(), None);
    }

    #[test]
    fn files_of_the_first_form_are_read() {
        assert_eq!(read_text::<Json>(r#"{"name":"b"}"#).unwrap(), Some(content()));
        assert_eq!(read_text::<Toml>("name = \"b\"\n").unwrap(), Some(content()));
    }

    #[test]
    fn a_file_of_a_later_version_is_not_called_damaged() {
        for refused in [
            read_text::<Json>(r#"{"version":3,"of":"another form"}"#),
            read_text::<Toml>("version = 3\nnew = true\n"),
        ] {
            let refused = refused.unwrap_err();
            assert!(matches!(refused, Error::Later { version: 3, known: 2, .. }), "{refused}");
            assert!(refused.to_string().contains("run that version"), "{refused}");
        }
    }

    #[test]
    fn what_is_something_else_is_refused_by_name() {
        let check = |text: &str, refused: Result<Option<Content>, Error>| {
            let refused = refused.unwrap_err();
            assert!(matches!(refused, Error::Damaged { .. }), "{text}: {refused}");
            assert!(refused.to_string().contains("/x is not what netmig writes"), "{refused}");
        };
        for text in ["", "{", "[]", r#"{"version":2}"#, r#"{"version":-1}"#, "\u{0}"] {
            check(text, read_text::<Json>(text));
        }
        for text in ["name = 1", "version = \"x\"", "version = 1\nother = 1", "[", ""] {
            check(text, read_text::<Toml>(text));
        }
    }
}
