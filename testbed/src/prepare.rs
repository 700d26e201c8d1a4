//! Provides everything that labs need, once per run of the program.

use std::path::PathBuf;
use std::sync::Mutex;

use crate::error::Result;
use crate::programs::{self, Programs, What};
use crate::{cache, install, rootfs};

/// The inputs of a lab.
#[derive(Debug, Clone)]
pub struct Needed {
    /// The root file system of the hosts.
    pub rootfs: PathBuf,
    /// The programs of the hosts.
    pub programs: Programs,
    /// Container storage with the test images, if it exists already.
    pub storage: Option<PathBuf>,
}

static WHAT: Mutex<What> = Mutex::new(What::All);
static MADE: Mutex<Option<Needed>> = Mutex::new(None);

/// Chooses what is built before the first lab starts.
pub fn choose(what: What) {
    *WHAT.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = what;
}

/// Sets the inputs of labs, so that none is built.
pub fn provide(needed: Needed) {
    *MADE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(needed);
}

/// Installs and builds the inputs of labs, or returns those of an earlier call.
///
/// # Errors
/// The caller is not root, or a step failed.
pub fn for_labs() -> Result<Needed> {
    let mut made = MADE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(needed) = &*made {
        return Ok(needed.clone());
    }
    let rootfs = foundation()?;
    let what = *WHAT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let needed = Needed { rootfs, programs: programs::ensure(what)?, storage: None };
    *made = Some(needed.clone());
    Ok(needed)
}

/// Installs the packages that labs need and builds the root file system of their hosts. May run before [`for_labs`],
/// in parallel to a build of the workspace.
///
/// # Errors
/// The caller is not root, or a step failed.
pub fn foundation() -> Result<PathBuf> {
    install::require_root()?;
    cache::check_file_system()?;
    install::ensure(install::NEEDS)?;
    rootfs::ensure()
}
