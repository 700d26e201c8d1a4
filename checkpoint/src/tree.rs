//! Carries a container's changed files to another host: the upper directory of its root file system and `/dev/shm`.
//!
//! [`Source`] walks the files and hands on [`Record`]s. [`Applier`] on the destination applies them to the mounted root
//! of the staged container. How records travel is the caller's matter. A first pass runs while the container does.
//! [`Source::changes_since`] sends what changed after that. It must run once more after the freeze, or an append-only log
//! arrives stale.
//!
//! There are records and no tar archive for three reasons. A receiver can bound each record before it keeps it, while a
//! tar's extended header may be of any size. A tar has no place for removals and for single changed blocks of a large
//! file. And the channel frames messages anyway.

mod apply;
mod beneath;
mod blocks;
mod changed_blocks;
mod relative_path;
mod scan;
mod transfer_record;
mod usage;

#[cfg(test)]
mod tests;

pub use apply::Applier;
pub use scan::{Snapshot, Source, Tasks};
pub use transfer_record::{BLOCK, CHUNK, Kind, Limits, Meta, Record, Stats, Xattr};
pub use usage::{Usage, usage};

use std::io;
use std::path::{Path, PathBuf};

/// Bytes of all regular files below a directory that may change meanwhile.
///
/// # Errors
/// [`Error::Io`] when the directory itself cannot be read; what vanishes counts nothing.
pub fn size(root: &Path) -> Result<u64, Error> {
    Ok(usage(root)?.length)
}

/// What can go wrong with files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be used.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried: "read", "create", …
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A path that could lead out of the tree, or is too long or too deep.
    #[error("path {0:?} cannot be that of a file in the tree")]
    BadPath(String),
    /// Something that no honest source sends.
    #[error("{path:?} cannot be applied: {problem}")]
    Refused {
        /// The path.
        path: String,
        /// Why not.
        problem: &'static str,
    },
    /// More than the limits allow.
    #[error("too much to carry over: {what} is above the limit of {limit}")]
    TooMuch {
        /// What was counted: "files", "bytes", …
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The receiver of the records is gone.
    #[error("nobody takes the files any more")]
    Closed,
}

/// Returns an error of the operating system, with what was tried on which path.
fn io_error(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(nix::errno::Errno) -> Error {
    let path = path.into();
    move |errno| Error::Io { action, path, source: errno.into() }
}
