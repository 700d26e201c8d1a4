//! Finishing or undoing migrations whose process has died, from their journals.
//!
//! ```text
//! last record          what is done
//! Departure            undo: tunnel, files; nothing was interrupted
//! Interruption         undo: marks, cut-off, freeze, hold; the original runs on
//! Committed            ask the destination: finish there, then remove the original;
//!                      it holds no copy: undo; no answer: in doubt, nothing is changed
//! Acknowledged         remove the original
//! Withdrawn            undo: a person has said so
//! ```
//!
//! Everything here may be repeated: what is done already is no error.

mod back;
mod disarm;
mod forward;
pub mod guardian;
pub mod withdraw;

use std::path::Path;
use std::time::Duration;

use agent_core::cause::{Cause, chain};
use agent_core::container_lock::ContainerLock;
use agent_core::identity;
use agent_core::journal::{self, Journal, Process, Record};
use agent_core::message::MigrationId;
use checkpoint::cgroup::Cgroup;
use checkpoint::process;
use netmig::peer::PeerNumber;
use ownership::source::{Departure, Recovery, recovery};

use crate::context::Context;
use crate::exit::Exit;
use crate::migrate::order::Peer;

/// How long another agent may keep the container's lock.
const LOCK: Duration = Duration::from_secs(20);

/// A migration as its journal tells of it.
#[derive(Debug)]
pub struct Departed {
    /// The container's ID.
    pub container: String,
    /// Its name, for people.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<std::net::IpAddr>,
    /// The far end.
    pub peer: Peer,
    /// Its number on this host; without one, nothing was made for it.
    pub number: Option<PeerNumber>,
    /// When the migration began, in seconds since 1970; 0 where an earlier version wrote the journal.
    pub began: u64,
    /// How far the migration came.
    pub reached: Departure,
    /// When the move was decided, in seconds since 1970, if the journal says.
    pub decided: Option<u64>,
    /// The container that was interrupted.
    pub process: Option<Process>,
    /// The restart policy that was taken from the original.
    pub disarmed: Option<String>,
}

/// How one recovery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The original runs here as before.
    Back,
    /// The container runs at the destination; the original is gone.
    Moved,
}

/// Why one recovery did not end.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The destination has the decision and does not answer.
    #[error(
        "in doubt, nothing was changed: the move is decided, and {destination} does not confirm it; run recover again when it can be reached"
    )]
    InDoubt {
        destination: agent_core::destination::Destination,
        #[source]
        source: crate::migrate::order::Error,
    },
    /// Some of it could not be done; the journal stays.
    #[error("left to be done: {}", .0.join("; "))]
    Incomplete(Vec<String>),
    /// Nothing could be done.
    #[error("cannot begin")]
    Begin(#[source] Cause),
}

/// Recovers every migration of this host whose process has died; tells on standard error.
pub async fn run(context: &Context) -> Exit {
    let paths = match journal::unfinished(&context.directories.state) {
        Ok(paths) => paths,
        Err(e) => {
            say(&chain(&e));
            return Exit::Failed;
        }
    };
    let mut exit = Exit::Moved;
    let mut found = false;
    for path in paths {
        if let Some(one) = recover(context, &path).await {
            found = true;
            exit = worse(exit, one);
        }
    }
    if !found {
        say("nothing to recover");
    }
    exit
}

/// Recovers the migration of one journal; `None` if there is nothing to do about it.
async fn recover(context: &Context, path: &Path) -> Option<Exit> {
    let (journal, records) = match journal::claim(path) {
        Ok(Some(claimed)) => claimed,
        Ok(None) => return at_work(context, path),
        Err(e) => {
            say(&chain(&e));
            return Some(Exit::Failed);
        }
    };
    let departed = match Departed::read(&context.directories.state, &records) {
        Ok(departed) => departed?,
        Err(e) => {
            say(&chain(e.as_ref()));
            return Some(Exit::Failed);
        }
    };
    let name = departed.name.clone();
    say(&format!("{name}: its migration to {} was broken off", departed.peer.destination));
    Some(match settle(context, &departed, journal).await {
        Ok(Outcome::Back) if departed.process.is_some() && departed.original().is_none() => {
            say(&format!(
                "{name}: does not run any more as it did then; nothing is left of that migration"
            ));
            Exit::Moved
        }
        Ok(Outcome::Back) => {
            say(&format!("{name}: runs on this host as before"));
            Exit::Moved
        }
        Ok(Outcome::Moved) => {
            say(&format!("{name}: runs on {}", departed.peer.destination));
            Exit::Moved
        }
        Err(e) => {
            say(&format!("{name}: {}", chain(&e)));
            if matches!(e, Error::InDoubt { .. }) { Exit::InDoubt } else { Exit::Failed }
        }
    })
}

/// Tells of a migration that another process is at work on; `None` if it has just ended.
fn at_work(context: &Context, path: &Path) -> Option<Exit> {
    // Its end may come between any two of these steps.
    let records = journal::read(path).ok().filter(|records| !records.is_empty())?;
    let departed = Departed::read(&context.directories.state, &records).ok()??;
    let (name, destination) = (&departed.name, &departed.peer.destination);
    if departed.reached == Departure::Committed {
        say(&format!(
            "{name}: in doubt: the move to {destination} is decided, and another process waits for the \
             confirmation"
        ));
        return Some(Exit::InDoubt);
    }
    say(&format!("{name}: another process is at work on its migration to {destination} (busy)"));
    Some(Exit::Refused)
}

async fn settle(
    context: &Context,
    departed: &Departed,
    mut journal: Journal,
) -> Result<Outcome, Error> {
    let run = &context.directories.run;
    let locked = ContainerLock::settle(run, &departed.container, &departed.name, LOCK).await;
    let _lock = locked.map_err(|e| Error::Begin(e.into()))?;
    let outcome = match recovery(departed.reached) {
        Recovery::Undo => Outcome::Back,
        Recovery::Repeat => match forward::finish(context, departed, &mut journal).await {
            Err(doubt @ Error::InDoubt { .. }) => {
                disarm::disarm(context, departed, &mut journal).await;
                return Err(doubt);
            }
            finished => finished?,
        },
        Recovery::RemoveOriginal => Outcome::Moved,
    };
    let left = match outcome {
        Outcome::Back => {
            let mut left = back::undo(context, departed).await;
            left.extend(disarm::arm(context, departed).await);
            // Nothing here waits for the far end: its copy cannot be heard by anyone.
            back::abort(context, departed).await;
            left
        }
        Outcome::Moved => forward::remove_original(context, departed).await,
    };
    if !left.is_empty() {
        return Err(Error::Incomplete(left));
    }
    journal.end().map_err(|e| Error::Begin(e.into()))?;
    Ok(outcome)
}

impl Departed {
    /// What a journal says; `None` if it is that of an arrival, which agent-server recovers.
    fn read(state: &Path, records: &[Record]) -> Result<Option<Self>, Cause> {
        let Some(Record::Departure {
            migration,
            container,
            name,
            addresses,
            destination,
            peer,
            began,
        }) = records.first()
        else {
            return Ok(None);
        };
        let peer = Peer { destination: destination.parse()?, host: *peer, migration: *migration };
        Ok(Some(Self {
            container: container.clone(),
            name: name.clone(),
            addresses: addresses.clone(),
            number: identity::find_number(state, peer.host)?,
            peer,
            began: *began,
            reached: journal::reached(records),
            decided: records.iter().find_map(|record| match record {
                Record::Committed { at } if *at > 0 => Some(*at),
                _ => None,
            }),
            disarmed: records.iter().find_map(|record| match record {
                Record::Disarmed { policy } => Some(policy.clone()),
                _ => None,
            }),
            process: records.iter().find_map(|record| match record {
                Record::Interruption { process, .. } => Some(process.clone()),
                _ => None,
            }),
        }))
    }

    /// The migration.
    fn migration(&self) -> MigrationId {
        self.peer.migration
    }

    /// The control group of the very container that was interrupted; `None` when its first process is gone,
    /// whatever has its ID or its process' number by now.
    fn original(&self) -> Option<Cgroup> {
        let process = self.process.as_ref()?;
        let is_same = process.started == 0
            || process::start_time(process.pid).is_some_and(|started| started == process.started);
        is_same.then(|| Cgroup::of_pid(process.pid, &self.container).ok()).flatten()
    }
}

/// Of several exit codes the one that matters most.
fn worse(a: Exit, b: Exit) -> Exit {
    let weight = |exit| match exit {
        Exit::InDoubt => 2,
        Exit::Moved => 0,
        _ => 1,
    };
    if weight(b) > weight(a) { b } else { a }
}

fn say(line: &str) {
    use std::io::Write;
    // Nobody may be there to read it.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_core::identity::HostId;

    fn departure() -> Record {
        Record::Departure {
            migration: MigrationId([1; 16]),
            container: "c".repeat(64),
            name: "web".to_owned(),
            addresses: vec![],
            destination: "[2001:db8::2]:7472".to_owned(),
            peer: HostId([2; 16]),
            began: 0,
        }
    }

    #[test]
    fn the_furthest_record_decides() {
        let process = Process {
            pid: 7,
            namespace: "/n".into(),
            interface: "eth0".to_owned(),
            started: 9,
            monitor: 6,
        };
        let interruption =
            Record::Interruption { cgroup: "/c".into(), port: "veth0".to_owned(), process };
        let mut records = vec![departure()];
        assert_eq!(journal::reached(&records), Departure::Preparing);
        records.push(interruption);
        assert_eq!(journal::reached(&records), Departure::Interrupted);
        records.push(Record::Committed { at: 0 });
        assert_eq!(journal::reached(&records), Departure::Committed);
        let mut ordered = records.clone();
        records.push(Record::Acknowledged);
        assert_eq!(journal::reached(&records), Departure::Acknowledged);
        ordered.push(Record::Withdrawn);
        assert_eq!(journal::reached(&ordered), Departure::Withdrawn);
    }

    #[test]
    fn doubt_outweighs_everything() {
        assert_eq!(worse(Exit::Failed, Exit::InDoubt), Exit::InDoubt);
        assert_eq!(worse(Exit::InDoubt, Exit::Failed), Exit::InDoubt);
        assert_eq!(worse(Exit::Moved, Exit::Failed), Exit::Failed);
        assert_eq!(worse(Exit::Failed, Exit::Moved), Exit::Failed);
    }
}
