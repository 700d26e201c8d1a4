//! A migration's volatile directory.

use std::path::Path;

use checkpoint::images::ImageDir;
use state::cause::Cause;

/// Where images go, below a migration's volatile directory.
pub const IMAGES: &str = "images";
/// Where memory goes that comes while the container runs.
pub const MEMORY: &str = "memory";
/// The same for what staging needs.
pub const STAGE: &str = "stage";

/// Removes what is in a migration's volatile directory, and the directory. Absent means done.
pub fn tidy(work: &Path) -> Result<(), Cause> {
    ImageDir::remove_at(&work.join(IMAGES))?;
    ImageDir::remove_at(&work.join(MEMORY))?;
    match std::fs::remove_dir_all(work) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}
