//! Going back from a decided move, because a person says so.
//!
//! The one thing that no program may decide: the destination holds the decision and cannot be asked.
//! It may run the container at this moment for clients that this host cannot see.

use std::path::Path;
use std::time::{Duration, Instant};

use state::cause::chain;
use state::journal::{self, Journal, Record};

use ownership::source::{Departure, may_withdraw};

use super::{Departed, Error, Event, Outcome, settle, tell};
use crate::context::Context;

/// How long a guardian that asks the destination just now may keep the journal.
const BUSY: Duration = Duration::from_secs(40);
/// Between two attempts to take it over.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Lets the original of a move in doubt run again, if `confirm` returns nothing: it is given the container's
/// name and asks a person.
///
/// # Errors
/// Why nothing was changed.
pub async fn run(
    context: &Context,
    container: &str,
    confirm: impl FnOnce(&str) -> Result<(), String>,
) -> Result<Outcome, String> {
    let (journal, departed) = find(context, container).await?;
    if !may_withdraw(departed.reached) {
        return Err(format!(
            "the migration of {} is not in doubt; run agent-client recover",
            departed.name
        ));
    }
    let destination = departed.peer.destination.clone();
    let (name, to) = (departed.name.clone(), destination.clone());
    context.tell(Event::Asking { name, destination: to });
    let settled = match settle(context, &departed, journal).await {
        Err(
            Error::InDoubt { source, .. }
            | Error::PagesOutstanding { source, .. }
            | Error::CopyLost { source, .. },
        ) => {
            context.tell(Event::NotConfirmed { destination, reason: chain(&source) });
            confirm(&departed.name)?;
            return order(context, container).await;
        }
        settled => settled,
    };
    Ok(tell(context, &departed, settled, true).await)
}

/// Writes the order down, and carries it out.
async fn order(context: &Context, container: &str) -> Result<Outcome, String> {
    // A guardian may have had the journal meanwhile, and learned something.
    let (mut journal, mut departed) = find(context, container).await?;
    if may_withdraw(departed.reached) {
        journal.append(&Record::Withdrawn).map_err(|e| chain(&e))?;
        departed.reached = Departure::Withdrawn;
    }
    let settled = settle(context, &departed, journal).await;
    Ok(tell(context, &departed, settled, true).await)
}

/// Takes over the journal of a container's migration, as soon as nobody else works on it.
async fn find(context: &Context, container: &str) -> Result<(Journal, Departed), String> {
    let give_up = Instant::now() + BUSY;
    loop {
        let mut busy = false;
        for path in journal::unfinished(&context.directories.state).map_err(|e| chain(&e))? {
            if !concerns(context, &path, container) {
                continue;
            }
            let Some((journal, records)) = journal::claim(&path).map_err(|e| chain(&e))? else {
                busy = true;
                continue;
            };
            let departed = Departed::read(&context.directories.state, &records);
            if let Some(departed) = departed.map_err(|e| chain(e.as_ref()))? {
                return Ok((journal, departed));
            }
        }
        if !busy {
            return Err(format!("no migration of a container {container} is unfinished here"));
        }
        if Instant::now() >= give_up {
            return Err(format!("the migration of {container} is still at work"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Returns whether a journal is that of a container's departure, by its name or ID. One that cannot be read
/// is nobody's.
fn concerns(context: &Context, path: &Path, container: &str) -> bool {
    let Ok(records) = journal::read(path) else { return false };
    let Ok(Some(departed)) = Departed::read(&context.directories.state, &records) else {
        return false;
    };
    departed.name == container || departed.container == container
}
