//! Finishing a migration whose commit record is on disk.

use protocol::message::Rehome;
use state::cause::{Cause, chain};
use state::journal::{self, Journal, Record};
use steering::moved_containers::{self, MovedContainer};
use steering::port_forward;

use std::time::{Duration, Instant};

use checkpoint::cgroup::Cgroup;
use netmig::flow::TunnelNat;
use ownership::source::{Departure, Next, Occupant, Removal, handed_over, removal};
use tokio::task::block_in_place;

use super::undo::{tidy, unhold};
use super::{Departed, Error, Event, Settled};
use crate::context::Context;
use crate::kept_volumes::{self, KeptVolume};
use crate::source::{anchors, destination_rpc, local_far_ends, service, volumes};

/// It is not known whether there are two copies.
#[derive(Debug, thiserror::Error)]
#[error(
    "it was unpaused or started here after its move was decided, and whether the destination runs it as well is not known"
)]
struct Unasked(#[source] destination_rpc::Error);

/// How long the killed tasks of the original may take to be gone.
const KILLED: Duration = Duration::from_secs(10);

/// Gets the destination to run the container, and notes that it does. Changes nothing here while
/// the destination does not answer.
pub async fn finish(
    context: &Context,
    departed: &Departed,
    journal: &mut Journal,
) -> Result<Settled, Error> {
    let mut is_committed = false;
    let told = async {
        let mut connection = departed.peer.resume(context).await?;
        destination_rpc::commit(&mut connection, departed.migration()).await?;
        // A destination that has said that its copy is audible cannot take that back.
        let finished = destination_rpc::finish(&mut connection).await;
        is_committed = finished.is_err();
        Ok::<_, destination_rpc::Error>(finished?.local)
    };
    match told.await {
        Ok(local) => {
            context.tell(Event::DestinationRuns);
            let reached = handed_over(departed.post_copy);
            let record = match reached {
                Departure::Outstanding => Record::PagesOutstanding,
                _ => Record::Acknowledged,
            };
            journal.append(&record).map_err(|e| Error::Begin(e.into()))?;
            if let Some(number) = departed.number
                && let Err(e) = local_far_ends::forget(&departed.addresses, &local, number)
            {
                tracing::warn!("{}", chain(e.as_ref()));
            }
            Ok(Settled::Moved)
        }
        Err(e) if e.next() == Next::GoBack && !is_committed => {
            context.tell(Event::DestinationHoldsNone);
            Ok(Settled::Back)
        }
        Err(source) => {
            Err(Error::InDoubt { destination: departed.peer.destination.clone(), source })
        }
    }
}

/// Notes whose the flows are that lead from here, if the agent that was killed has not come to that.
async fn note_container(context: &Context, departed: &Departed) -> Result<(), Cause> {
    if moved_containers::find(&context.directories, &departed.container)?.is_some() {
        return Ok(());
    }
    let (id, name) = (&departed.container, &departed.name);
    let carried = MovedContainer::new(id, name, &departed.addresses, TunnelNat::default());
    carried.note(&context.directories).await
}

/// What became of the original and of what the migration needed on this host.
#[derive(Debug, Default)]
pub struct Removed {
    /// What could not be removed.
    pub left: Vec<String>,
    /// Another container has the original's ID here, or somebody has set the original going, and the destination runs
    /// the container as well.
    pub is_second: bool,
}

/// Removes the original, which is cut off still, and what the migration needed.
pub async fn remove_original(context: &Context, departed: &Departed) -> Removed {
    let mut is_second = false;
    let mut left = Vec::new();
    let mut note = |result: Result<(), Cause>| {
        left.extend(result.err().map(|e| chain(e.as_ref())));
    };
    let migration = departed.migration();
    let order = Rehome {
        migration,
        host: departed.peer.host,
        id: departed.container.clone(),
        container: departed.addresses.clone(),
    };
    let rehomed = match departed.number {
        Some(number) => anchors::rehome_anew(context, &order, number).await,
        None => Ok(false),
    };
    match rehomed {
        Ok(true) => {
            // A destination that does not hear it keeps its end of the tunnel until the flows end.
            if let Err(e) = tell_led_past(context, departed).await {
                tracing::warn!("{}", chain(&e));
            }
        }
        Ok(false) => {}
        Err(e) => note(Err(e)),
    }
    note(note_container(context, departed).await);
    note(port_forward::begin(&context.directories, migration).await);
    let here = port_forward::here(&departed.container);
    note(port_forward::remove(&context.directories, here).await.map(drop));
    note(keep_volumes(context, departed).await);
    note(end_original(context, departed).await.map(|found| is_second = found));
    note(unhold(departed).map(drop));
    note(tidy(context, departed).map(drop));
    Removed { left, is_second }
}

/// Notes which volumes stay here, unless the container is back, or has gone again since.
async fn keep_volumes(context: &Context, departed: &Departed) -> Result<(), Cause> {
    let Departed { volumes, container, peer, .. } = departed;
    if volumes.is_empty() || occupant(context, departed).await? == Occupant::Later {
        return Ok(());
    }
    let is_newer = |kept: KeptVolume| departed.decided.is_none_or(|decided| kept.at > decided);
    let mut left = volumes.clone();
    for volume in volumes.keys() {
        let kept = kept_volumes::find(&context.directories, volume)?;
        if kept.filter(|kept| kept.container == *container).is_some_and(is_newer) {
            left.remove(volume);
        }
    }
    volumes::keep(&context.directories, (container, departed.migration(), peer.host), &left)
}

/// Removes the original, and nothing else that may have its ID by now. Returns whether the container runs here and at
/// the destination.
async fn end_original(context: &Context, departed: &Departed) -> Result<bool, Cause> {
    let occupant = occupant(context, departed).await?;
    match removal(occupant) {
        Removal::Done => return Ok(false),
        Removal::Keep => return is_second(context, departed).await,
        Removal::Remove => {}
    }
    if let Some(process) = &departed.process {
        context.engine.ignore_exit(&departed.container, process.monitor).await?;
        if occupant == Occupant::Original {
            let cgroup = Cgroup::of_pid(process.pid, &departed.container)?;
            block_in_place(|| cgroup.kill(Instant::now() + KILLED))?;
        }
    }
    context.engine.remove(&departed.container).await?;
    if let Some(unit) = &departed.unit {
        service::settle(unit).await?;
    }
    Ok(false)
}

/// Returns whether the destination still runs the container, of which there is one here that is not the frozen
/// original. A container that came home is not second to any.
async fn is_second(context: &Context, departed: &Departed) -> Result<bool, Cause> {
    let (name, destination) = (departed.name.clone(), departed.peer.destination.clone());
    let (state, id) = (&context.directories.state, &departed.container);
    // That needs no word of a host which may be gone for good.
    let came_home = match departed.decided {
        Some(decided) => journal::has_arrived_since(state, id, decided)?,
        None => false,
    };
    if came_home {
        context.tell(Event::CameHome { name });
        return Ok(false);
    }
    let asked = async {
        let mut connection = departed.peer.resume(context).await?;
        destination_rpc::commit(&mut connection, departed.migration()).await?;
        destination_rpc::finish(&mut connection).await
    };
    let finished = asked.await.map_err(Unasked)?;
    if finished.pid == 0 {
        context.tell(Event::LaterContainer { name, destination });
    }
    Ok(finished.pid != 0)
}

/// Returns what has the container's ID on this host.
pub async fn occupant(context: &Context, departed: &Departed) -> Result<Occupant, Cause> {
    if let Some(cgroup) = departed.original() {
        // The original was frozen from before the decision on. One that runs was set going by somebody, or is
        // another container in a journal of an earlier version.
        let frozen = cgroup.is_freeze_requested()?;
        return Ok(if frozen { Occupant::Original } else { Occupant::Later });
    }
    if !context.engine.exists(&departed.container).await? {
        return Ok(Occupant::Nothing);
    }
    let began = context.engine.started_at(&departed.container).await?;
    Ok(match departed.decided {
        // Engines may tell whole seconds.
        Some(decided) if began > decided => Occupant::Later,
        _ => {
            // Where podman's conmon was killed with the tasks, podman goes on telling that they run.
            let container = context.engine.inspect(&departed.container).await?;
            let runs = Cgroup::of_pid(container.pid, &departed.container).is_ok();
            if runs { Occupant::Later } else { Occupant::Stopped }
        }
    })
}

/// Tells the destination that nobody will ask about the migration again: its journal is gone. A destination that does not
/// hear it remembers the migration.
pub async fn tell_settled(context: &Context, departed: &Departed) {
    let told = async {
        let mut connection = departed.peer.resume(context).await?;
        destination_rpc::settled(&mut connection, departed.migration()).await
    };
    if let Err(e) = told.await {
        tracing::debug!("{}", chain(&e));
    }
}

async fn tell_led_past(
    context: &Context,
    departed: &Departed,
) -> Result<(), destination_rpc::Error> {
    let mut connection = departed.peer.resume(context).await?;
    destination_rpc::led_past(&mut connection, departed.migration()).await
}
