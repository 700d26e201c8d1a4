//! The commit point and what follows it. Nothing here ever thaws the original by itself: the one
//! exception is a destination that says it holds no copy.

use std::time::{Duration, Instant};

use agent_core::cause::{Cause, chain};
use agent_core::deadline;

use super::Failure;
use super::order::{self, Error};
use super::pause::Pause;
use super::retire::Retirement;
use crate::report::Steps;
use crate::summary::Summary;

/// Pause between two attempts to reach a destination that has not acknowledged.
const RETRY: Duration = Duration::from_millis(500);

/// A migration whose commit record is on disk.
pub struct Committed<'a> {
    pause: Pause<'a>,
    since: Instant,
}

/// The last thing that is wanted of the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Its copy is audible.
    Committed,
    /// Its engine runs the container.
    Finished,
}

impl<'a> Committed<'a> {
    /// Takes over from a pause whose commit record has been written.
    pub fn new(pause: Pause<'a>, since: Instant) -> Self {
        Self { pause, since }
    }

    /// Tells the destination until it acknowledges, lets the packets go and removes the original.
    pub async fn complete(mut self, mut steps: Steps) -> Result<Summary, Failure> {
        let migration = self.pause.migration();
        let told = order::commit(self.pause.connection(), migration).await;
        match insist(&mut self.pause, told, Goal::Committed).await {
            Ok(()) => {}
            Err(error) if error.denies_copy() => {
                return Err(self.pause.go_back(error.into()).await);
            }
            Err(error) => return Err(doubt(self.pause, error).await),
        }
        let retirement = Retirement::begin(self.pause, self.since).await;
        Ok(retirement.complete(&mut steps).await?.summary(steps).await)
    }
}

/// Asks again over new connections until the goal is reached, the destination denies that it holds
/// a copy, or the time for it is over.
pub async fn insist(
    pause: &mut Pause<'_>,
    told: Result<(), Error>,
    goal: Goal,
) -> Result<(), Error> {
    let give_up = Instant::now() + deadline::COMMIT;
    let mut told = told;
    loop {
        match told {
            Ok(()) => return Ok(()),
            Err(e) if e.denies_copy() || Instant::now() >= give_up => return Err(e),
            Err(e) => tracing::warn!("{}", chain(&e)),
        }
        tokio::time::sleep(RETRY).await;
        told = again(pause, goal).await;
    }
}

/// Dials anew, picks the migration up and repeats the order.
async fn again(pause: &mut Pause<'_>, goal: Goal) -> Result<(), Error> {
    let mut connection = pause.peer().resume(pause.context()).await?;
    order::commit(&mut connection, pause.migration()).await?;
    if goal == Goal::Finished {
        order::finish(&mut connection).await?;
    }
    pause.replace_connection(connection);
    Ok(())
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
