//! Finishing or undoing migrations whose process has died, from their journals.
//!
//! ```text
//! last record          what is done
//! Departure            undo: tunnel, files; nothing was interrupted
//! Interruption         undo: marks, cut-off, freeze, hold; the original runs on
//! Committed            ask the destination: finish there, then remove the original;
//!                      it holds no copy: undo; no answer: in doubt, nothing is changed
//! PagesOutstanding     send the pages that the destination lacks, then remove the original
//! Acknowledged         remove the original
//! Withdrawn            undo: a person has said so
//! ```
//!
//! Everything here may be repeated: what is done already is no error.

mod departed;
mod error;
mod event;
pub mod guardian;
mod outstanding_pages;
mod restart_policy;
mod roll_forward;
mod undo;
pub mod withdraw;

use std::path::Path;
use std::time::Duration;

use ownership::source::{Answer, Departure, Occupant, Recovery, recovery};
use state::cause::chain;
use state::container_lock::ContainerLock;
use state::journal::{self, Journal};

pub use self::departed::Departed;
use self::error::Error;
pub use self::event::Event;

use crate::context::Context;
use crate::source::clean_up;

/// How long another agent may keep the container's lock.
const LOCK: Duration = Duration::from_secs(20);

/// How a recovery ended, the better ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Nothing is left to be done.
    Clean,
    /// Another process is at work on a migration.
    Busy,
    /// Something could not be done yet.
    Incomplete,
    /// A move is done, and this host runs the container as well.
    SecondCopy,
    /// A move is decided, and the destination does not confirm it.
    InDoubt,
}

/// Where the container is once its migration is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    /// The original runs here as before.
    Back,
    /// The container runs at the destination; the original is gone.
    Moved,
    /// The copy is lost, and somebody has removed the original.
    Gone,
}

/// Recovers every migration of this host whose process has died.
pub async fn run(context: &Context) -> Outcome {
    let paths = match journal::unfinished(&context.directories.state) {
        Ok(paths) => paths,
        Err(e) => return failed(context, None, chain(&e)),
    };
    let mut worst = None;
    for path in paths {
        worst = worst.max(recover(context, &path).await);
    }
    worst.unwrap_or_else(|| {
        context.tell(Event::NothingToRecover);
        Outcome::Clean
    })
}

/// Recovers the migration of one journal; `None` if there is nothing to do about it.
async fn recover(context: &Context, path: &Path) -> Option<Outcome> {
    let (journal, records) = match journal::claim(path) {
        Ok(Some(claimed)) => claimed,
        Ok(None) => return at_work(context, path).await,
        Err(e) => return Some(failed(context, None, chain(&e))),
    };
    let departed = match Departed::read(&context.directories.state, &records) {
        Ok(departed) => departed?,
        Err(e) => return Some(failed(context, None, chain(e.as_ref()))),
    };
    let (name, destination) = (departed.name.clone(), departed.peer.destination.clone());
    context.tell(Event::BrokenOff { name, destination });
    let settled = settle(context, &departed, journal).await;
    Some(tell(context, &departed, settled, false).await)
}

/// Tells how a migration was settled. `again` is whether a person has ordered it back.
async fn tell(
    context: &Context,
    departed: &Departed,
    settled: Result<Settled, Error>,
    again: bool,
) -> Outcome {
    let (name, destination) = (departed.name.clone(), departed.peer.destination.clone());
    let has_ended = departed.process.is_some() && departed.original().is_none();
    match settled {
        Ok(Settled::Back) if has_ended => {
            clean_up(context, &departed.container).await;
            context.tell(Event::Ended { name });
        }
        Ok(Settled::Back) => context.tell(Event::RunsHere { name, again }),
        Ok(Settled::Moved) => context.tell(Event::RunsThere { name, destination }),
        Ok(Settled::Gone) => context.tell(Event::BothGone { name }),
        Err(e) => {
            let outcome = failed(context, Some(name), chain(&e));
            return match e {
                Error::InDoubt { .. } | Error::PagesOutstanding { .. } | Error::CopyLost { .. } => {
                    Outcome::InDoubt
                }
                Error::SecondCopy(_) => Outcome::SecondCopy,
                _ => outcome,
            };
        }
    }
    Outcome::Clean
}

fn failed(context: &Context, name: Option<String>, reason: String) -> Outcome {
    context.tell(Event::Failed { name, reason });
    Outcome::Incomplete
}

/// Tells of a migration that another process is at work on; `None` if it has just ended.
async fn at_work(context: &Context, path: &Path) -> Option<Outcome> {
    // Its end may come between any two of these steps.
    let records = journal::read(path).ok().filter(|records| !records.is_empty())?;
    let departed = Departed::read(&context.directories.state, &records).ok()??;
    let (name, destination) = (departed.name.clone(), departed.peer.destination.clone());
    if departed.reached == Departure::Committed {
        tell_of_second(context, &departed).await;
        context.tell(Event::InDoubtElsewhere { name, destination });
        return Some(Outcome::InDoubt);
    }
    if departed.reached == Departure::Outstanding {
        context.tell(Event::SendsPages { name, destination });
        return Some(Outcome::Busy);
    }
    context.tell(Event::Busy { name, destination });
    Some(Outcome::Busy)
}

/// Returns whether nothing is left of the original: somebody has removed it.
async fn is_gone(context: &Context, departed: &Departed) -> bool {
    matches!(roll_forward::occupant(context, departed).await, Ok(Occupant::Nothing))
}

/// Tells of a container that was started in the place of an original whose move is in doubt.
async fn tell_of_second(context: &Context, departed: &Departed) {
    // A journal of an earlier version may not tell which processes were frozen.
    if departed.process.is_none() {
        return;
    }
    match roll_forward::occupant(context, departed).await {
        Ok(Occupant::Later) => context.tell(Event::SecondCopy {
            name: departed.name.clone(),
            destination: departed.peer.destination.clone(),
        }),
        Ok(_) => {}
        Err(e) => tracing::debug!("{}", chain(e.as_ref())),
    }
}

async fn settle(
    context: &Context,
    departed: &Departed,
    mut journal: Journal,
) -> Result<Settled, Error> {
    let run = &context.directories.run;
    let locked = ContainerLock::settle(run, &departed.container, &departed.name, LOCK).await;
    let _lock = locked.map_err(|e| Error::Begin(e.into()))?;
    let mut outcome = match recovery(departed.reached) {
        Recovery::Undo => Settled::Back,
        Recovery::Repeat => match roll_forward::finish(context, departed, &mut journal).await {
            Err(Error::InDoubt { source, .. })
                if source.answer() == Answer::Lost && is_gone(context, departed).await =>
            {
                Settled::Gone
            }
            Err(doubt @ Error::InDoubt { .. }) => {
                restart_policy::disarm(context, departed, &mut journal).await;
                tell_of_second(context, departed).await;
                return Err(doubt);
            }
            finished => finished?,
        },
        Recovery::ServePages | Recovery::RemoveOriginal => Settled::Moved,
    };
    let is_outstanding = match recovery(departed.reached) {
        Recovery::Repeat => outcome == Settled::Moved && departed.post_copy,
        reached => reached == Recovery::ServePages,
    };
    if is_outstanding
        && let Err(error) = outstanding_pages::serve(context, departed, &mut journal).await
    {
        if !matches!(error, Error::CopyLost { .. }) || !is_gone(context, departed).await {
            restart_policy::disarm(context, departed, &mut journal).await;
            return Err(error);
        }
        outcome = Settled::Gone;
    }
    let left = match outcome {
        Settled::Back => {
            let mut left = undo::undo(context, departed).await;
            left.extend(restart_policy::arm(context, departed).await);
            left.extend(restart_policy::unpause(context, departed).await);
            // Nothing here waits for the far end: its copy cannot be heard by anyone.
            undo::abort(context, departed).await;
            left
        }
        Settled::Gone => undo::undo(context, departed).await,
        Settled::Moved => {
            let removed = roll_forward::remove_original(context, departed).await;
            if removed.is_second {
                return Err(Error::SecondCopy(departed.peer.destination.clone()));
            }
            removed.left
        }
    };
    if !left.is_empty() {
        return Err(Error::Incomplete(left));
    }
    journal.end().map_err(|e| Error::Begin(e.into()))?;
    // Not before: the destination may forget the migration then, and this host might have asked again.
    if outcome != Settled::Back {
        roll_forward::tell_settled(context, departed).await;
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubt_outweighs_everything() {
        use Outcome::{Busy, Clean, InDoubt, Incomplete, SecondCopy};
        assert_eq!([Clean, InDoubt, Incomplete, Busy].into_iter().max(), Some(InDoubt));
        assert_eq!([Clean, Busy, Incomplete].into_iter().max(), Some(Incomplete));
        assert_eq!([SecondCopy, Incomplete].into_iter().max(), Some(SecondCopy));
    }
}
