//! Where an agent keeps what must survive a reboot, and what must not.

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

/// A directory could not be made or is not safe to use.
#[derive(Debug, thiserror::Error)]
#[error("cannot use directory {path}; it must be writable by root alone")]
pub struct Error {
    /// The directory.
    pub path: PathBuf,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

impl Default for Directories {
    fn default() -> Self {
        Self { state: STATE.into(), run: RUN.into() }
    }
}

impl Directories {
    /// Makes both directories with mode 0700 where they are missing, and tightens them where they
    /// are wider.
    pub fn create(&self) -> Result<(), Error> {
        create_private(&self.state)?;
        create_private(&self.run)
    }

    /// The directory for everything volatile of one migration. Not created here.
    #[must_use]
    pub fn migration(&self, id: MigrationId) -> PathBuf {
        self.run.join(id.to_string())
    }
}

/// Makes a directory, and its parents, readable by its owner alone.
pub fn create_private(path: &Path) -> Result<(), Error> {
    let make = || {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
    };
    make().map_err(|source| Error { path: path.to_owned(), source })
}
