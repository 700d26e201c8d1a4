//! The source's decision about a copy that waits for it, and what follows.

use std::time::{Duration, Instant};

use engine::Kind;
use ownership::destination::{Holding, Order, Reply};
use protocol::expect;
use protocol::message::{Message, MigrationId};
use protocol::wire::Connection;
use state::cause::Cause;
use state::deadline;
use state::id::HostId;

use crate::destination::copy::Copy;
use crate::destination::lease::{Copies, Decision};
use crate::destination::receive_buffers::settle_buffers;
use crate::destination::refusal::{give_up, lost, not_allowed, unknown};
use crate::destination::settlement;

/// Between two looks at a copy that another conversation is deciding about.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// How long is waited for that conversation: less than a source waits for an answer.
const BUSY_LIMIT: Duration = Duration::from_secs(15);

/// A copy's fate hangs on something else than its source.
#[derive(Debug, thiserror::Error)]
#[error(
    "the copy cannot be decided about now; see the log of agent-server, and recover.log in its run directory"
)]
struct Undecided;

/// The copy is audible, but its engine does not run it.
#[derive(Debug, thiserror::Error)]
#[error("{0} has not taken the container over yet; see the log of agent-server")]
struct NotHandedOver(Kind);

/// Keeps a copy until its source decides or its lease expires.
pub fn keep(copies: &'static Copies, migration: MigrationId, source: HostId, copy: Copy) {
    copies.insert(migration, source, copy, Instant::now() + deadline::LEASE);
    tokio::spawn(async move {
        tokio::time::sleep(deadline::LEASE + Duration::from_millis(10)).await;
        copies.expire(migration).await;
    });
}

/// Waits for the source's decision about a prepared copy and carries it out. A connection that is
/// lost here decides nothing: the copy keeps its lease.
pub async fn decide(
    copies: &'static Copies,
    connection: &mut Connection,
    migration: MigrationId,
) -> Result<(), Cause> {
    let (order, named) = match connection.receive(deadline::LEASE).await? {
        Message::Commit(id) => (Order::Commit, id),
        Message::Abort(id) => (Order::Abort, id),
        // A source that has lost its connection after `Finished`.
        Message::LedPast(id) => (Order::LedPast, id),
        Message::Settled(id) => (Order::Done, id),
        other => return Err(connection.unexpected(&other, "Commit").into()),
    };
    if named != migration {
        return Ok(connection.send(&Message::Failure(not_allowed(named))).await?);
    }
    match settled(copies, connection.host(), migration, order).await? {
        Decision::Take(copy) if order == Order::Commit => {
            commit(copies, connection, migration, *copy).await
        }
        Decision::Take(copy) => {
            tracing::info!("{migration}: the source goes back; removing the copy");
            if copies.dispose(migration, *copy).await == Holding::Nothing {
                Ok(connection.send(&Message::Aborted(())).await?)
            } else {
                give_up(connection, Undecided.into()).await
            }
        }
        Decision::Answer(reply) => answer(copies, connection, migration, reply).await,
    }
}

/// Carries an order out, once nobody else is busy with the migration; undecided if that takes too long.
async fn settled(
    copies: &Copies,
    from: HostId,
    migration: MigrationId,
    order: Order,
) -> Result<Decision, Cause> {
    let give_up_at = Instant::now() + BUSY_LIMIT;
    loop {
        match copies.decide(migration, from, order)? {
            Decision::Answer(Reply::Undecided) if Instant::now() < give_up_at => {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            decision => return Ok(decision),
        }
    }
}

/// Says what is to be said where no copy is touched.
pub(super) async fn answer(
    copies: &'static Copies,
    connection: &mut Connection,
    migration: MigrationId,
    reply: Reply,
) -> Result<(), Cause> {
    let failure = match reply {
        Reply::Confirm => return confirm(copies, connection, migration).await,
        Reply::Removed => return Ok(connection.send(&Message::Aborted(())).await?),
        Reply::Release => return led_past(copies, connection, migration).await,
        Reply::Forget => return settlement::settle(copies, migration),
        Reply::NoCopy => unknown(migration),
        Reply::Lost => lost(migration),
        Reply::NotAllowed => {
            let peer = connection.host();
            tracing::warn!("{migration}: refused an order of {peer}, which it does not come from");
            not_allowed(migration)
        }
        Reply::Undecided
        | Reply::Known
        | Reply::Activate
        | Reply::Remove
        | Reply::Fetch
        | Reply::Whole => {
            return give_up(connection, Undecided.into()).await;
        }
    };
    Ok(connection.send(&Message::Failure(failure)).await?)
}

/// Picks up a migration whose source lost its connection after the copy was prepared.
pub async fn resume(
    copies: &'static Copies,
    connection: &mut Connection,
    migration: MigrationId,
) -> Result<(), Cause> {
    match copies.decide(migration, connection.host(), Order::Resume)? {
        Decision::Answer(Reply::Known) => {
            connection.send(&Message::Resumed(())).await?;
            decide(copies, connection, migration).await
        }
        Decision::Answer(reply) => answer(copies, connection, migration, reply).await,
        Decision::Take(copy) => {
            // Picking up takes no copy.
            keep(copies, migration, connection.host(), *copy);
            give_up(connection, Undecided.into()).await
        }
    }
}

async fn commit(
    copies: &'static Copies,
    connection: &mut Connection,
    migration: MigrationId,
    mut copy: Copy,
) -> Result<(), Cause> {
    if !copy.is_whole() {
        tracing::error!("{migration}: {} has died; removing the copy", copy.engine());
        return match copies.dispose(migration, copy).await {
            Holding::Nothing => Ok(connection.send(&Message::Failure(unknown(migration))).await?),
            Holding::Lost => Ok(connection.send(&Message::Failure(lost(migration))).await?),
            _ => give_up(connection, Undecided.into()).await,
        };
    }
    if let Err(cause) = copy.activate().await {
        // The copy is still whole, frozen and cut off: the source may ask again.
        keep(copies, migration, connection.host(), copy);
        return give_up(connection, cause).await;
    }
    let container = copy.container().to_owned();
    if let Some(counted) = copy.take_counted() {
        copies.counted().insert(migration, counted);
        settlement::forget_counted(copies, migration);
    }
    copies.activated(migration);
    // From here on the container is finished whether or not its source is still there to hear of it.
    let told = connection.send(&Message::Committed(())).await;
    let asked = match told {
        // Handing over costs processor time that the source's held packets need first.
        Ok(()) => expect!(connection, deadline::ANSWER, Finish),
        Err(e) => Err(e),
    };
    let finished = copy.finish().await;
    // In the archive now, or left to the journal's guardian.
    copies.ended(migration);
    let finished = match finished {
        Ok(finished) => finished,
        Err(cause) => return give_up(connection, cause).await,
    };
    asked?;
    let pid = finished.pid;
    let told = connection.send(&Message::Finished(finished)).await;
    // Nobody waits for that, and larger buffers do no harm if this process ends before.
    tokio::spawn(settle_buffers(pid, container));
    told?;
    settlement::wait(copies, connection, migration).await
}

async fn led_past(
    copies: &'static Copies,
    connection: &mut Connection,
    migration: MigrationId,
) -> Result<(), Cause> {
    settlement::release(copies.host(), migration).await?;
    settlement::wait(copies, connection, migration).await
}

/// Says again what was said, or should have been, over a connection that was lost.
async fn confirm(
    copies: &'static Copies,
    connection: &mut Connection,
    migration: MigrationId,
) -> Result<(), Cause> {
    let host = copies.host();
    connection.send(&Message::Committed(())).await?;
    expect!(connection, deadline::ANSWER, Finish)?;
    let give_up_at = Instant::now() + deadline::STAGE;
    loop {
        if let Some(mut finished) = host.handed_over(migration)? {
            finished.pid = host.first_process(migration).await?.unwrap_or(0);
            connection.send(&Message::Finished(finished)).await?;
            return settlement::wait(copies, connection, migration).await;
        }
        if Instant::now() >= give_up_at {
            return give_up(connection, NotHandedOver(copies.host().engine.kind()).into()).await;
        }
        tokio::time::sleep(BUSY_PAUSE).await;
    }
}
