//! Attributes of processes that CRIU cannot carry over, from `/proc/PID/status` and `/proc/PID/ns`: a tracer, a nested
//! namespace, and perhaps a Landlock domain.

use super::findings::Found;
use super::process_snapshot::{NAMESPACES, Processes};
use super::{Finding, Subject};
use crate::oci_bundle::Bundle;

/// The code of the finding that a process may be in a Landlock domain.
pub const MAYBE_LANDLOCK: &str = "maybe-landlock";
/// LANDLOCK_CREATE_RULESET_VERSION (linux/landlock.h).
const VERSION: u32 = 1;

/// Finds processes that another one traces. CRIU traces every process itself, and a process has one tracer at most
/// (ptrace(2)): CRIU would wait for its own time limit while the container is silent, and fail.
pub(super) fn find_traced(processes: &Processes, found: &mut Found<'_>) {
    for process in processes.all.iter().filter(|process| process.tracer != 0) {
        found.add(
            process,
            "traced",
            format!("is traced by process {}", process.tracer),
            "end the debugger or tracer (gdb, strace)",
        );
    }
}

/// Finds namespaces that were made inside of the container. CRIU dumps nested mount and network namespaces and no
/// others (`dump_task_ns_ids`, criu/namespaces.c).
pub(super) fn find_namespaces(processes: &Processes, found: &mut Found<'_>) {
    let Some(first) = processes.first() else { return };
    for process in &processes.all {
        let pairs = NAMESPACES.iter().zip(process.namespaces.iter().zip(&first.namespaces));
        for (kind, (own, common)) in pairs {
            if own.is_empty() || common.is_empty() || own == common {
                continue;
            }
            // Of a process that has moved its children alone.
            let kind = kind.trim_end_matches("_for_children");
            found.add(
                process,
                "nested-namespace",
                format!("has a {kind} namespace of its own"),
                "CRIU cannot save nested ones: end it, or turn such sandboxes off in the program",
            );
        }
    }
}

/// Returns a finding where the kernel has Landlock and a process may have restricted itself by it: the process has
/// set the bit `no_new_privs` (prctl(2)), although its container does not.
///
/// No interface of the kernel tells whether a process is in a Landlock domain (landlock(7); neither `/proc`, nor
/// pidfd, nor netlink as of 6.18), and CRIU restores none. The bit, which a process without privileges must set
/// before, is a hint: programs set it for seccomp, too.
pub(super) fn find_landlock(subject: &Subject<'_>, processes: &Processes) -> Option<Finding> {
    let process = processes.all.iter().find(|process| process.no_new_privileges)?;
    if !has_landlock() || Bundle::read(subject.bundle).ok()?.no_new_privileges {
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
pub fn has_landlock() -> bool {
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the call takes no ruleset and returns a version (landlock_create_ruleset(2)).
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION) };
    version > 0
}

#[cfg(test)]
mod tests {
    use super::super::process_snapshot::Process;
    use super::*;

    #[test]
    fn another_namespace_than_that_of_the_first_process_is_named() {
        let with = |pid, user: &str| {
            let mut process = Process { pid, ..Process::default() };
            process.namespaces[0] = user.to_owned();
            process
        };
        let all = vec![with(1, "user:[1]"), with(2, "user:[1]"), with(3, "user:[2]"), with(4, "")];
        let mut found = Found::new("web");
        find_namespaces(&Processes { all }, &mut found);
        let messages = found.into_findings();
        assert_eq!(messages.len(), 1);
        assert!(messages[0].message.contains("process 3") && messages[0].message.contains("user"));
    }
}
