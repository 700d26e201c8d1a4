//! Builds the workspace's programs and collects them for the hosts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::cache::{self, Key};
use crate::error::{Context, Result};
use crate::subprocess;

/// The product's programs: package and name.
const PRODUCT: &[(&str, &str)] = &[
    ("agent-client", "agent-client"),
    ("agent-server", "agent-server"),
    ("checkpoint", "netmig-shim"),
];

/// The product's shared object: package and name of the file.
const SHARED_OBJECT: (&str, &str) = ("criu-preload", "libnetmig_criu.so");

/// The name of the traffic program.
pub const PROBE: &str = "netmig-probe";
/// The name of the program that violates the protocol as a paired host. It shares the product's code for the wire.
pub const HOSTILE_PEER: &str = "netmig-hostile-peer";

/// The feature of this package that builds it.
pub const HOSTILE_PEER_FEATURE: &str = "hostile-peer";

/// The time limit for building everything from nothing.
const LIMIT: Duration = Duration::from_secs(1800);

/// Returns the directory of the workspace that this testbed was built from.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// Returns the directory to which cargo writes the programs.
fn release_directory() -> PathBuf {
    workspace().join("target/release")
}

/// Returns a command of cargo in the workspace. It is the cargo that runs this program, if one does.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    cargo
}

/// The programs to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// All programs.
    All,
    /// None: programs that do not exist are left out. The probe alone is built if the cache lacks it.
    Nothing,
}

/// The programs for the hosts.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The files for the hosts' path.
    pub files: Vec<PathBuf>,
    /// The traffic program, linked statically so that it runs in any container.
    pub probe: PathBuf,
}

/// Builds the programs.
///
/// # Errors
/// The build failed, with the compiler's messages.
pub fn ensure(what: What) -> Result<Programs> {
    let probe = match (what, cached_probe()) {
        (What::Nothing, Some(probe)) => probe,
        _ => probe()?,
    };
    if what == What::All {
        let mut cargo = cargo();
        cargo.args(["build", "--release", "--quiet"]);
        for (package, program) in PRODUCT.iter().chain(&[("testbed", HOSTILE_PEER)]) {
            cargo.args(["--package", package, "--bin", program]);
        }
        cargo.args(["--features", &format!("testbed/{HOSTILE_PEER_FEATURE}")]);
        cargo.arg("--target-dir").arg(workspace().join("target"));
        subprocess::run(&mut cargo, LIMIT)?;
        build_shared_object()?;
    }
    let names = PRODUCT.iter().map(|(_, program)| *program).chain([SHARED_OBJECT.1, HOSTILE_PEER]);
    let mut files: Vec<PathBuf> = names.map(|name| release_directory().join(name)).collect();
    if what == What::Nothing {
        files.retain(|file| file.exists());
    }
    files.push(probe.clone());
    Ok(Programs { files, probe })
}

fn build_shared_object() -> Result<()> {
    let mut cargo = cargo();
    cargo.args(["build", "--release", "--quiet", "--package", SHARED_OBJECT.0]);
    cargo.arg("--target-dir").arg(workspace().join("target"));
    subprocess::run(&mut cargo, LIMIT).map(drop)
}

/// Returns the newest traffic program in the cache.
fn cached_probe() -> Option<PathBuf> {
    fs::read_dir(cache::directory())
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("probe-"))
        .map(|entry| entry.path().join(PROBE))
        .filter(|path| path.is_file())
        .max_by_key(|path| path.metadata().and_then(|metadata| metadata.modified()).ok())
}

/// Builds the traffic program with a static C library and copies it to the cache, where an ordinary build of the
/// workspace does not overwrite it.
fn probe() -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo.args(["rustc", "--release", "--quiet", "--package", "testbed", "--bin", PROBE]);
    cargo.arg("--target-dir").arg(workspace().join("target"));
    cargo.args(["--", "-C", "target-feature=+crt-static"]);
    subprocess::run(&mut cargo, LIMIT)?;
    let built = release_directory().join(PROBE);
    let key = Key::default().with_file(&built)?.finish();
    let directory = cache::entry("probe", &key, |target| {
        cache::create_private(target)?;
        fs::copy(&built, target.join(PROBE)).context(|| "copying the probe")?;
        Ok(())
    })?;
    Ok(directory.join(PROBE))
}
