//! The root file system of the hosts: a small Debian with podman, CRIU and the programs of the tests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cache::{self, Key};
use crate::error::{Context, Error, Result};
use crate::subprocess;

/// The first Debian suite whose CRIU (4.2) dumps sockets on kernels from 6.16 on.
const SUITE: &str = "forky";

/// The packages. crun's checkpoint needs `libcriu2`, although the package does not depend on it. podman needs
/// `aardvark-dns` for the names of containers, and `catatonit` for `--init`.
const PACKAGES: &[&str] = &[
    "aardvark-dns",
    "busybox-static",
    "ca-certificates",
    "catatonit",
    "conntrack",
    "criu",
    "crun",
    "curl",
    "dbus",
    "iperf3",
    "iproute2",
    "iptables",
    "iputils-ping",
    "libcriu2",
    "netcat-openbsd",
    "nftables",
    "nginx-light",
    "podman",
    "procps",
    "python3-minimal",
    "redis-server",
    "redis-tools",
    "runc",
    "socat",
    "strace",
    "systemd",
    "tcpdump",
    "wireguard-go",
    "wireguard-tools",
];

/// The environment variable with the Debian mirror, instead of the one in the machine's apt configuration.
pub const MIRROR_VARIABLE: &str = "NETMIG_TESTBED_MIRROR";

/// The time limit for fetching and unpacking the packages.
const LIMIT: Duration = Duration::from_secs(900);

/// Returns the root file system. Builds it if the cache does not have it, in about a minute and 450 MB.
///
/// # Errors
/// No mirror is known, or mmdebstrap failed.
pub fn ensure() -> Result<PathBuf> {
    let key = PACKAGES.iter().fold(Key::default().with(SUITE), |key, package| key.with(package));
    cache::entry("rootfs", &key.finish(), make)
}

fn make(target: &Path) -> Result<()> {
    let mirror = mirror()?;
    eprintln!("building the root file system of the hosts: {SUITE} from {mirror}");
    let log_path = cache::directory().join("rootfs.log");
    let log = File::create(&log_path).context(|| format!("creating {}", log_path.display()))?;
    let log_too = log.try_clone().context(|| "duplicating a descriptor")?;
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--mode=root", "--variant=minbase"])
        // A mirror may lag behind a suite that is not released.
        .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
        .arg(format!("--include={}", PACKAGES.join(",")))
        .args([SUITE.as_ref(), target.as_os_str()])
        .arg(&mirror)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too);
    let mut child = mmdebstrap.spawn().context(|| "starting mmdebstrap")?;
    let status = subprocess::wait(&mut child, LIMIT).context(|| "waiting for mmdebstrap")?;
    if status.is_none_or(|status| !status.success()) {
        let text = fs::read_to_string(&log_path).unwrap_or_default();
        return Err(Error::Program {
            program: format!("mmdebstrap (log: {})", log_path.display()),
            status: status.map_or("out of time".to_owned(), |status| status.to_string()),
            stderr: subprocess::tail(text.trim()),
        });
    }
    Ok(())
}

/// Returns the Debian mirror of this machine's own apt configuration.
fn mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var(MIRROR_VARIABLE) {
        return Ok(mirror);
    }
    let mut query = Command::new("apt-get");
    query.args(["indextargets", "--no-release-info", "--format", "$(REPO_URI)"]);
    query.arg("Created-By: Packages");
    let listed = subprocess::run(&mut query, subprocess::LIMIT)?.text();
    main_archive(&listed).ok_or_else(|| {
        Error::Refused(format!(
            "no Debian mirror in this machine's apt configuration; name one in {MIRROR_VARIABLE}"
        ))
    })
}

/// Returns the first URL that looks like a Debian main archive.
fn main_archive(addresses: &str) -> Option<String> {
    addresses
        .lines()
        .map(str::trim)
        .find(|address| address.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_archive_is_chosen() {
        let listed = "http://a.example/debian-security/\nhttp://a.example/debian/\n";
        assert_eq!(main_archive(listed).as_deref(), Some("http://a.example/debian/"));
        assert_eq!(main_archive("http://a.example/ubuntu\n"), None);
    }
}
