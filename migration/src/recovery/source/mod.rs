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

mod error;
mod event;
pub mod guardian;
mod outstanding_pages;
mod restart_policy;
mod roll_forward;
mod undo;
pub mod withdraw;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use checkpoint::cgroup::{Cgroup, CpuLimit};
use checkpoint::procfs;
use netmig::peer_number::PeerNumber;
use ownership::source::{Answer, Departure, Occupant, Recovery, recovery};
use state::cause::{Cause, chain};
use state::container_lock::ContainerLock;
use state::id::MigrationId;
use state::journal::{self, Journal, Process, Record};
use steering::peer_numbers;

use self::error::Error;
pub use self::event::Event;

use crate::context::Context;
use crate::source::clean_up;
use crate::source::destination_rpc::Peer;

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
    /// Volumes that stay here when the container goes, each with the time at which it was made.
    pub volumes: BTreeMap<String, String>,
    /// Whether the engine was told to record the original as paused.
    pub paused: bool,
    /// How much of the processors the original might use before that was changed.
    pub cpu_limits: Vec<CpuLimit>,
    /// To what that was changed.
    pub changed_cpu_limits: Vec<Vec<CpuLimit>>,
    /// Whether memory goes over after the decision.
    pub post_copy: bool,
}

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
    context.tell(Event::BrokenOff { name: name.clone(), destination });
    let settled = settle(context, &departed, journal).await;
    let has_ended = departed.process.is_some() && departed.original().is_none();
    if matches!(settled, Ok(Settled::Back)) && has_ended {
        clean_up(context, &departed.container).await;
        context.tell(Event::Ended { name });
        return Some(Outcome::Clean);
    }
    Some(tell(context, &departed, settled, false))
}

/// Tells how a migration was settled. `again` is whether a person has ordered it back.
fn tell(
    context: &Context,
    departed: &Departed,
    settled: Result<Settled, Error>,
    again: bool,
) -> Outcome {
    let (name, destination) = (departed.name.clone(), departed.peer.destination.clone());
    match settled {
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
    let outcome = match recovery(departed.reached) {
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
        restart_policy::disarm(context, departed, &mut journal).await;
        return Err(error);
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
        Settled::Gone => {
            roll_forward::tell_settled(context, departed).await;
            undo::undo(context, departed).await
        }
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
    if is_outstanding || recovery(departed.reached) == Recovery::RemoveOriginal {
        roll_forward::tell_settled(context, departed).await;
    }
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
        let changes = records.iter().filter_map(|record| match record {
            Record::CpuLimit { original, set } => Some((original, set)),
            _ => None,
        });
        let cpu_limits: Vec<_> = changes.collect();
        let limits = |texts: &Vec<String>| -> Vec<CpuLimit> {
            texts.iter().filter_map(|text| CpuLimit::parse(text)).collect()
        };
        Ok(Some(Self {
            container: container.clone(),
            name: name.clone(),
            addresses: addresses.clone(),
            number: peer_numbers::find_number(state, peer.host)?,
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
            volumes: records
                .iter()
                .find_map(|record| match record {
                    Record::KeptVolumes { volumes } => Some(volumes.clone()),
                    _ => None,
                })
                .unwrap_or_default(),
            paused: records.contains(&Record::Paused),
            cpu_limits: cpu_limits.last().map(|(original, _)| limits(original)).unwrap_or_default(),
            changed_cpu_limits: cpu_limits.iter().map(|(_, set)| limits(set)).collect(),
            post_copy: records.contains(&Record::PostCopy),
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
            || procfs::start_time(process.pid).is_some_and(|started| started == process.started);
        is_same.then(|| Cgroup::of_pid(process.pid, &self.container).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use state::id::HostId;

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
        use Outcome::{Busy, Clean, InDoubt, Incomplete, SecondCopy};
        assert_eq!([Clean, InDoubt, Incomplete, Busy].into_iter().max(), Some(InDoubt));
        assert_eq!([Clean, Busy, Incomplete].into_iter().max(), Some(Incomplete));
        assert_eq!([SecondCopy, Incomplete].into_iter().max(), Some(SecondCopy));
    }
}
