//! How many files CRIU may have open. It keeps one for each TCP connection of a container from when it
//! has stopped it until the dump is over (`dump_one_tcp` in `criu/sk-tcp.c`).

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What CRIU opens beside the connections.
const BESIDE: u64 = 256;
/// The kernel's own limit for one process.
const MOST_FILES: &str = "/proc/sys/fs/nr_open";
/// The bit of CAP_SYS_RESOURCE (`include/uapi/linux/capability.h`).
const SYS_RESOURCE: u32 = 24;

/// Most TCP connections that a container can have for a CRIU that this process starts. CRIU lifts the
/// limit that it inherits if it may, which takes CAP_SYS_RESOURCE (`rlimit_unlimit_nofile` in
/// `criu/util.c`).
#[must_use]
pub fn most_connections() -> u64 {
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(_, hard)| hard);
    let lifted = may_lift().then(|| fs::read_to_string(MOST_FILES).ok()?.trim().parse().ok());
    hard.max(lifted.flatten().unwrap_or(0)).saturating_sub(BESIDE)
}

/// Lets the calling process and its programs use what they may have. Where CRIU cannot lift its limit,
/// many hosts have one of 1,024 files that could be more.
pub(super) fn use_hard_limit() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

/// Whether this process and its programs have CAP_SYS_RESOURCE.
fn may_lift() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> SYS_RESOURCE & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_that_of_criu() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let all: u64 = fs::read_to_string(MOST_FILES).unwrap().trim().parse().unwrap();
        let expected = if may_lift() { all.max(hard) } else { hard };
        assert_eq!(most_connections(), expected - BESIDE);
    }
}
