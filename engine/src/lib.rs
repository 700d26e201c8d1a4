//! Container engines: what a migration asks of the program that made a container, behind the trait [`Engine`].
//!
//! [`detect`] returns the engine of this host, and nothing else makes one: the modules of the engines are private.
//! The types for what a migration knows of a container are the same for every engine: a
//! [`Container`](inspect::Container) as its engine describes it, its settings as a
//! [`Description`](description::Description), and what it [needs](needs::Needs) of a host. A destination
//! [stages](stage) a container: its engine builds all of it except for the processes, which CRIU restores.
//!
//! The crate `checkpoint` does the work on processes, cgroups and images. It knows no engine.

pub mod blockers;
pub mod description;
mod error;
pub mod inspect;
mod interface;
pub mod needs;
mod podman;
pub mod stage;
pub mod volume;

pub use error::Error;
pub use interface::{Described, Engine, Holder, ImageExport, Kind, PreparedRemoval};
pub use podman::Error as PodmanError;
#[doc(hidden)]
pub use podman::understood;

use std::path::PathBuf;
use std::sync::Arc;

/// Returns the engine of this host: podman. It is not run until it is needed.
///
/// With `cache`, the engine's configuration is kept in that file and read from there by later processes. The
/// engine is asked again when its program, one of its configuration files or a variable has changed. The
/// directory of the file must be the caller's alone, and must not outlive a boot.
#[must_use]
pub fn detect(cache: Option<PathBuf>) -> Arc<dyn Engine> {
    let podman = podman::Podman::default();
    Arc::new(match cache {
        Some(file) => podman.with_cache(file),
        None => podman,
    })
}
