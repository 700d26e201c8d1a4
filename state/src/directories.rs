//! The directory of what has to survive a reboot, and the one of what must not.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::id::MigrationId;

/// Default of [`Directories::state`].
pub const STATE: &str = "/var/lib/netmig";
/// Default of [`Directories::run`].
pub const RUN: &str = "/run/netmig";

/// The two directories of an agent, both 0700.
#[derive(Clone, Debug)]
pub struct Directories {
    /// Identity, peer numbers, journal.
    pub state: PathBuf,
    /// Sockets, staging archives and mount points of images. Gone after a reboot.
    pub run: PathBuf,
}

/// A directory cannot be created, or is not safe to use.
#[derive(Debug, thiserror::Error)]
#[error("cannot use directory {path}; it must be writable by root alone")]
pub struct Error {
    /// The directory.
    pub path: PathBuf,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

impl Default for Directories {
    fn default() -> Self {
        Self { state: STATE.into(), run: RUN.into() }
    }
}

impl Directories {
    /// Creates both directories where they are missing, and gives them the mode 0700.
    ///
    /// # Errors
    /// [`Error`], if one of them cannot be created or its mode cannot be set.
    pub fn create(&self) -> Result<(), Error> {
        create_private(&self.state)?;
        create_private(&self.run)
    }

    /// Removes the volatile directory if it is empty and `was_there` says that it was not there before. A command that was refused
    /// leaves nothing behind, wherever its directories are.
    pub fn remove_unused(&self, was_there: bool) {
        if !was_there {
            // One that is in use is not empty.
            let _ = fs::remove_dir(&self.run);
        }
    }

    /// Returns the directory for everything volatile of one migration. It is not created here.
    #[must_use]
    pub fn migration(&self, id: MigrationId) -> PathBuf {
        self.run.join(id.to_string())
    }
}

/// Creates a directory and its parents, readable by its owner alone.
///
/// # Errors
/// [`Error`], if it cannot be created or its mode cannot be set.
pub fn create_private(path: &Path) -> Result<(), Error> {
    let make = || {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
    };
    make().map_err(|source| Error { path: path.to_owned(), source })
}
