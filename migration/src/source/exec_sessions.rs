//! Processes that enter the container while it is being moved, as `podman exec` starts them. CRIU does not find them, and what
//! then goes wrong does not name them. Sessions that are open when the move is planned are refused then (`exec-session`).

use std::time::{Duration, Instant};

use checkpoint::cgroup::Cgroup;
use checkpoint::entered_processes::{self, Entered};
use tokio::task::block_in_place;

/// How long a session may take to be refused by the runtime, or to enter.
const BEGINS: Duration = Duration::from_secs(1);
/// Between two looks at it.
const LOOK_EVERY: Duration = Duration::from_millis(5);

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

/// Returns who has entered a frozen container from outside, in words, just before the container is removed.
///
/// An OCI runtime refuses to enter a frozen container. One that has looked before the container was frozen enters later. Its
/// monitor has been there since, so nobody enters any more once there are neither processes nor monitors.
pub async fn find_late(id: &str, cgroup: &Cgroup, first: i32) -> Option<String> {
    let give_up = Instant::now() + BEGINS;
    loop {
        // In this order: the monitor ends with the process.
        let sessions = block_in_place(|| entered_processes::sessions(id));
        if let Some(by) = block_in_place(|| entered_processes::find(cgroup, first)) {
            return Some(by.to_string());
        }
        let session = sessions.first()?;
        if Instant::now() >= give_up {
            return Some(format!("podman exec (session {session})"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
