//! A migration from its offer to a copy that waits for its source's decision.

use protocol::expect;
use protocol::message::{LEAN_MEMORY, Message};
use protocol::permissions::Permissions;
use protocol::trust::Name;
use protocol::wire::Connection;
use state::cause::Cause;
use state::deadline;

use crate::convert::Wire;
use crate::destination::admission;
use crate::destination::arrival::Arrival;
use crate::destination::conversation::Along;
use crate::destination::copy::Copy;
use crate::destination::decision::{decide, keep};
use crate::destination::lease::Copies;
use crate::destination::prepared_stage::{Expected, abandon};
use crate::destination::refusal::give_up;
use crate::offer::Offer;

/// Bytes of files whose first pass takes its time as well.
const LARGE: u64 = 64 << 20;

/// Messages by which a source may learn how fast the link is.
const MOST_MEASURED: usize = 16;

/// Takes a migration from its offer to its end.
pub async fn receive(
    copies: &'static Copies,
    connection: &mut Connection,
    (name, permissions): (&Name, &Permissions),
    (offer, along): (Offer, Along),
    expected: Option<Expected>,
) -> Result<(), Cause> {
    let host = copies.host();
    let source = connection.host();
    let migration = offer.migration;
    let (from, is_lean) = ((source, connection.peer().ip()), connection.has(LEAN_MEMORY));
    let offered = (&offer, along.volumes.as_slice(), along.service.as_ref());
    let looked = admission::look(host, permissions, from, offered, is_lean).await;
    let looked = match looked {
        Ok(looked) => looked,
        Err(cause) => {
            abandon(expected).await;
            return give_up(connection, cause).await;
        }
    };
    let verdict = &looked.verdict;
    let refused = !verdict.blockers.is_empty();
    // An image takes its time, and the stage would take up its place meanwhile.
    let is_wanted = !refused && !verdict.image_missing && offer.disk <= LARGE;
    for blocker in &verdict.blockers {
        tracing::info!("{migration}: refused: {} ({})", blocker.message, blocker.code);
    }
    let _attachable = host.streams.accept(migration, connection);
    let agreed = async {
        connection.send(&Message::Verdict(looked.verdict.clone().into_wire())).await?;
        if refused {
            return Ok(None);
        }
        // Until the source goes on, nothing is to be undone but what was expected of it.
        for _ in 0..MOST_MEASURED {
            match connection.receive(deadline::NEXT_MESSAGE).await? {
                Message::Measure(_) => connection.send(&Message::Measured(())).await?,
                Message::TunnelOffer(tunnel) => return Ok(Some(tunnel)),
                other => return Err(connection.unexpected(&other, "TunnelOffer")),
            }
        }
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
    let named = (source, name.to_string());
    let mut arrival = match Arrival::begin(host, named, permissions, (offer, along), looked).await {
        Ok(arrival) => arrival,
        Err(cause) => {
            abandon(expected).await;
            return give_up(connection, cause).await;
        }
    };
    arrival.use_prepared(expected);
    let (copy, prepared) = match arrival.proceed(connection, tunnel).await {
        Ok(prepared) => (Copy::of(arrival).await, prepared),
        Err(cause) => {
            arrival.undo().await;
            return give_up(connection, cause).await;
        }
    };
    let Some(copy) = copy else {
        return give_up(connection, "the copy was lost before it was complete".into()).await;
    };
    keep(copies, migration, source, copy);
    connection.send(&Message::Prepared(prepared)).await?;
    decide(copies, connection, migration).await
}
