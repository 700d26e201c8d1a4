//! Attributes of processes that CRIU cannot carry over, from `/proc/PID/status` and `/proc/PID/ns`: a tracer, and a nested
//! namespace.

use std::os::unix::ffi::OsStrExt;

use super::findings::Found;
use super::process_snapshot::{NAMESPACES, Process, Processes};
use crate::criu::has_sys_resource;

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

/// Finds processes of other users whose limits this process may not read. CRIU reads the limits of every process by
/// prlimit(2), which takes CAP_SYS_RESOURCE unless all IDs of that process are the caller's real ones
/// (`check_prlimit_permission`, kernel/sys.c). In a user namespace that the caller has made it has the capability.
pub(super) fn find_other_users(processes: &Processes, found: &mut Found<'_>) {
    if has_sys_resource() {
        return;
    }
    let own_namespace = std::fs::read_link("/proc/self/ns/user").unwrap_or_default();
    let caller = [nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw()];
    for process in &processes.all {
        if process.namespaces[0].as_bytes() == own_namespace.as_os_str().as_bytes() {
            find_other_user(process, caller, found);
        }
    }
}

fn find_other_user(process: &Process, caller: [u32; 2], found: &mut Found<'_>) {
    for ((kind, ids), own) in ["user", "group"].into_iter().zip(&process.ids).zip(caller) {
        let Some(other) = ids.iter().find(|id| **id != own) else { continue };
        found.add(
            process,
            "other-user",
            format!("belongs to {kind} {other}, and this process lacks CAP_SYS_RESOURCE"),
            "CRIU needs the capability to read the limits of another user's processes: run agent-client with it, \
             outside of containers and namespaces that take it away",
        );
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_any_id_of_another_user_is_named() {
        let with = |pid, ids: [[u32; 3]; 2]| Process {
            pid,
            ids: ids.map(|ids| ids.to_vec()),
            ..Process::default()
        };
        let all = [
            with(1, [[0; 3]; 2]),
            with(2, [[1000; 3], [0; 3]]),
            with(3, [[0, 0, 7], [0; 3]]),
            with(4, [[0; 3], [0, 8, 8]]),
        ];
        let mut found = Found::new("web");
        all.iter().for_each(|process| find_other_user(process, [0, 0], &mut found));
        let messages = found.into_findings();
        let named: Vec<_> = messages.iter().map(|finding| finding.message.as_str()).collect();
        assert_eq!(messages.len(), 3, "{named:?}");
        for (message, who) in named.iter().zip(["user 1000", "user 7", "group 8"]) {
            assert!(message.contains(&format!("belongs to {who},")), "{message}");
        }
    }

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
