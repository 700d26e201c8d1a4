//! The package of the second kernel, from the machine's Debian release. It is unpacked and not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::cache;
use crate::error::{Context, Error, Result};
use crate::install;
use crate::subprocess;

/// The environment variable with the kernel's package, instead of the default of the machine's Debian release.
pub const KERNEL_VARIABLE: &str = "NETMIG_TESTBED_KERNEL";
/// The package that depends on the release's kernel for virtual machines.
const STOCK: &str = "linux-image-cloud-amd64";
/// The time limit for fetching a package.
const LIMIT: Duration = Duration::from_secs(300);

/// Returns the name of the package with the kernel, such as `linux-image-6.1.0-56-cloud-amd64`.
///
/// # Errors
/// apt knows no such package.
pub(super) fn package() -> Result<String> {
    let name = std::env::var(KERNEL_VARIABLE).unwrap_or_else(|_| STOCK.to_owned());
    let depends = || -> Result<String> {
        let mut query = Command::new("apt-cache");
        query.args(["depends", "--important", "--no-recommends", &name]);
        Ok(subprocess::run(&mut query, subprocess::LIMIT)?.text())
    };
    let listed = match depends() {
        Ok(listed) => listed,
        Err(_) => {
            install::update_lists()?;
            depends()?
        }
    };
    if listed.is_empty() {
        return Err(Error::Refused(format!(
            "apt knows no package {name}; name a kernel's in {KERNEL_VARIABLE}"
        )));
    }
    Ok(image_in(&listed).unwrap_or(name))
}

/// Returns the kernel's package in what `apt-cache depends` says of one that only depends on it.
fn image_in(listed: &str) -> Option<String> {
    listed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"))
        .map(str::to_owned)
}

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The kernel's image.
    pub(super) image: PathBuf,
    /// The release, as `uname -r` prints it.
    pub(super) release: String,
    /// The directory of its modules.
    pub(super) modules: PathBuf,
}

/// Fetches a kernel's package from the Debian mirror and unpacks it below `directory`.
///
/// # Errors
/// The package is not available, or has no kernel.
pub(super) fn unpack(package: &str, directory: &Path) -> Result<Kernel> {
    cache::create_private(directory)?;
    let download = || {
        let mut download = Command::new("apt-get");
        // Without the option apt warns that its sandbox user may not write to a directory of root.
        download.args(["download", "--quiet", "--option", "APT::Sandbox::User=root", package]);
        subprocess::run(download.current_dir(directory), LIMIT)
    };
    if download().is_err() {
        install::update_lists()?;
        download()?;
    }
    let archive = only(directory, |name| name.ends_with(".deb"))?;
    let tree = directory.join("tree");
    let mut extract = Command::new("dpkg-deb");
    extract.arg("--extract").args([&archive, &tree]);
    subprocess::run(&mut extract, LIMIT)?;
    let image = only(&tree.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    let release = image
        .file_name()
        .and_then(|name| name.to_str()?.strip_prefix("vmlinuz-"))
        .unwrap_or_default()
        .to_owned();
    let merged = tree.join("usr/lib/modules").join(&release);
    let modules = if merged.is_dir() { merged } else { tree.join("lib/modules").join(&release) };
    Ok(Kernel { image, release, modules })
}

/// Returns the one file of a directory whose name is as wanted.
fn only(directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    fs::read_dir(directory)
        .context(|| format!("listing {}", directory.display()))?
        .flatten()
        .find(|entry| entry.file_name().to_str().is_some_and(&wanted))
        .map(|entry| entry.path())
        .ok_or_else(|| {
            Error::Refused(format!(
                "{} does not hold what a kernel's package has",
                directory.display()
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_depends_on_a_kernel_leads_to_it() {
        let listed = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(image_in(listed).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        let listed = "linux-image-6.1.0-56-cloud-amd64\n  Depends: kmod\n  Depends: initramfs\n";
        assert_eq!(image_in(listed), None);
    }
}
