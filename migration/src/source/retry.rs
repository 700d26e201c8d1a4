//! A destination that does not acknowledge is asked again.

use std::time::{Duration, Instant};

use ownership::source::Next;
use state::cause::chain;
use state::deadline;

use super::destination_rpc::{self, Error};
use super::migration::Migration;

/// Between two attempts to reach a destination that has not acknowledged.
const RETRY: Duration = Duration::from_millis(500);

/// How long a destination whose server has died is asked again what has become of flows, and to note that a move is settled.
const SETTLING: Duration = Duration::from_secs(5);

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

/// Tells the destination that this host needs no answer about the migration any more. A server that has died meanwhile is
/// told by a new connection: what is sent over the old one gets lost without an error.
pub async fn tell_settled(migration: &mut Migration<'_>) -> Result<(), Error> {
    let id = migration.id();
    if destination_rpc::silent(migration.connection(), id).await.is_ok() {
        return destination_rpc::settled(migration.connection(), id).await;
    }
    let give_up = Instant::now() + SETTLING;
    loop {
        let told = async {
            let mut connection = migration.plan.far_end().resume(migration.context).await?;
            destination_rpc::settled(&mut connection, id).await
        };
        match told.await {
            Err(e) if e.next() == Next::AskAgain && Instant::now() < give_up => {
                tracing::debug!("{}", chain(&e));
            }
            told => return told,
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Picks up a conversation that has broken after the container was handed over. The destination may have to be started again.
pub async fn reconnect(migration: &mut Migration<'_>) -> Result<(), Error> {
    let give_up = Instant::now() + SETTLING;
    loop {
        match again(migration, Goal::Finished).await {
            Err(e) if e.next() == Next::AskAgain && Instant::now() < give_up => {
                tracing::debug!("{}", chain(&e));
            }
            reached => return reached,
        }
        tokio::time::sleep(RETRY).await;
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
