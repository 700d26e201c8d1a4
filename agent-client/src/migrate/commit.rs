//! The commit point and what follows it. Nothing here ever thaws the original by itself: the one
//! exception is a destination that says it holds no copy.

use std::time::{Duration, Instant};

use agent_core::cause::Cause;
use agent_core::message::{FailureCode, Message};
use agent_core::wire::{self, Connection};
use agent_core::{deadline, expect};

use super::connect;
use super::pause::Pause;
use super::retire::Retirement;
use super::{Context, Failure};
use crate::report::Steps;
use crate::summary::Summary;

/// Pause between two attempts to reach a destination that has not acknowledged.
const RETRY: Duration = Duration::from_millis(500);

/// A migration whose commit record is on disk.
pub struct Committed<'a> {
    pause: Pause<'a>,
    since: Instant,
}

/// What the destination said to the commit.
enum Answer {
    /// Its copy is the container now.
    Acknowledged,
    /// It holds no copy: its lease ran out and it undid everything.
    NoCopy(wire::Error),
}

impl<'a> Committed<'a> {
    /// Takes over from a pause whose commit record has been written.
    pub fn new(pause: Pause<'a>, since: Instant) -> Self {
        Self { pause, since }
    }

    /// Tells the destination until it acknowledges, lets the packets go and removes the original.
    pub async fn complete(mut self, mut steps: Steps) -> Result<Summary, Failure> {
        match self.tell().await {
            Ok(Answer::Acknowledged) => {}
            Ok(Answer::NoCopy(error)) => return Err(self.pause.go_back(error.into()).await),
            Err(cause) => {
                let container = self.pause.container_name().to_owned();
                return Err(Failure::InDoubt { container, cause });
            }
        }
        let retirement = Retirement::begin(self.pause, self.since).await;
        Ok(retirement.complete(&mut steps).await.summary(steps))
    }

    async fn tell(&mut self) -> Result<Answer, Cause> {
        let give_up = Instant::now() + deadline::COMMIT;
        let migration = self.pause.migration();
        let mut error = match order(self.pause.connection(), migration).await {
            Ok(()) => return Ok(Answer::Acknowledged),
            Err(error) => error,
        };
        loop {
            if denies_copy(&error) {
                return Ok(Answer::NoCopy(error));
            }
            if Instant::now() >= give_up {
                return Err(error.into());
            }
            tokio::time::sleep(RETRY).await;
            error = match self.again(migration).await {
                Ok(()) => return Ok(Answer::Acknowledged),
                Err(error) => error,
            };
        }
    }

    /// Dials anew, picks the migration up and repeats the order.
    async fn again(&mut self, migration: agent_core::message::MigrationId) -> Result<(), wire::Error> {
        let context: &Context = self.pause.context();
        let (mut connection, _) = connect::dial(context, self.pause.destination()).await?;
        connection.send(&Message::Resume(migration)).await?;
        expect!(connection, deadline::ANSWER, Resumed)?;
        order(&mut connection, migration).await?;
        self.pause.replace_connection(connection);
        Ok(())
    }
}

async fn order(
    connection: &mut Connection,
    migration: agent_core::message::MigrationId,
) -> Result<(), wire::Error> {
    connection.send(&Message::Commit(migration)).await?;
    expect!(connection, deadline::ANSWER, Committed)
}

/// Only these words of the destination itself mean that no copy exists there.
fn denies_copy(error: &wire::Error) -> bool {
    matches!(error, wire::Error::Failure(failure) if failure.code == FailureCode::Unknown)
}
