//! Connections that the container has not accepted yet. CRIU cannot dump those, so the container accepts them
//! first, while new ones wait.

use std::time::{Duration, Instant};

use netmig::sockets::Backlog;
use state::cause::Cause;
use state::deadline;
use tokio::task::block_in_place;

use super::Interruption;

/// Between two looks at the listeners.
const LOOK: Duration = Duration::from_micros(500);
/// How long the container runs between two attempts to freeze it with nothing in its listeners' queues.
const BREATH: Duration = Duration::from_millis(5);

/// The container does not accept what waits.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0} connections wait for the container to accept them, and it does not do so; \
     CRIU cannot dump them; try again when the container accepts connections"
)]
pub(super) struct Unaccepted(u64);

impl Interruption<'_> {
    /// Waits until the container has accepted the connections that are being set up. New ones are held.
    /// It waits one second at most, also for handshakes whose far end does not answer.
    pub(super) async fn drain_backlog(&mut self) -> Result<(), Cause> {
        let end = Instant::now() + deadline::BACKLOG;
        loop {
            let backlog = self.backlogs.look()?;
            if backlog.is_empty() {
                return Ok(());
            }
            if Instant::now() >= end {
                tracing::debug!(?backlog, "the container's listeners have connections still");
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Freezes the container at a moment at which nothing waits to be accepted. Connections can have come from
    /// its own processes, and from containers beside it.
    pub(super) async fn freeze(&mut self) -> Result<(), Cause> {
        let end = Instant::now() + deadline::BACKLOG;
        loop {
            let plan = &self.migration.plan;
            self.frozen = true;
            // A task that has used its share would not stop before its next period.
            self.migration.share.lift()?;
            block_in_place(|| plan.cgroup.freeze(Instant::now() + deadline::FREEZE))?;
            let Backlog { half_open, unaccepted } = self.backlogs.look()?;
            if unaccepted == 0 {
                self.progress.half_open = half_open;
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(Unaccepted(unaccepted).into());
            }
            block_in_place(|| plan.cgroup.resume())?;
            self.frozen = false;
            tokio::time::sleep(BREATH).await;
            self.drain().await?;
        }
    }
}
