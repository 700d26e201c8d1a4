//! Memory of the container that an earlier move has not put in place yet.

use std::path::Path;
use std::time::{Duration, Instant};

use checkpoint::lazy_pages;
use engine::inspect::Container;
use state::blocker::Blocker;

use super::failure::Failure;

/// How long a move waits for it: longer than it takes on any host, and somebody may have stopped what does it.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Waits until all memory of a container is in place. A dump would not have the pages that are missing.
pub async fn await_whole(run: &Path, container: &Container) -> Result<(), Failure> {
    let give_up = Instant::now() + LIMIT;
    let look = || lazy_pages::is_under_way(run, &container.id);
    while look().map_err(|e| Failure::Refused(e.into()))? {
        if Instant::now() >= give_up {
            let message = format!(
                "{} is busy: pages of its memory are still put in place after its last move; try again when that is over",
                container.name
            );
            return Err(Failure::blocked(vec![Blocker::new("busy", message)]));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}
