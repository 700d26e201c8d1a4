//! The commit point and what follows it. Nothing here ever thaws the original by itself: the one
//! exception is a destination that says it holds no copy.

use std::time::Instant;

use agent_core::cause::{Cause, chain};

use ownership::source::Next;

use super::failure::Failure;
use super::insist::{Goal, insist};
use super::order::{self, Error};
use super::pause::Pause;
use super::retire::Retirement;
use crate::report::Steps;
use crate::summary::Summary;

/// A migration whose commit record is on disk.
pub struct Committed<'a> {
    pause: Pause<'a>,
    since: Instant,
}

impl<'a> Committed<'a> {
    /// **The commit point.** Once the record is on disk the original never runs again.
    pub fn record(mut pause: Pause<'a>) -> Result<Self, Box<(Pause<'a>, Cause)>> {
        let since = Instant::now();
        match pause.note_commit() {
            Ok(()) => Ok(Self { pause, since }),
            Err(e) => Err(Box::new((pause, e.into()))),
        }
    }

    /// Tells the destination until it acknowledges, lets the packets go and removes the original.
    pub async fn complete(mut self, mut steps: Steps) -> Result<Summary, Failure> {
        let migration = self.pause.migration();
        let told = order::commit(self.pause.connection(), migration).await;
        match insist(&mut self.pause, told, Goal::Committed).await {
            Ok(()) => {}
            Err(error) if error.next() == Next::GoBack => {
                return Err(self.pause.go_back(error.into()).await);
            }
            Err(error) => return Err(doubt(self.pause, error).await),
        }
        let retirement = Retirement::begin(self.pause, self.since).await;
        Ok(retirement.complete(&mut steps).await?.summary(steps).await)
    }
}

/// Keeps the original as it is. Its packets go to where the copy may be heard or not, and so meet
/// either the container or nothing; held ones would be dropped with this process.
async fn doubt(mut pause: Pause<'_>, error: Error) -> Failure {
    let container = pause.container_name().to_owned();
    if let Err(e) = pause.release_hold().await {
        tracing::warn!("{}", chain(e.as_ref()));
    }
    let cause: Cause = error.into();
    Failure::InDoubt { container, cause }
}
