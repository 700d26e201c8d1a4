//! Makes everything that labs need, once per run of the program.

use std::path::PathBuf;
use std::sync::Mutex;

use crate::error::Result;
use crate::programs::{self, Programs, What};
use crate::{cache, install, rootfs};

/// What labs are made from.
#[derive(Debug, Clone)]
pub struct Needed {
    /// The root file system of the hosts.
    pub rootfs: PathBuf,
    /// The programs of the hosts.
    pub programs: Programs,
    /// Container storage with the test images, if there is one already.
    pub storage: Option<PathBuf>,
}

static WHAT: Mutex<What> = Mutex::new(What::All);
static MADE: Mutex<Option<Needed>> = Mutex::new(None);

/// Chooses what is built before the first lab starts.
pub fn choose(what: What) {
    *WHAT.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = what;
}

/// Provides what labs need, so that nothing has to be made.
pub fn provide(needed: Needed) {
    *MADE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(needed);
}

/// Installs, builds and makes what labs need, or returns what an earlier call made.
///
/// # Errors
/// Not root, or a step failed.
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

/// Installs and makes what labs need besides the workspace's own programs: the root file system of
/// their hosts. May be called before [`for_labs`], beside a build.
///
/// # Errors
/// Not root, or a step failed.
pub fn foundation() -> Result<PathBuf> {
    install::require_root()?;
    cache::check_file_system()?;
    install::ensure(install::NEEDS)?;
    rootfs::ensure()
}
