//! Turns: containers are prepared at the same time and interrupted one after another.

use std::time::{Duration, Instant};

use protocol::expect;
use protocol::message::{Message, MigrationId};
use state::cause::Cause;
use state::deadline;
use state::interrupt_slot::{RETRY, Turn};

use super::plan::Plan;
use crate::context::Context;

/// Others were interrupted all the time.
#[derive(Debug, thiserror::Error)]
#[error(
    "other containers that are being moved kept this one waiting for {} s; move fewer at once",
    deadline::TURN.as_secs()
)]
pub struct NoTurn;

/// Waits until this container may be interrupted, on this host and on the destination, for at most `limit`;
/// `None` when others were interrupted all that time.
pub async fn take(
    context: &Context,
    plan: &mut Plan,
    limit: Duration,
) -> Result<Option<Turn>, Cause> {
    let began = Instant::now();
    for attempt in 0_usize.. {
        let mut asking = Duration::ZERO;
        if let Some(turn) = Turn::try_take(&context.directories.run)? {
            let asked = Instant::now();
            let connection = &mut plan.link.connection;
            connection.send(&Message::AskTurn(())).await?;
            if expect!(connection, deadline::ANSWER, TurnAnswer)? {
                return Ok(Some(turn));
            }
            asking = asked.elapsed();
        }
        if began.elapsed() >= limit {
            break;
        }
        tokio::time::sleep(pause(plan.offer.migration, attempt, asking)).await;
    }
    Ok(None)
}

/// Returns how long to leave the turn to others before the next attempt. Two hosts that ask each other at the
/// same moment, both with their own turn in hand, must not do so for ever: each waits for another part
/// of the time that asking takes.
fn pause(migration: MigrationId, attempt: usize, asking: Duration) -> Duration {
    let MigrationId(random) = migration;
    RETRY + asking * u32::from(random[attempt % random.len()]) / 128
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_that_ask_each_other_do_not_stay_in_step() {
        let asking = Duration::from_millis(100);
        let of = |id| (0..16).map(|n| pause(MigrationId(id), n, asking)).collect::<Vec<_>>();
        let mut other = [7; 16];
        other[3] = 200;
        assert_ne!(of([7; 16]), of(other));
        assert!(of([0; 16]).iter().all(|pause| *pause == RETRY));
    }
}
