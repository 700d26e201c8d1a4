//! Processes that enter the container while it is being moved, as `podman exec` starts them. CRIU does not find them, and what
//! then goes wrong does not name them. Sessions that are open when the move is planned are refused then (`exec-session`).

use checkpoint::cgroup::Cgroup;
use checkpoint::entered_processes::{self, Entered};

/// A process has entered the container.
#[derive(Debug, thiserror::Error)]
#[error(
    "{name} was entered while it was being moved, by {by}; end that, and move the container again"
)]
pub struct EnteredMeanwhile {
    name: String,
    by: Entered,
}

/// Fails if a process of a frozen container has entered it from outside. Blocks the calling thread, for some microseconds for
/// each process.
///
/// # Errors
/// [`EnteredMeanwhile`].
pub fn check(name: &str, cgroup: &Cgroup, first: i32) -> Result<(), EnteredMeanwhile> {
    match entered_processes::find(cgroup, first) {
        Some(by) => Err(EnteredMeanwhile { name: name.to_owned(), by }),
        None => Ok(()),
    }
}
