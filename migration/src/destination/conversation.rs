//! One conversation: introduction, then a new migration or the rest of an interrupted one.

use protocol::message::{self, Failure, FailureCode, Introduction, Message};
use protocol::permissions::Permissions;
use protocol::trust::Name;
use protocol::wire::Connection;
use state::cause::Cause;
use state::deadline;

use crate::anchor;
use crate::convert::{Wire, offered_volumes};
use crate::destination::decision::resume;
use crate::destination::end_flows;
use crate::destination::incoming_migration;
use crate::destination::lease::Copies;
use crate::destination::page_relay::relay;
use crate::destination::prepared_stage::{Expected, abandon};
use crate::destination::refusal::give_up;
use crate::destination::server_context::ServerContext;
use crate::offer::Offer;
use crate::offered_service::OfferedService;
use crate::offered_volume::OfferedVolume;

/// Holds one conversation with a paired host to its end.
///
/// # Errors
/// The connection failed, the peer sent what no agent sends or what it may not, or the migration was given up. What
/// was made for it is removed, or left to the guardian.
pub async fn converse(
    copies: &'static Copies,
    mut own_connection: Connection,
) -> Result<(), Cause> {
    let connection = &mut own_connection;
    let host = copies.host();
    let own = Introduction::of_this_agent(&host.name, env!("CARGO_PKG_VERSION"));
    connection.answer_introduction(&own, deadline::CONNECT).await?;
    let mut expected = None;
    let mut first = connection.receive(deadline::ANSWER).await?;
    if let Message::Expect(migration) = first {
        if may_move_here(host, connection)?.is_some() && !host.is_stopping() {
            expected = Expected::begin(host, migration).await;
        }
        first = match connection.receive(deadline::ANSWER).await {
            Ok(message) => message,
            Err(e) => {
                abandon(expected).await;
                return Err(e.into());
            }
        };
        let is_offer =
            matches!(first, Message::Offer(_) | Message::Volumes(_) | Message::Service(_));
        if !is_offer || host.is_stopping() {
            abandon(expected.take()).await;
        }
    }
    let mut along = Along::default();
    first = match along.take(connection, first).await {
        Ok(message) => message,
        Err(cause) => {
            abandon(expected).await;
            return give_up(connection, cause).await;
        }
    };
    match first {
        Message::Offer(_) if host.is_stopping() => {
            let failure = Failure {
                code: FailureCode::Stopping,
                message: format!("agent-server on {} is stopping; try again later", host.name)
                    .into(),
            };
            Ok(connection.send(&Message::Failure(failure)).await?)
        }
        Message::Attach(migration) => host.streams.attach(migration, own_connection).await,
        Message::Offer(offer) => offered(copies, connection, (*offer, along), expected).await,
        Message::Resume(migration) => resume(copies, connection, migration).await,
        Message::ServeMemory(order) => relay(copies, connection, order).await,
        Message::AnchorOffer(offer) => {
            anchor::agree(host, connection, connection.host(), offer).await
        }
        Message::ForwardEnd(id) => anchor::forward_ended(host, connection, &id).await,
        Message::EndFlows(order) => end_flows::end_flows(host, connection, order).await,
        Message::Rehome(order) => anchor::rehome(host, connection, connection.host(), &order).await,
        other => Err(connection.unexpected(&other, "Offer").into()),
    }
}

/// What comes with a container.
#[derive(Debug, Default)]
pub struct Along {
    /// Its volumes.
    pub volumes: Vec<OfferedVolume>,
    /// The systemd unit that is to run it.
    pub service: Option<OfferedService>,
}

impl Along {
    /// Takes what comes before the offer, each at most once. Returns the message after that.
    async fn take(
        &mut self,
        connection: &mut Connection,
        mut next: Message,
    ) -> Result<Message, Cause> {
        let is_more =
            |message: &Message| matches!(message, Message::Volumes(_) | Message::Service(_));
        if !is_more(&next) {
            return Ok(next);
        }
        if let Message::Volumes(offered) = next {
            self.volumes = offered_volumes(offered)?;
            next = connection.receive(deadline::ANSWER).await?;
        }
        if let Message::Service(service) = next {
            self.service = Some(OfferedService::from_wire(service)?);
            next = connection.receive(deadline::ANSWER).await?;
        }
        match next {
            Message::Offer(_) => Ok(next),
            other => Err(connection.unexpected(&other, "Offer").into()),
        }
    }
}

/// Somebody wants to move a container here who is paired with this host in the other role.
#[derive(Debug, thiserror::Error)]
#[error("refused: it may receive containers from this host, but not move any here")]
struct NotASource;

/// Returns the name of the host at the far end and what it may move here, as this host's user has it now; none
/// if nothing.
fn may_move_here(
    host: &ServerContext,
    connection: &Connection,
) -> Result<Option<(Name, Permissions)>, Cause> {
    let peer = host.peers.find(connection.fingerprint())?;
    Ok(peer.and_then(|peer| Some((peer.name, peer.source?))))
}

/// Hears an offer, within what its sender may do here.
async fn offered(
    copies: &'static Copies,
    connection: &mut Connection,
    (offer, along): (message::Offer, Along),
    expected: Option<Expected>,
) -> Result<(), Cause> {
    let host = copies.host();
    let allowed = match may_move_here(host, connection) {
        Ok(allowed) => allowed,
        Err(cause) => {
            abandon(expected).await;
            return Err(cause);
        }
    };
    let Some((name, permissions)) = allowed else {
        abandon(expected).await;
        let failure = Failure {
            code: FailureCode::NotAllowed,
            message: format!(
                "{0} does not let this host move containers there: run agent-server invite on {0}, \
                 and agent-client join TOKEN here",
                host.name
            )
            .into(),
        };
        connection.send(&Message::Failure(failure)).await?;
        return Err(NotASource.into());
    };
    let mut offer = match Offer::from_wire(offer) {
        Ok(offer) => offer,
        Err(refused) => {
            abandon(expected).await;
            return give_up(connection, refused.into()).await;
        }
    };
    offer.description.storage.volumes =
        along.volumes.iter().flat_map(OfferedVolume::described).collect();
    tracing::info!("{name} offers container {} ({})", offer.name, offer.migration);
    let offered = (offer, along);
    incoming_migration::receive(copies, connection, (&name, &permissions), offered, expected).await
}
