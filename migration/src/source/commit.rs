//! The commit point and what follows it. Nothing here ever thaws the original by itself: the one
//! exception is a destination that says it holds no copy.

use std::time::Instant;

use state::cause::{Cause, chain};

use ownership::source::Next;

use super::completion::Completion;
use super::destination_rpc::{self, Error};
use super::failure::Failure;
use super::interruption::Interruption;
use super::retry::{Goal, insist};
use crate::event::Steps;
use crate::report::Report;

/// A migration whose commit record is on disk.
pub struct Committed<'a> {
    interruption: Interruption<'a>,
    since: Instant,
}

impl<'a> Committed<'a> {
    /// **The commit point.** Once the record is on disk the original never runs again.
    pub fn record(
        mut interruption: Interruption<'a>,
    ) -> Result<Self, Box<(Interruption<'a>, Cause)>> {
        let since = Instant::now();
        match interruption.note_commit() {
            Ok(()) => Ok(Self { interruption, since }),
            Err(e) => Err(Box::new((interruption, e.into()))),
        }
    }

    /// Tells the destination until it acknowledges, lets the packets go and removes the original.
    pub async fn complete(mut self, mut steps: Steps<'_>) -> Result<Report, Failure> {
        let migration = &mut self.interruption.migration;
        let id = migration.id();
        let told = destination_rpc::commit(migration.connection(), id).await;
        if told.as_ref().is_err_and(|error| error.next() != Next::GoBack) {
            migration.pause_original();
        }
        match insist(migration, told, Goal::Committed).await {
            Ok(()) => {}
            Err(error) if error.next() == Next::GoBack => {
                return Err(self.interruption.go_back(error.into()).await);
            }
            Err(error) => return Err(doubt(self.interruption, error).await),
        }
        let completion = Completion::begin(self.interruption, self.since).await;
        Ok(completion.complete(&mut steps).await?.summary(steps).await)
    }
}

/// Keeps the original as it is. Its packets go to where the copy may be heard or not, and so meet
/// either the container or nothing; held ones would be dropped with this process.
async fn doubt(mut interruption: Interruption<'_>, error: Error) -> Failure {
    let container = interruption.migration.plan.container.name.clone();
    if let Err(e) = interruption.release_hold().await {
        tracing::warn!("{}", chain(e.as_ref()));
    }
    interruption.migration.original_paused().await;
    let cause: Cause = error.into();
    Failure::InDoubt { container, cause }
}
