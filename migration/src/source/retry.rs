//! A destination that does not acknowledge is asked again.

use std::time::{Duration, Instant};

use ownership::source::Next;
use state::cause::chain;
use state::deadline;

use super::destination_rpc::{self, Error};
use super::interruption::Interruption;

/// Interruption between two attempts to reach a destination that has not acknowledged.
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
    interruption: &mut Interruption<'_>,
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
        told = again(interruption, goal).await;
    }
}

/// Dials anew, picks the migration up and repeats the order.
async fn again(interruption: &mut Interruption<'_>, goal: Goal) -> Result<(), Error> {
    let mut connection = interruption.peer().resume(interruption.context()).await?;
    destination_rpc::commit(&mut connection, interruption.migration()).await?;
    if goal == Goal::Finished {
        destination_rpc::finish(&mut connection).await?;
    }
    interruption.replace_connection(connection);
    Ok(())
}
