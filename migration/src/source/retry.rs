//! A destination that does not acknowledge is asked again.

use std::time::{Duration, Instant};

use ownership::source::Next;
use state::cause::chain;
use state::deadline;

use super::destination_rpc::{self, Error};
use super::migration::Migration;

/// Between two attempts to reach a destination that has not acknowledged.
const RETRY: Duration = Duration::from_millis(500);

/// The last thing that is wanted of the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Its copy is audible.
    Committed,
    /// Its engine runs the container.
    Finished,
}

/// Asks again over new connections until the goal is reached, the destination denies that it holds
/// a copy, or the time for it is over.
pub async fn insist(
    migration: &mut Migration<'_>,
    told: Result<(), Error>,
    goal: Goal,
) -> Result<(), Error> {
    let give_up = Instant::now() + deadline::COMMIT;
    let mut told = told;
    loop {
        match told {
            Ok(()) => return Ok(()),
            Err(e) if e.next() != Next::AskAgain || Instant::now() >= give_up => return Err(e),
            Err(e) => tracing::warn!("{}", chain(&e)),
        }
        tokio::time::sleep(RETRY).await;
        told = again(migration, goal).await;
    }
}

/// Dials anew, picks the migration up and repeats the order.
async fn again(migration: &mut Migration<'_>, goal: Goal) -> Result<(), Error> {
    let mut connection = migration.plan.far_end().resume(migration.context).await?;
    destination_rpc::commit(&mut connection, migration.id()).await?;
    if goal == Goal::Finished {
        destination_rpc::finish(&mut connection).await?;
    }
    migration.plan.link.connection = connection;
    Ok(())
}
