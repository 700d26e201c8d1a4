//! CRIU's options on a host, for what is measured beside the product: the product brings its own and
//! leaves these files alone.

use std::fs;
use std::io;

use crate::error::{Context, Result};
use crate::host::Host;

/// Where CRIU, crun and runc look.
const FILES: [&str; 3] = ["/etc/criu/default.conf", "/etc/criu/crun.conf", "/etc/criu/runc.conf"];

/// Sets the options, one a line.
pub(super) fn configure(host: &Host, options: &str) -> Result<()> {
    FILES.iter().try_for_each(|file| host.write(file, options))
}

/// Removes them. Absent means done.
pub(super) fn forget(host: &Host) -> Result<()> {
    FILES
        .iter()
        .try_for_each(|file| match fs::remove_file(host.path(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .context(|| format!("removing CRIU's options on host {}", host.name()))
}
