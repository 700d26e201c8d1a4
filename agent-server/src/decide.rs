//! The source's decision about a copy that waits for it, and what follows.

use std::time::{Duration, Instant};

use agent_core::cause::Cause;
use agent_core::message::{Message, MigrationId};
use agent_core::peers::{self, Claim};
use agent_core::wire::Connection;
use agent_core::{deadline, expect};

use crate::answer::{give_up, unknown};
use crate::arrival::{Copy, settle_buffers};
use crate::host::Host;
use crate::lease::{Copies, Decision};

/// Between two looks at a copy that another conversation is deciding about.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// How long is waited for that conversation: less than a source waits for an answer.
const BUSY_LIMIT: Duration = Duration::from_secs(15);

/// A copy's fate hangs on something else than its source.
#[derive(Debug, thiserror::Error)]
#[error("the copy cannot be decided about now; see the log of agent-server")]
struct Undecided;

/// The copy is audible, but podman does not run it.
#[derive(Debug, thiserror::Error)]
#[error("podman has not taken the container over yet; see the log of agent-server")]
struct NotHandedOver;

/// Keeps a copy until its source decides, for as long as its lease.
pub fn keep(copies: &'static Copies, migration: MigrationId, copy: Copy) {
    copies.insert(migration, copy, Instant::now() + deadline::LEASE);
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
    match connection.receive(deadline::LEASE).await? {
        Message::Commit(id) if id == migration => commit(copies, connection, migration).await,
        Message::Abort(id) if id == migration => {
            match settled(copies, migration).await? {
                Decision::Take(copy) => {
                    tracing::info!("{migration}: the source goes back; removing the copy");
                    copies.dispose(migration, *copy).await;
                }
                Decision::Unknown => {}
                Decision::Busy | Decision::Activated => {
                    return give_up(connection, Undecided.into()).await;
                }
            }
            Ok(connection.send(&Message::Aborted(())).await?)
        }
        // A source that has lost its connection after `Finished`.
        Message::LedPast(id) if id == migration => led_past(copies.host(), migration).await,
        other => Err(connection.unexpected(&other, "Commit").into()),
    }
}

/// What is known of a migration, once nobody else is busy with it; busy if that takes too long.
async fn settled(copies: &Copies, migration: MigrationId) -> Result<Decision, Cause> {
    let give_up_at = Instant::now() + BUSY_LIMIT;
    loop {
        match copies.decision(migration)? {
            Decision::Busy if Instant::now() < give_up_at => tokio::time::sleep(BUSY_PAUSE).await,
            decision => return Ok(decision),
        }
    }
}

async fn commit(
    copies: &'static Copies,
    connection: &mut Connection,
    migration: MigrationId,
) -> Result<(), Cause> {
    let mut copy = match settled(copies, migration).await? {
        Decision::Take(copy) => *copy,
        Decision::Busy => return give_up(connection, Undecided.into()).await,
        Decision::Activated => return confirm(copies.host(), connection, migration).await,
        Decision::Unknown => {
            return Ok(connection.send(&Message::Failure(unknown(migration))).await?);
        }
    };
    if !copy.is_whole() {
        tracing::error!("{migration}: podman has died; removing the copy");
        copies.dispose(migration, copy).await;
        return Ok(connection.send(&Message::Failure(unknown(migration))).await?);
    }
    if let Err(cause) = copy.activate() {
        // The copy is still whole and isolated: the source may ask again.
        keep(copies, migration, copy);
        return give_up(connection, cause).await;
    }
    let container = copy.container().to_owned();
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
    await_led_past(copies.host(), connection, migration).await
}

/// Waits for the word that no flow passes the source any more, if any does. If it does not come, the
/// claim keeps the tunnel until the flows end.
async fn await_led_past(
    host: &Host,
    connection: &mut Connection,
    migration: MigrationId,
) -> Result<(), Cause> {
    if !Claim::exists(&host.directories, migration) {
        return Ok(());
    }
    match connection.receive(deadline::STAGE).await? {
        Message::LedPast(id) if id == migration => led_past(host, migration).await,
        other => Err(connection.unexpected(&other, "LedPast").into()),
    }
}

/// Gives up the tunnel to the source, unless something else needs it.
async fn led_past(host: &Host, migration: MigrationId) -> Result<(), Cause> {
    match Claim::remove(&host.directories, migration)? {
        Some(claim) => peers::release(&host.directories, claim.to, None).await,
        None => Ok(()),
    }
}

/// Says again what was said, or should have been, over a connection that was lost.
async fn confirm(
    host: &Host,
    connection: &mut Connection,
    migration: MigrationId,
) -> Result<(), Cause> {
    connection.send(&Message::Committed(())).await?;
    expect!(connection, deadline::ANSWER, Finish)?;
    let give_up_at = Instant::now() + deadline::STAGE;
    loop {
        if let Some(finished) = host.handed_over(migration)? {
            connection.send(&Message::Finished(finished)).await?;
            return await_led_past(host, connection, migration).await;
        }
        if Instant::now() >= give_up_at {
            return give_up(connection, NotHandedOver.into()).await;
        }
        tokio::time::sleep(BUSY_PAUSE).await;
    }
}
