//! The kernel that the tests of memory after the decision need.

use std::fs;

use crate::error::{Context as _, Error, Result};

/// Skips a test where this kernel is too old: the product refuses it there.
pub(super) fn needs_kernel() -> Result<()> {
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context(|| "reading osrelease")?;
    let mut numbers = release.split(['.', '-']).map_while(|part| part.trim().parse::<u32>().ok());
    if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 7) {
        return Ok(());
    }
    Err(Error::Skip(format!("Linux {} is too old for post-copy", release.trim())))
}
