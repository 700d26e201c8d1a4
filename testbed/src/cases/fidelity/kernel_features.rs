//! Features of stock kernels that this machine's kernel may lack.

use std::fs;

use crate::error::{Context as _, Error, Result};
use crate::host::Host;

/// The area of tests that need features of a stock kernel: `cargo testbed vm -- test stock-kernel`.
pub(super) const KERNEL: &str = "stock-kernel";

/// The number of CAP_SYS_RESOURCE (`include/uapi/linux/capability.h`).
const SYS_RESOURCE: u32 = 24;

/// Skips the test where CRIU cannot dump a process of another user than root: with a real user ID
/// that differs from its own it may not read the process' limits (prlimit(2)) without CAP_SYS_RESOURCE.
pub(super) fn other_users() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status").context(|| "reading /proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    if mask >> SYS_RESOURCE & 1 == 1 { Ok(()) } else { Err(lacks("root without CAP_SYS_RESOURCE")) }
}

/// Skips the test where the controllers for memory, processors or processes are missing.
pub(super) fn limits(host: &Host) -> Result<()> {
    let controllers = host.read("/sys/fs/cgroup/cgroup.controllers")?;
    let has = |name: &&str| controllers.split_whitespace().any(|one| one == *name);
    let missing = ["memory", "cpu", "pids"].into_iter().find(|name| !has(name));
    missing.map_or(Ok(()), |name| Err(lacks(&format!("no controller of cgroups for {name}"))))
}

fn lacks(what: &str) -> Error {
    Error::Skip(format!("this kernel has {what}; run cargo testbed vm -- test {KERNEL}"))
}
