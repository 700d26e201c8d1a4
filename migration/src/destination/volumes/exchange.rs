//! Two directories change places.

use std::path::Path;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use state::cause::Cause;

/// They did not.
#[derive(Debug, thiserror::Error)]
#[error(
    "{one} and {other} cannot change places; they have to be directories of one file system, which knows \
     RENAME_EXCHANGE (rename(2))"
)]
struct Stays {
    one: String,
    other: String,
    #[source]
    source: nix::errno::Errno,
}

/// Lets two directories of one file system change places, in one step.
///
/// # Errors
/// The kernel refuses, and nothing has changed.
pub fn exchange(one: &Path, other: &Path) -> Result<(), Cause> {
    let done = renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE);
    let shown = |path: &Path| path.display().to_string();
    Ok(done.map_err(|source| Stays { one: shown(one), other: shown(other), source })?)
}
