//! One migration, seen from the destination. Each file is one stretch of it.
//!
//! ```text
//! Offer ─▶ check ─▶ Arrival (tunnel, image, stage, receive) ─▶ Copy ─▶ the container
//!          │        │                                           │
//!          refused  undone                                      removed by Abort or lease
//! ```

mod anchors;
mod check;
mod copy;
mod expected;
mod image;
mod incoming;
mod progress;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use agent_core::cause::{Cause, chain};
use agent_core::message::{Failure, FailureCode, Message, MigrationId, Offer, Prepared};
use agent_core::peers::{self, Claim};
use agent_core::permissions::Permissions;
use agent_core::wire::{self, Connection};
use agent_core::{deadline, expect};

use checkpoint::cgroup::Cgroup;
use netmig::netns::Namespace;
use netmig::sockets::{UdpQueues, room};

use crate::lease::Decision;
use crate::session::{Host, unknown};

pub use copy::Copy;
pub use expected::{Expected, abandon, sweep};
use progress::Arrival;
pub use progress::{STAGE, tidy};

/// Between two looks at a copy that another conversation is deciding about.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// How long is waited for that conversation: less than a source waits for an answer.
const BUSY_LIMIT: Duration = Duration::from_secs(15);

/// How long no datagrams may have piled up in a container's sockets before these get their own buffers
/// back: what was held has come through the tunnel then, and the processors are free again.
const CALM: Duration = Duration::from_secs(2);
/// How long that may take. A container that is always behind gets its own buffers back then.
const CALM_LIMIT: Duration = Duration::from_secs(20);
/// Between two looks at what it has not read yet.
const CALM_LOOK: Duration = Duration::from_millis(20);
/// Bytes that do not count as a pile, as the kernel counts them: half of a receive buffer of default
/// size.
const CALM_REST: u64 = 100 << 10;

/// A copy's fate hangs on something else than its source.
#[derive(Debug, thiserror::Error)]
#[error("the copy cannot be decided about now; see the log of agent-server")]
struct Undecided;

/// The copy is audible, but podman does not run it.
#[derive(Debug, thiserror::Error)]
#[error("podman has not taken the container over yet; see the log of agent-server")]
struct NotHandedOver;

/// Takes a migration from its offer to its end.
pub async fn receive(
    host: &'static Host,
    connection: &mut Connection,
    permissions: &Permissions,
    offer: Offer,
    expected: Option<Expected>,
) -> Result<(), Cause> {
    let source = connection.host();
    let migration = offer.migration;
    let looked = check::look(host, permissions, (source, connection.peer().ip()), &offer).await;
    let (verdict, chosen) = match looked {
        Ok(looked) => looked,
        Err(cause) => {
            abandon(expected).await;
            return give_up(connection, cause).await;
        }
    };
    let refused = !verdict.blockers.is_empty();
    // An image takes its time, and podman would take up its place meanwhile.
    let is_wanted = !refused && !verdict.image_missing;
    for blocker in &verdict.blockers {
        tracing::info!("{migration}: refused: {} ({})", blocker.message, blocker.code);
    }
    let agreed = async {
        connection.send(&Message::Verdict(verdict)).await?;
        if refused {
            return Ok(None);
        }
        // Until the source goes on, nothing is to be undone but what was expected of it.
        expect!(connection, deadline::NEXT_MESSAGE, TunnelOffer).map(Some)
    };
    let agreed = agreed.await;
    let is_expected =
        |expected: &Expected| is_wanted && expected.is(migration) && matches!(agreed, Ok(Some(_)));
    let expected = match expected {
        Some(other) if !is_expected(&other) => {
            other.abandon().await;
            None
        }
        expected => expected,
    };
    let Some(tunnel) = agreed? else { return Ok(()) };
    let mut arrival = match Arrival::begin(host, source, permissions, offer, chosen) {
        Ok(arrival) => arrival,
        Err(cause) => {
            abandon(expected).await;
            return give_up(connection, cause).await;
        }
    };
    arrival.use_early(expected);
    let (copy, prepared) = match arrival.proceed(connection, tunnel).await {
        Ok(prepared) => (arrival.into_copy(), prepared),
        Err(cause) => {
            arrival.undo().await;
            return give_up(connection, cause).await;
        }
    };
    let Some(copy) = copy else {
        return give_up(connection, "the copy was lost before it was complete".into()).await;
    };
    keep(host, migration, copy);
    connection.send(&Message::Prepared(prepared)).await?;
    decide(host, connection, migration).await
}

/// All addresses of the offered container.
fn addresses(offer: &Offer) -> Vec<IpAddr> {
    offer.networks.iter().flat_map(|network| network.addresses.clone()).collect()
}

/// Addresses and those that replace them: the first one of a family is replaced by the first one of it.
fn pairs(old: &[IpAddr], new: &[IpAddr]) -> impl Iterator<Item = (IpAddr, IpAddr)> {
    let of = |all: &[IpAddr], four| -> Vec<IpAddr> {
        all.iter().copied().filter(|ip| ip.is_ipv4() == four).collect()
    };
    [true, false].into_iter().flat_map(move |four| of(old, four).into_iter().zip(of(new, four)))
}

/// Keeps a copy until its source decides, for as long as its lease.
fn keep(host: &'static Host, migration: MigrationId, copy: Copy) {
    host.prepared.insert(migration, copy, Instant::now() + deadline::LEASE);
    tokio::spawn(async move {
        tokio::time::sleep(deadline::LEASE + Duration::from_millis(10)).await;
        host.prepared.expire(migration).await;
    });
}

/// Waits for the source's decision about a prepared copy and carries it out. A connection that is
/// lost here decides nothing: the copy keeps its lease.
pub async fn decide(
    host: &'static Host,
    connection: &mut Connection,
    migration: MigrationId,
) -> Result<(), Cause> {
    match connection.receive(deadline::LEASE).await? {
        Message::Commit(id) if id == migration => commit(host, connection, migration).await,
        Message::Abort(id) if id == migration => {
            match settled(host, migration).await? {
                Decision::Take(copy) => {
                    tracing::info!("{migration}: the source goes back; removing the copy");
                    host.prepared.dispose(migration, *copy).await;
                }
                Decision::Unknown => {}
                Decision::Busy | Decision::Activated => {
                    return give_up(connection, Undecided.into()).await;
                }
            }
            Ok(connection.send(&Message::Aborted(())).await?)
        }
        // A source that has lost its connection after `Finished`.
        Message::LedPast(id) if id == migration => led_past(host, migration).await,
        other => Err(connection.unexpected(&other, "Commit").into()),
    }
}

/// What is known of a migration, once nobody else is busy with it; busy if that takes too long.
async fn settled(host: &Host, migration: MigrationId) -> Result<Decision, Cause> {
    let give_up_at = Instant::now() + BUSY_LIMIT;
    loop {
        match host.decision(migration)? {
            Decision::Busy if Instant::now() < give_up_at => tokio::time::sleep(BUSY_PAUSE).await,
            decision => return Ok(decision),
        }
    }
}

async fn commit(
    host: &'static Host,
    connection: &mut Connection,
    migration: MigrationId,
) -> Result<(), Cause> {
    let mut copy = match settled(host, migration).await? {
        Decision::Take(copy) => *copy,
        Decision::Busy => return give_up(connection, Undecided.into()).await,
        Decision::Activated => return confirm(host, connection, migration).await,
        Decision::Unknown => {
            return Ok(connection.send(&Message::Failure(unknown(migration))).await?);
        }
    };
    if !copy.is_whole() {
        tracing::error!("{migration}: podman has died; removing the copy");
        host.prepared.dispose(migration, copy).await;
        return Ok(connection.send(&Message::Failure(unknown(migration))).await?);
    }
    if let Err(cause) = copy.activate() {
        // The copy is still whole and isolated: the source may ask again.
        keep(host, migration, copy);
        return give_up(connection, cause).await;
    }
    let container = copy.container().to_owned();
    host.prepared.activated(migration);
    // From here on the container is finished whether or not its source is still there to hear of it.
    let told = connection.send(&Message::Committed(())).await;
    let asked = match told {
        // Handing over costs processor time that the source's held packets need first.
        Ok(()) => expect!(connection, deadline::ANSWER, Finish),
        Err(e) => Err(e),
    };
    let finished = copy.finish().await;
    // In the archive now, or left to the journal's guardian.
    host.prepared.ended(migration);
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
    await_led_past(host, connection, migration).await
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

/// Gives the container's UDP sockets their own buffers back, once it keeps up with what comes.
async fn settle_buffers(pid: i32, container: String) {
    let settle = async {
        let mut queues = UdpQueues::open(&Namespace::of_pid(pid)?)?;
        let began = Instant::now();
        let mut calm = began;
        while calm.elapsed() < CALM && began.elapsed() < CALM_LIMIT {
            tokio::time::sleep(CALM_LOOK).await;
            if queues.pending()? > CALM_REST {
                calm = Instant::now();
            }
        }
        room::take_room_back(&Cgroup::of_pid(pid, &container)?.pids()?)?;
        Ok::<(), Cause>(())
    };
    // The container may have ended, or have moved on.
    if let Err(e) = settle.await {
        tracing::debug!("{container}: {}", chain(e.as_ref()));
    }
}

/// Says again what was said, or should have been, over a connection that was lost.
async fn confirm(
    host: &'static Host,
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

/// Tells the source why, and the log as well.
pub async fn give_up(connection: &mut Connection, cause: Cause) -> Result<(), Cause> {
    let failure = Failure { code: code(&cause), message: chain(cause.as_ref()) };
    // The source may be the reason; then there is nobody to tell.
    let _ = connection.send(&Message::Failure(failure)).await;
    Err(cause)
}

/// The class of a failure.
fn code(cause: &Cause) -> FailureCode {
    use checkpoint::stage;
    if matches!(cause.downcast_ref(), Some(stage::Error::Conflict { .. })) {
        FailureCode::Conflict
    } else if let Some(error) = cause.downcast_ref::<wire::Error>() {
        match error {
            wire::Error::Deadline { .. } => FailureCode::Deadline,
            _ => FailureCode::Protocol,
        }
    } else {
        FailureCode::Step
    }
}

/// The times of a restore in the protocol's unit.
fn prepared(entries: Duration, restore: Duration) -> Prepared {
    let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    Prepared { entries_us: micros(entries), restore_us: micros(restore) }
}
