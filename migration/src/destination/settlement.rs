//! From the moment at which the engine runs the container until its source needs no answer any more.

use std::net::IpAddr;
use std::time::Duration;

use netmig::flow::FlowEnds;
use netmig::routing;
use ownership::destination::{Order, Reply};
use protocol::message::{Message, MigrationId};
use protocol::wire::{self, Connection, FLOWS_PER_FRAME};
use state::cause::{Cause, chain};
use state::journal::{self, Record};
use state::{deadline, id::HostId};
use steering::tunnels::{self, Claim, SteeringLock};
use tokio::task::block_in_place;

use crate::convert::Wire;
use crate::destination::counted_flows::CountedFlows;
use crate::destination::lease::{Copies, Decision};
use crate::destination::server_context::ServerContext;
use crate::destination::silent_connections::silent;

/// How often a source may ask which connections are silent and what has passed of flows: it does so for some
/// seconds, ten times each at most.
const MOST_ASKED: usize = 1000;
/// How long packets are counted at most. A source asks in the first seconds, or dials again in that time.
const COUNTED_FOR: Duration = Duration::from_secs(60);
/// Most addresses of a container.
const MOST_ADDRESSES: usize = 16;

/// The source asks for packets of somebody else, or of too much at once.
#[derive(Debug, thiserror::Error)]
#[error("the source asks for packets that are not those of its container's flows")]
struct NotOfContainer;

/// Waits for the word that no flow passes the source any more, if any does, and that the source needs no
/// answer any more. If they do not come, the claim keeps the tunnel until the flows end, and the migration is
/// remembered.
pub(super) async fn wait(
    copies: &'static Copies,
    connection: &mut Connection,
    migration: MigrationId,
) -> Result<(), Cause> {
    let mut asked = 0;
    let mut has_begun = false;
    loop {
        let message = match connection.receive(deadline::STAGE).await {
            Ok(message) => message,
            // The source may dial again, and ask on.
            Err(wire::Error::Closed { .. }) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        asked += 1;
        match message {
            Message::LedPast(id) if id == migration => {
                release(copies.host(), migration).await?;
            }
            Message::AskSilent(id) if id == migration && asked < MOST_ASKED => {
                let silent = block_in_place(|| silent(copies.host(), migration));
                connection.send(&Message::Silent(silent)).await?;
            }
            Message::CountPackets(addresses) if !std::mem::replace(&mut has_begun, true) => {
                count_anew(copies, connection.host(), migration, &addresses).await?;
            }
            Message::AskPassage(ask) if ask.migration == migration && asked < MOST_ASKED => {
                if ask.flows.len() > FLOWS_PER_FRAME {
                    return Err(NotOfContainer.into());
                }
                let flows: Vec<FlowEnds> = Vec::from_wire(ask.flows)?;
                let passed = block_in_place(|| {
                    copies.counted().get_mut(&migration).and_then(|counted| counted.read(&flows))
                });
                connection.send(&Message::Passage(passed.into_wire())).await?;
            }
            Message::AskCounts(id) if id == migration && asked < MOST_ASKED => {
                let counts = block_in_place(|| {
                    copies.counted().get_mut(&migration).and_then(CountedFlows::read_named)
                });
                connection.send(&Message::FlowCounts(counts.into_wire())).await?;
            }
            Message::Settled(id) if id == migration => {
                let from = connection.host();
                if let Decision::Answer(Reply::Forget) = copies.decide(id, from, Order::Done)? {
                    settle(copies, id)?;
                }
                return Ok(());
            }
            other => return Err(connection.unexpected(&other, "Settled").into()),
        }
    }
}

/// Forgets a migration about which nobody will ask any more.
pub(super) fn settle(copies: &Copies, migration: MigrationId) -> Result<(), Cause> {
    let counted = copies.counted().remove(&migration);
    block_in_place(|| drop(counted));
    Ok(journal::settle(&copies.host().directories.state, migration)?)
}

/// Gives up the tunnel to the source, unless something else needs it.
pub(super) async fn release(host: &ServerContext, migration: MigrationId) -> Result<(), Cause> {
    match Claim::remove(&host.directories, migration)? {
        Some(claim) => tunnels::release(&host.directories, claim.to, None).await,
        None => Ok(()),
    }
}

/// Ends counting after a while, whether or not the source has said that it needs no answer any more.
pub(super) fn forget_counted(copies: &'static Copies, migration: MigrationId) {
    tokio::spawn(async move {
        tokio::time::sleep(COUNTED_FOR).await;
        let counted = copies.counted().remove(&migration);
        block_in_place(|| drop(counted));
    });
}

/// Begins to count packets of a container that runs here, since what was counted before is lost, or the agent has not
/// counted before.
async fn count_anew(
    copies: &'static Copies,
    source: HostId,
    migration: MigrationId,
    addresses: &[IpAddr],
) -> Result<(), Cause> {
    let host = copies.host();
    let records = journal::archived(&host.directories.state, migration)?.unwrap_or_default();
    let Some(Record::Arrival { container, peer, .. }) = records.first() else {
        return Err(NotOfContainer.into());
    };
    let here = routing::host_addresses().await?;
    let is_foreign = *peer != source
        || addresses.is_empty()
        || addresses.len() > MOST_ADDRESSES
        || addresses.iter().any(|address| here.contains(address))
        || !host.engine.holders(addresses, container).await.is_empty();
    if is_foreign {
        return Err(NotOfContainer.into());
    }
    let earlier = copies.counted().remove(&migration);
    let _lock = SteeringLock::take(&host.directories.run).await?;
    let begun = block_in_place(|| {
        drop(earlier);
        CountedFlows::begin(&host.directories, migration, addresses)
    });
    match begun {
        Ok(counted) => {
            copies.counted().insert(migration, counted);
            forget_counted(copies, migration);
        }
        Err(e) => tracing::debug!("{migration}: {}", chain(e.as_ref())),
    }
    Ok(())
}
