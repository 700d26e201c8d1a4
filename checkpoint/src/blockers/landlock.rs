//! Processes that may have restricted themselves by Landlock.
//!
//! No interface of the kernel tells whether a process is in a Landlock domain (landlock(7); neither `/proc`,
//! nor pidfd, nor netlink as of 6.18), and CRIU restores none. What can be seen is the bit that a process
//! without privileges must set before (`no_new_privs`, prctl(2)): a hint, which programs set for seccomp, too.

use super::processes::Processes;
use super::{Finding, Subject};
use crate::bundle::Bundle;

/// The code of the finding.
pub const MAYBE_LANDLOCK: &str = "maybe-landlock";
/// LANDLOCK_CREATE_RULESET_VERSION (linux/landlock.h).
const VERSION: u32 = 1;

/// Returns a finding where the kernel has Landlock and a process has set the bit although its container does
/// not.
pub(super) fn finding(subject: &Subject<'_>, processes: &Processes) -> Option<Finding> {
    let process = processes.all.iter().find(|process| process.no_new_privileges)?;
    if !is_there() || Bundle::read(subject.bundle).ok()?.no_new_privileges {
        return None;
    }
    Some(Finding {
        code: MAYBE_LANDLOCK,
        message: format!(
            "process {} ({}) of {} has given up gaining privileges (no_new_privs), and may have restricted itself \
             by Landlock, which the kernel does not tell: CRIU cannot restore such a restriction; if the program \
             does not use Landlock, or may do without, move it with --accept-loss landlock",
            process.pid, process.name, subject.name
        ),
    })
}

/// Returns whether this kernel has Landlock, and it is enabled.
#[must_use]
pub fn is_there() -> bool {
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the call takes no ruleset and returns a version (landlock_create_ruleset(2)).
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION) };
    version > 0
}
