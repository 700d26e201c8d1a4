//! Processes that another one traces.
//!
//! CRIU traces every process itself, and a process has one tracer at most (ptrace(2)): it waits for its own
//! time limit while the container is silent, and fails.

use super::found::Found;
use super::processes::Processes;

pub(super) fn check(processes: &Processes, found: &mut Found<'_>) {
    for process in processes.all.iter().filter(|process| process.tracer != 0) {
        found.add(
            process,
            "traced",
            format!("is traced by process {}", process.tracer),
            "end the debugger or tracer (gdb, strace)",
        );
    }
}
