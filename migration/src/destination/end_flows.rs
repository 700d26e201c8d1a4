//! Another host ends flows that it and this one carry together.

use std::collections::HashSet;

use netmig::flow::{Conntrack, Flow};
use protocol::message::{EndFlows, Message};
use protocol::wire::Connection;
use state::cause::Cause;
use steering::flow_termination::{self, FlowEnds};
use steering::moved_containers;
use steering::peer_numbers;

use crate::convert::Wire;
use crate::destination::refusal::give_up;
use crate::destination::server_context::ServerContext;

/// More than a user ends at a time; a message may not name more.
const LIMIT: usize = 100_000;

/// An order that cannot be meant.
#[derive(Debug, thiserror::Error)]
#[error("the order to end flows names more than {LIMIT}")]
struct TooMany;

/// Ends those of the flows that lead to the sender, or come by it.
pub async fn end_flows(
    host: &ServerContext,
    connection: &mut Connection,
    order: EndFlows,
) -> Result<(), Cause> {
    match end(host, connection, order).await {
        Ok(count) => Ok(connection.send(&Message::FlowsEnded(count)).await?),
        Err(cause) => give_up(connection, cause).await,
    }
}

async fn end(host: &ServerContext, connection: &Connection, order: EndFlows) -> Result<u64, Cause> {
    let EndFlows { id, flows: ordered } = order;
    if ordered.len() > LIMIT {
        return Err(TooMany.into());
    }
    let ordered: Vec<FlowEnds> = Vec::from_wire(ordered)?;
    let Some(from) = peer_numbers::find_number(&host.directories.state, connection.host())? else {
        return Ok(0);
    };
    let Some(container) = moved_containers::find(&host.directories, &id)? else {
        return Ok(0);
    };
    let addresses = &container.addresses;
    let mut flows = Conntrack::open()?.dump(addresses)?;
    // The container may have another address there.
    let key = |one: &FlowEnds| (one.protocol, one.own.port(), one.far);
    let ordered: HashSet<_> = ordered.iter().map(key).collect();
    let named = |flow: &Flow| {
        flow_termination::ends(flow, &container).is_some_and(|ends| ordered.contains(&key(&ends)))
    };
    flows.retain(|flow| {
        let shared = [flow.anchor(addresses), flow.leads_to(addresses)].contains(&Some(from));
        shared && named(flow)
    });
    if flows.is_empty() {
        return Ok(0);
    }
    tracing::info!("{id} of {}: {} flows are ended", connection.host(), flows.len());
    flow_termination::end(&host.directories, &*host.engine, &container, &flows).await?;
    Ok(flows.len() as u64)
}
