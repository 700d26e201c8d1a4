//! Drop-in files: settings that are added to those of a unit (systemd.unit(5)).

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::{Error, UnitName};

/// Where settings outlive a reboot.
pub(crate) const PERSISTENT: &str = "/etc/systemd/system";
/// Where they do not.
pub(crate) const UNTIL_REBOOT: &str = "/run/systemd/system";

/// The path of a drop-in file, whether it is there or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DropIn {
    path: PathBuf,
}

impl DropIn {
    /// Returns the file of this name for a unit. systemd reads all files of a unit in the order of their names, in whichever
    /// directory they are.
    pub(crate) fn of(unit: &UnitName, directory: &Path, file: &str) -> Self {
        Self { path: directory.join(format!("{unit}.d")).join(file) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the file to the disk. One that is there is replaced.
    pub(crate) fn write(&self, text: &str) -> Result<(), Error> {
        self.put(text).map_err(|source| self.error(source))
    }

    fn put(&self, text: &str) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let is_new = !directory.exists();
        fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        // systemd reads names that end in .conf alone.
        let unfinished = self.path.with_extension("new");
        let mut file = File::create(&unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, &self.path)?;
        File::open(directory)?.sync_all()?;
        match directory.parent() {
            Some(parent) if is_new => File::open(parent)?.sync_all(),
            _ => Ok(()),
        }
    }

    /// Removes the file, and its directory if nothing else is in it. Returns whether the file was there.
    pub(crate) fn remove(&self) -> Result<bool, Error> {
        let was_there = match fs::remove_file(&self.path) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(source) => return Err(self.error(source)),
        };
        let _ = fs::remove_file(self.path.with_extension("new"));
        if let Some(directory) = self.path.parent() {
            let _ = fs::remove_dir(directory);
        }
        Ok(was_there)
    }

    fn error(&self, source: io::Error) -> Error {
        Error::File { path: self.path.clone(), source }
    }
}

/// Returns a text as the value of a setting: one line, without specifiers.
pub(crate) fn value(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect::<String>().replace('%', "%%")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_file_comes_and_goes_without_trace() {
        let top = tempfile::tempdir().unwrap();
        let file = DropIn::of(&"web.service".parse().unwrap(), top.path(), "90-x.conf");
        for text in ["one", "two"] {
            file.write(text).unwrap();
            assert_eq!(
                fs::read_to_string(top.path().join("web.service.d/90-x.conf")).unwrap(),
                text
            );
        }
        assert!(file.remove().unwrap());
        assert!(!file.remove().unwrap());
        assert_eq!(fs::read_dir(top.path()).unwrap().count(), 0);
    }

    #[test]
    fn files_of_others_stay() {
        let top = tempfile::tempdir().unwrap();
        let unit = "web.service".parse().unwrap();
        let (ours, theirs) =
            (DropIn::of(&unit, top.path(), "90-x.conf"), DropIn::of(&unit, top.path(), "a.conf"));
        ours.write("one").unwrap();
        theirs.write("two").unwrap();
        ours.remove().unwrap();
        assert_eq!(fs::read_to_string(theirs.path()).unwrap(), "two");
    }

    #[test]
    fn texts_of_others_are_one_value() {
        assert_eq!(value("50 %\nExecStart=/bin/x"), "50 %%ExecStart=/bin/x");
    }
}
