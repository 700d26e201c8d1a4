//! Installs missing Debian packages from the machine's own package sources.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::subprocess;

/// The check whether a package is needed.
pub enum Test {
    /// A program of this name is on the path.
    Program(&'static str),
    /// `pkg-config` knows this library.
    Library(&'static str),
}

/// A check, and the Debian package that makes it pass.
pub type Need = (Test, &'static str);

/// The needs of the testbed and of the product's build.
pub const NEEDS: &[Need] = &[
    (Test::Program("ip"), "iproute2"),
    (Test::Program("mmdebstrap"), "mmdebstrap"),
    (Test::Program("tar"), "tar"),
    (Test::Program("cc"), "gcc"),
    (Test::Program("pkg-config"), "pkg-config"),
    (Test::Library("libmnl"), "libmnl-dev"),
    (Test::Library("libnftnl"), "libnftnl-dev"),
];

/// The further needs of a virtual machine with a second kernel.
pub const EMULATOR: &[Need] = &[
    (Test::Program("qemu-system-x86_64"), "qemu-system-x86"),
    (Test::Program("mke2fs"), "e2fsprogs"),
    (Test::Program("dpkg-deb"), "dpkg"),
];

/// The time limit for fetching and installing packages.
const LIMIT: Duration = Duration::from_secs(600);

/// Checks that the caller is root. Namespaces of most kinds need that.
///
/// # Errors
/// The caller is not root.
pub fn require_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::Refused(
        "the testbed needs root: it makes network, mount and PID namespaces and installs packages"
            .to_owned(),
    ))
}

/// Installs the missing packages and names them on standard error.
///
/// # Errors
/// There is no `apt-get`, or it failed.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    if !on_path("apt-get") {
        return Err(Error::Refused(format!(
            "this machine lacks what the Debian packages {} hold, and has no apt-get to install \
             them with; install them by other means",
            missing.join(", ")
        )));
    }
    eprintln!("installing {}", missing.join(", "));
    update_lists()?;
    let mut install = apt(&["install", "--yes", "--quiet", "--no-install-recommends"]);
    subprocess::run(install.args(&missing), LIMIT)?;
    let still = self::missing(needs);
    if still.is_empty() {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "installed, but not found on the path afterwards: {}",
        still.join(", ")
    )))
}

/// Fetches the lists of packages.
///
/// # Errors
/// `apt-get` failed.
pub fn update_lists() -> Result<()> {
    subprocess::run(&mut apt(&["update", "--quiet"]), LIMIT).map(drop)
}

fn apt(arguments: &[&str]) -> Command {
    let mut apt = Command::new("apt-get");
    apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    apt
}

fn missing(needs: &[Need]) -> Vec<&'static str> {
    needs.iter().filter(|(test, _)| !test.is_met()).map(|(_, package)| *package).collect()
}

impl Test {
    fn is_met(&self) -> bool {
        match self {
            Self::Program(name) => on_path(name),
            Self::Library(name) => Command::new("pkg-config")
                .args(["--exists", name])
                .status()
                .is_ok_and(|status| status.success()),
        }
    }
}

/// Returns whether a program of this name is on the path.
fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(|directory| Path::new(directory).to_path_buf()))
        .any(|directory| directory.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_exists_is_found_and_another_is_not() {
        assert!(on_path("ls"));
        assert!(!on_path("netmig-no-such-program"));
    }
}
