//! Ends flows that this host carries.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use netmig::flow::{Conntrack, Flow, Protocol};
use netmig::peer_number::PeerNumber;
use netmig::tunnel;
use protocol::expect;
use protocol::message::{EndFlows, Message};
use state::cause::{Cause, chain};
use state::container_lock::ContainerLock;
use state::deadline;
use state::peer_address::{DEFAULT_PORT, Destination};
use steering::carried_flows::{Ends, Seen, ends, seen};
use steering::flow_termination::{self, FlowEnds};
use steering::moved_containers::{self, MovedContainer};
use steering::peer_numbers;

use super::Done;
use crate::connect::dial_host;
use crate::context::Context;
use crate::convert::Wire;

/// An address, and perhaps a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FarEnd {
    address: IpAddr,
    port: Option<u16>,
}

/// A text that is none.
#[derive(Debug, thiserror::Error)]
#[error(
    "not an address, nor one with a port, such as 192.0.2.3, 192.0.2.3:443 or [2001:db8::3]:443"
)]
pub struct InvalidFarEnd;

impl FromStr for FarEnd {
    type Err = InvalidFarEnd;

    fn from_str(text: &str) -> Result<Self, InvalidFarEnd> {
        if let Ok(address) = text.parse() {
            return Ok(Self { address, port: None });
        }
        let end: SocketAddr = text.parse().map_err(|_| InvalidFarEnd)?;
        Ok(Self { address: end.ip(), port: Some(end.port()) })
    }
}

impl FarEnd {
    fn is(self, end: SocketAddr) -> bool {
        self.address == end.ip() && self.port.is_none_or(|port| port == end.port())
    }
}

/// Which flows are to be ended: those to which everything here applies that is given.
#[derive(Clone, Debug, Default)]
pub struct FlowChoice {
    /// Name or ID of the container.
    pub container: Option<String>,
    /// The far end, as the container sees it.
    pub far_end: Option<FarEnd>,
    /// The transport protocol.
    pub protocol: Option<Protocol>,
    /// The sender of the original direction.
    pub from: Option<SocketAddr>,
    /// The receiver of the original direction.
    pub to: Option<SocketAddr>,
}

/// What is to be ended is nothing of this host's.
#[derive(Debug, thiserror::Error)]
#[error("netmig carries no such flow here; agent-client flows shows those that it does")]
struct NotCarried;

/// A peer that has to hear of it cannot be found.
#[derive(Debug, thiserror::Error)]
#[error("the way to it is gone")]
struct NoWay;

/// Flows of one container that one peer carries as well.
type Shared = BTreeMap<(Option<String>, PeerNumber), Vec<Flow>>;

/// Ends the flows that are asked for, here and on the hosts that carry them as well.
///
/// # Errors
/// There is no such flow, another process works on its container, or the kernel refuses something.
pub async fn end_flows(context: &Context, choice: &FlowChoice) -> Result<Done, Cause> {
    let directories = &context.directories;
    let notes = moved_containers::all(directories)?;
    let marked = Conntrack::open()?.marked()?;
    let mut shared = Shared::new();
    for flow in marked.into_iter().map(|counted| counted.flow) {
        if let Some(seen) = seen(&flow, &notes)
            && is_wanted(&flow, &seen, choice)
        {
            let id = seen.note.map(|note| note.id.clone());
            shared.entry((id, seen.peer)).or_default().push(flow);
        }
    }
    if shared.is_empty() {
        return Err(NotCarried.into());
    }
    // Nothing else may work on the containers meanwhile.
    let mut locks = BTreeMap::new();
    for note in shared.keys().filter_map(|(id, _)| note_of(&notes, id.as_deref())) {
        if !locks.contains_key(&note.id) {
            locks.insert(&note.id, ContainerLock::begin(directories, &note.id, &note.name)?);
        }
    }
    let (mut told, mut left) = (Vec::new(), Vec::new());
    for ((id, peer), flows) in &shared {
        let note = note_of(&notes, id.as_deref());
        let name = note.map_or("a container that is not known any more", |note| &note.name);
        let line = format!("ended {} flows of {name}", flows.len());
        let Some(note) = note else {
            flow_termination::forget(directories, flows).await?;
            told.push(line);
            continue;
        };
        // The container's host resets its connections while the entries here lead the reset on.
        let way = way(*peer).await;
        let container_is_here = flows.iter().all(|flow| flow.leads_to(&note.addresses).is_none());
        if container_is_here {
            flow_termination::end(directories, &*context.engine, note, flows).await?;
        }
        let told_by_reset = container_is_here && flows.iter().all(|flow| flow.tcp.is_some());
        if let Err(e) = tell(context, way, *peer, note, flows).await
            && !told_by_reset
        {
            let host = context.peer_name(*peer);
            left.push(format!(
                "{host} could not be told ({}), and keeps its part of these flows until nothing has come for a \
                 while, TCP for days: run agent-client flows end {name} on {host}, too",
                chain(e.as_ref())
            ));
        }
        if !container_is_here {
            flow_termination::end(directories, &*context.engine, note, flows).await?;
        }
        told.push(line);
    }
    Ok(Done { told: told.join("\n"), left })
}

fn note_of<'a>(notes: &'a [MovedContainer], id: Option<&str>) -> Option<&'a MovedContainer> {
    notes.iter().find(|note| Some(note.id.as_str()) == id)
}

fn is_wanted(flow: &Flow, seen: &Seen<'_>, choice: &FlowChoice) -> bool {
    let FlowChoice { container, far_end, protocol, from, to } = choice;
    let named =
        |name: &String| seen.note.is_some_and(|note| note.name == *name || note.id == *name);
    let far = |far_end: &FarEnd| {
        let ends = seen.note.and_then(|note| flow_termination::ends(flow, note));
        ends.is_some_and(|ends| far_end.is(ends.far))
    };
    let Ends { from: source, to: destination } = ends(flow.original);
    container.as_ref().is_none_or(named)
        && far_end.as_ref().is_none_or(far)
        && protocol.is_none_or(|protocol| flow.protocol == protocol)
        && from.is_none_or(|from| from == source)
        && to.is_none_or(|to| to == destination)
}

/// Returns where a peer is. What leads there may go with the last of the flows.
async fn way(peer: PeerNumber) -> Result<Destination, Cause> {
    let status = tunnel::status(peer).await?;
    let address = status.and_then(|status| status.address).ok_or(NoWay)?;
    Ok(Destination { host: address.to_string(), port: DEFAULT_PORT })
}

/// Has the peer end its part, too.
async fn tell(
    context: &Context,
    way: Result<Destination, Cause>,
    peer: PeerNumber,
    note: &MovedContainer,
    flows: &[Flow],
) -> Result<(), Cause> {
    let host = peer_numbers::peer_with_number(&context.directories.state, peer)?.ok_or(NoWay)?;
    let mut connection = dial_host(context, &way?, host).await?;
    let flows: Vec<FlowEnds> =
        flows.iter().filter_map(|flow| flow_termination::ends(flow, note)).collect();
    let order = EndFlows { id: note.id.clone(), flows: flows.into_wire() };
    connection.send(&Message::EndFlows(order)).await?;
    expect!(connection, deadline::ANSWER, FlowsEnded)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_far_end_is_an_address_with_or_without_a_port() {
        let end: SocketAddr = "192.0.2.3:443".parse().unwrap();
        let six: SocketAddr = "[2001:db8::3]:443".parse().unwrap();
        let is = |text: &str, end| text.parse::<FarEnd>().unwrap().is(end);
        assert!(is("192.0.2.3", end) && is("192.0.2.3:443", end) && is("2001:db8::3", six));
        assert!(is("[2001:db8::3]:443", six));
        assert!(!is("192.0.2.3:80", end) && !is("192.0.2.4", end) && !is("192.0.2.3", six));
        assert!("b".parse::<FarEnd>().is_err() && "192.0.2.3:".parse::<FarEnd>().is_err());
    }
}
