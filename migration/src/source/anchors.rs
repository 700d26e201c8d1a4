//! Flows whose anchor is a third host: it leads them to the destination, without this host in
//! between. This host is the only one that knows both, so it carries what they have to tell each
//! other.
//!
//! An anchor that cannot be asked goes on leading its flows here, and this host sends them on.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netmig::flow::{Conntrack, Flow};
use netmig::peer_number::PeerNumber;
use netmig::tunnel;
use protocol::expect;
use protocol::message::{AnchorOffer, AnchorTunnel, Message, MigrationId, Rehome};
use protocol::wire::Connection;
use state::cause::{Cause, chain};
use state::deadline;
use state::id::HostId;
use state::peer_address::DEFAULT_PORT;
use state::peer_address::Destination;
use steering::moved_containers::{self, MovedContainer};

use super::plan::Plan;
use crate::connect;
use crate::context::Context;

/// An anchor cannot be asked.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The address of the host is not known any more.
    #[error("the tunnel to it is gone")]
    NoTunnel,
}

/// The anchors that will lead their flows to the destination.
#[derive(Debug, Default)]
pub struct Anchors {
    ready: Vec<Anchor>,
    led: Vec<PeerNumber>,
}

#[derive(Debug)]
struct Anchor {
    host: HostId,
    number: PeerNumber,
    connection: Connection,
    migration: MigrationId,
}

impl Anchors {
    /// Asks every third host among the anchors. Those that cannot do it are named in the warnings.
    pub async fn agree(context: &Context, plan: &mut Plan) -> Self {
        let mut anchors = Self::default();
        for (number, host) in plan.anchors.clone() {
            if host == plan.link.host {
                continue;
            }
            match Anchor::agree(context, plan, number, host).await {
                Ok(anchor) => anchors.ready.push(anchor),
                Err(e) => {
                    let name = context.peer_name(number);
                    plan.warnings.push(detour(&name, e.as_ref()));
                }
            }
        }
        anchors
    }

    /// Returns the anchors that agreed, by their numbers.
    #[must_use]
    pub fn hosts(&self) -> BTreeMap<PeerNumber, HostId> {
        self.ready.iter().map(|anchor| (anchor.number, anchor.host)).collect()
    }

    /// Has every anchor that agreed lead its flows to the destination, which is the container's host
    /// now; tells which did not.
    pub async fn rehome(&mut self, context: &Context, order: Rehome) -> Vec<String> {
        let mut left = Vec::new();
        for mut anchor in self.ready.drain(..) {
            match tell(&mut anchor.connection, order.clone()).await {
                Ok(()) => self.led.push(anchor.number),
                Err(e) => left.push(detour(&context.peer_name(anchor.number), e.as_ref())),
            }
        }
        left
    }

    /// Returns the anchors whose flows do not pass this host any more.
    pub fn led(&self) -> impl Iterator<Item = PeerNumber> {
        self.led.iter().copied()
    }

    /// Withdraws the orders: the container stays, so the anchors need not lead anything elsewhere.
    pub async fn withdraw(&mut self) {
        for mut anchor in self.ready.drain(..) {
            let Anchor { connection, migration, .. } = &mut anchor;
            // One that does not hear it drops what it has when the flows have ended.
            if connection.send(&Message::Abort(*migration)).await.is_ok() {
                let _ = connection.receive_aborted(deadline::ANSWER).await;
            }
        }
    }
}

impl Anchor {
    async fn agree(
        context: &Context,
        plan: &mut Plan,
        number: PeerNumber,
        host: HostId,
    ) -> Result<Self, Cause> {
        let migration = plan.offer.migration;
        let mut connection = dial(context, number, host).await?;
        let destination = &mut plan.link.connection;
        let offer = AnchorOffer {
            migration,
            host: plan.link.host,
            address: destination.peer().ip(),
            id: plan.container.id.clone(),
            container: plan.addresses.clone(),
        };
        connection.send(&Message::AnchorOffer(offer)).await?;
        let end = expect!(connection, deadline::ANSWER, TunnelAnswer)?;
        let theirs = AnchorTunnel { host, address: connection.peer().ip(), end };
        destination.send(&Message::Anchor(theirs)).await?;
        let end = match expect!(destination, deadline::ANSWER, TunnelAnswer) {
            Ok(end) => end,
            Err(e) => {
                // The anchor need not wait for what does not come.
                if connection.send(&Message::Abort(migration)).await.is_ok() {
                    let _ = connection.receive(deadline::ANSWER).await;
                }
                return Err(e.into());
            }
        };
        connection.send(&Message::TunnelOffer(end)).await?;
        expect!(connection, deadline::ANSWER, AnchorReady)?;
        Ok(Self { host, number, connection, migration })
    }
}

/// Dials the agent-server of a peer at the address that its tunnel has.
async fn dial(context: &Context, number: PeerNumber, host: HostId) -> Result<Connection, Cause> {
    let status = tunnel::status(number).await?.ok_or(Error::NoTunnel)?;
    let address = status.address.ok_or(Error::NoTunnel)?;
    let destination = Destination { host: address.to_string(), port: DEFAULT_PORT };
    Ok(connect::dial_host(context, &destination, host).await?)
}

async fn tell(connection: &mut Connection, order: Rehome) -> Result<(), Cause> {
    connection.send(&Message::Rehome(order)).await?;
    expect!(connection, deadline::ANSWER, Rehomed)?;
    Ok(())
}

/// Returns the same as [`Anchors::rehome`] and [`forget`] for a migration whose own process is gone; whether there
/// were third hosts, and all have been told.
pub async fn rehome_anew(
    context: &Context,
    rehome: &Rehome,
    destination: PeerNumber,
) -> Result<bool, Cause> {
    let container = &rehome.container[..];
    let mut flows = Conntrack::open()?.dump(container)?;
    let others = moved_containers::others(&context.directories, &rehome.id)?;
    flows.retain(|flow| moved_containers::apart(flow, &others).is_none());
    let mut numbers: Vec<_> = flows.iter().filter_map(|flow| flow.anchor(container)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut past = vec![destination];
    let mut all_led = true;
    for number in numbers.into_iter().filter(|number| *number != destination) {
        let state = &context.directories.state;
        let Some(host) = steering::peer_numbers::peer_with_number(state, number)? else { continue };
        let led = async {
            let mut connection = dial(context, number, host).await?;
            tell(&mut connection, rehome.clone()).await
        };
        match led.await {
            Ok(()) => past.push(number),
            Err(e) => {
                all_led = false;
                tracing::warn!("{}", detour(&context.peer_name(number), e.as_ref()));
            }
        }
    }
    forget(container, &past, &others)?;
    Ok(all_led && past.len() > 1)
}

/// Deletes the container's entries here whose anchor is one of these peers, and not this host for `others`.
pub fn forget(
    container: &[IpAddr],
    anchors: &[PeerNumber],
    others: &[MovedContainer],
) -> Result<(), Cause> {
    let mut conntrack = Conntrack::open()?;
    let past: Vec<Flow> = conntrack
        .dump(container)?
        .into_iter()
        .filter(|flow| flow.anchor(container).is_some_and(|anchor| anchors.contains(&anchor)))
        .filter(|flow| moved_containers::apart(flow, others).is_none())
        .collect();
    if !past.is_empty() {
        conntrack.delete(&past)?;
    }
    Ok(())
}

fn detour(anchor: &str, reason: &(dyn std::error::Error + 'static)) -> String {
    format!(
        "flows that came to the container by way of {anchor} go on passing this host, which has \
         to stay up for them: {}",
        chain(reason)
    )
}
