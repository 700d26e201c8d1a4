//! This host as the anchor of flows whose container moves from one other host to another.
//!
//! ```text
//! AnchorOffer ─▶ claim, tunnel to the new host ─▶ AnchorReady ─▶ Rehome: marks lead to the new host
//!                                                              └▶ Abort: claim and tunnel go
//! ```
//!
//! A conversation that is lost decides nothing: the container may have become audible at its new
//! host. The claim keeps the tunnel until the order comes by another conversation, or the flows end.

use std::net::IpAddr;
use std::time::Duration;

use netmig::flow::Conntrack;
use netmig::peer_number::PeerNumber;
use netmig::tunnel;
use ownership::anchor::{Leading, leading, may_lead};
use protocol::message::{AnchorOffer, Message, MigrationId, Rehome};
use protocol::wire::Connection;
use state::cause::Cause;
use state::deadline;
use steering::moved_containers::{self, MovedContainer};
use steering::peer_numbers::{self, HostId};
use steering::tunnels::{self, Claim, SteeringLock, TunnelEnd};
use steering::{port_forward, reconciler};
use tokio::task::block_in_place;

use crate::convert::Wire;
use crate::destination::refusal::give_up;
use crate::destination::server_context::ServerContext;

/// More addresses than any container has.
const ADDRESSES: usize = 256;
/// How long packets may still be on their way by the host that was left out.
const LATE: Duration = Duration::from_secs(2);

/// An offer that cannot be meant.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// Too many addresses, or a host that is no third one.
    #[error("the offer to an anchor is not well-formed")]
    Malformed,
    /// The peer has no say about the container.
    #[error("this host leads no flows of that container to the host that asks")]
    NotItsContainer,
    /// The migration is another peer's.
    #[error("that migration is not one of the host that asks")]
    NotItsMigration,
    /// The host that asked needs nothing any more.
    #[error("the flows go by the host that asked")]
    Withdrawn,
    /// There is no tunnel to the new host.
    #[error("there is no tunnel from here to the container's new host")]
    NoTunnel,
}

/// Makes ready for a container to move on, and waits for what becomes of it.
pub async fn agree(
    host: &ServerContext,
    connection: &mut Connection,
    source: HostId,
    offer: AnchorOffer,
) -> Result<(), Cause> {
    if let Err(cause) = prepare(host, connection, source, &offer).await {
        withdraw(host, source, &offer).await?;
        return give_up(connection, cause).await;
    }
    connection.send(&Message::AnchorReady(())).await?;
    match connection.receive(deadline::NEXT_MESSAGE).await? {
        Message::Rehome(order) => rehome(host, connection, source, &order).await,
        Message::Abort(id) if id == offer.migration => {
            withdraw(host, source, &offer).await?;
            Ok(connection.send(&Message::Aborted(())).await?)
        }
        other => Err(connection.unexpected(&other, "Rehome").into()),
    }
}

async fn prepare(
    host: &ServerContext,
    connection: &mut Connection,
    source: HostId,
    offer: &AnchorOffer,
) -> Result<(), Cause> {
    well_formed(host, source, offer.host, &offer.container)?;
    let from = peer_numbers::number(&host.directories.state, source)?;
    let container = moved_containers::known_as(&host.directories, &offer.id, &offer.container)?;
    if !may_lead(leads_to(host, source, from, &offer.id, &container)?) {
        return Err(Error::NotItsContainer.into());
    }
    let to = tunnels::allot(&host.directories, offer.host).await?;
    let run = &host.directories.run;
    let local = {
        let lock = SteeringLock::take(run).await?;
        if claim_of_others(host, from, offer.migration)? {
            return Err(Error::NotItsMigration.into());
        }
        let claim = Claim { with: vec![from], to, container };
        claim.write(&host.directories, offer.migration, &lock)?;
        tunnel::prepare(to).await?
    };
    reconciler::start(&host.directories, host.background.reconciler)?;
    connection.send(&Message::TunnelAnswer(TunnelEnd::from(local).into_wire())).await?;
    let theirs = match connection.receive(deadline::NEXT_MESSAGE).await? {
        Message::TunnelOffer(theirs) => TunnelEnd::from_wire(theirs)?,
        Message::Abort(id) if id == offer.migration => return Err(Error::Withdrawn.into()),
        other => return Err(connection.unexpected(&other, "TunnelOffer").into()),
    };
    if theirs.is_direct() {
        // Nobody here was asked whether these flows may go without encryption.
        return Err(Error::Malformed.into());
    }
    {
        let _lock = SteeringLock::take(run).await?;
        let tunnel = (to, offer.migration);
        tunnels::complete_passed_on(&host.directories, tunnel, offer.address, &theirs).await?;
    }
    tunnel::establish(to).await?;
    // The destination does the same since it has its end.
    Ok(tunnel::confirm(to).await?)
}

/// Gives the claim back, and the tunnel if nothing else needs it.
async fn withdraw(host: &ServerContext, source: HostId, offer: &AnchorOffer) -> Result<(), Cause> {
    let Some(from) = peer_numbers::find_number(&host.directories.state, source)? else {
        return Ok(());
    };
    if claim_of_others(host, from, offer.migration)? {
        return Ok(());
    }
    match Claim::remove(&host.directories, offer.migration)? {
        Some(claim) => tunnels::release(&host.directories, claim.to, None).await,
        None => Ok(()),
    }
}

/// Leads the container's flows to its new host.
pub async fn rehome(
    host: &ServerContext,
    connection: &mut Connection,
    source: HostId,
    order: &Rehome,
) -> Result<(), Cause> {
    let led = match lead(host, source, order).await {
        Ok(led) => led,
        Err(cause) => return give_up(connection, cause).await,
    };
    tracing::info!("{}: {led} flows lead to another host now", order.migration);
    let from = peer_numbers::number(&host.directories.state, source)?;
    if !claim_of_others(host, from, order.migration)? {
        Claim::remove(&host.directories, order.migration)?;
    }
    connection.send(&Message::Rehomed(led)).await?;
    tokio::time::sleep(LATE).await;
    tunnels::release(&host.directories, from, None).await
}

async fn lead(host: &ServerContext, source: HostId, order: &Rehome) -> Result<u64, Cause> {
    well_formed(host, source, order.host, &order.container)?;
    let state = &host.directories.state;
    let from = peer_numbers::number(state, source)?;
    let to = peer_numbers::find_number(state, order.host)?.ok_or(Error::NoTunnel)?;
    let container = moved_containers::known_as(&host.directories, &order.id, &order.container)?;
    let to_new = leads_to(host, order.host, to, &order.id, &container)?;
    match leading(leads_to(host, source, from, &order.id, &container)?, to_new) {
        Leading::Lead => {}
        Leading::Confirm => return Ok(0),
        // Its flows have ended; nothing is led, and nothing is told.
        Leading::Refuse => return Err(Error::NotItsContainer.into()),
    }
    let connected = tunnel::status(to).await?.is_some_and(|status| status.address.is_some());
    if !connected {
        return Err(Error::NoTunnel.into());
    }
    // Only flows that lead to whoever gives this order.
    let led = block_in_place(|| Conntrack::open()?.redirect(&container, from, Some(to)))?;
    // Gateways of this host are in every tunnel the same; their loopback addresses are not allowed in
    // each.
    let concerned = |note: &MovedContainer| note.addresses.iter().any(|ip| container.contains(ip));
    let notes = moved_containers::all(&host.directories)?;
    if notes.iter().any(|note| !note.exchange.gateways.is_empty() && concerned(note)) {
        tunnel::carry_loopback(to)?;
    }
    let ways = (source, order.host);
    for name in port_forward::lead_on(&host.directories, &container, ways).await? {
        tracing::info!("{}: new connections for {name} follow", order.migration);
    }
    Ok(led as u64)
}

/// Returns whether this host leads flows, or new connections, of a container to a peer.
fn leads_to(
    host: &ServerContext,
    peer: HostId,
    number: PeerNumber,
    id: &str,
    container: &[IpAddr],
) -> Result<bool, Cause> {
    let forwards = port_forward::all(&host.directories)?;
    let mut forwards = forwards.iter().filter(|note| note.id == id && note.host == peer);
    if forwards.any(|note| note.away().is_some_and(|away| away.in_force)) {
        return Ok(true);
    }
    let flows = block_in_place(|| Conntrack::open()?.dump(container))?;
    Ok(flows.iter().any(|flow| flow.leads_to(container) == Some(number)))
}

/// Returns whether a migration has a claim here that another peer has made.
fn claim_of_others(
    host: &ServerContext,
    from: PeerNumber,
    migration: MigrationId,
) -> Result<bool, Cause> {
    let claim = Claim::find(&host.directories, migration)?;
    Ok(claim.is_some_and(|claim| !claim.with.contains(&from)))
}

/// Notes that a host that led new connections here for a container does so no more.
pub async fn forward_ended(
    host: &ServerContext,
    connection: &mut Connection,
    id: &str,
) -> Result<(), Cause> {
    let from = connection.host();
    let here = port_forward::here(id);
    let removed =
        port_forward::remove(&host.directories, |note| note.host == from && here(note)).await;
    if let Err(cause) = removed {
        return give_up(connection, cause).await;
    }
    connection.send(&Message::ForwardEnded(())).await?;
    match peer_numbers::find_number(&host.directories.state, from)? {
        Some(peer) => tunnels::release(&host.directories, peer, None).await,
        None => Ok(()),
    }
}

fn well_formed(
    host: &ServerContext,
    source: HostId,
    destination: HostId,
    container: &[IpAddr],
) -> Result<(), Error> {
    if container.len() > ADDRESSES || destination == host.id || destination == source {
        return Err(Error::Malformed);
    }
    Ok(())
}
