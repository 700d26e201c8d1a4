//! The ways that the container's packets will take are tried while nothing is interrupted. What does not come
//! through is refused, with the name of what drops it.

mod obstacle;
mod words;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netmig::flow::{Conntrack, Direction, Flow};
use netmig::path_trial::{self, Candidate, DropRule, Fate, PacketDirection, ROUNDS, Trial};
use netmig::routing;
use netmig::table::{InvalidTag, RuleTag};
use netmig::tunnel;
use protocol::expect;
use protocol::message::{FailureCode, MAX_TRIALS, Message};
use protocol::wire;
use state::blocker::Blocker;
use state::cause::{Cause, chain};
use state::peer_text::PeerText;
use state::{deadline, host};
use steering::opened_firewall;
use steering::tunnels::SteeringLock;
use tokio::task::block_in_place;

use super::plan::Plan;
use crate::context::Context;
use crate::convert::{TriedPath, Wire};
use obstacle::Obstacle;

/// How long packets that the destination sends back may be on their way.
const ARRIVE: Duration = Duration::from_millis(150);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);
/// Chains that are opened for one move: the ways are tried again after each.
const MOST_OPENED: usize = MAX_TRIALS - 1;
/// The code of what is refused.
const CODE: &str = "path-blocked";

/// The destination's answer is none.
#[derive(Debug, thiserror::Error)]
#[error("the destination tells of other ways than those that were tried")]
struct OtherWays;

/// Ways on which packets do not come through.
#[derive(Debug, thiserror::Error)]
pub struct Blocked(pub Vec<Blocker>);

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<&str> = self.0.iter().map(|blocker| blocker.message.as_str()).collect();
        f.write_str(&all.join("; "))
    }
}

/// Returns what keeps packets from getting from one host to the other at all, if an attempt has failed of that.
pub fn blocked_tunnel(cause: &Cause) -> Option<Blocker> {
    if let Some(wire::Error::Failure { failure, .. }) = cause.downcast_ref()
        && failure.code == FailureCode::PathBlocked
    {
        return Some(Blocker::new(CODE, failure.message.clone()));
    }
    let error = cause.downcast_ref::<tunnel::Error>().filter(|error| error.is_blocked())?;
    Some(Blocker::new(CODE, format!("on {}: {}", host::name(), chain(error))))
}

/// Tries the ways of the container's flows that this host leads to the destination, and of new connections that
/// it will; gives warnings.
///
/// # Errors
/// [`Blocked`], and what the conversation with the destination fails of.
pub async fn check(context: &Context, plan: &mut Plan) -> Result<Vec<String>, Cause> {
    let flows = block_in_place(|| Conntrack::open()?.dump(&plan.addresses))?;
    let peer = plan.link.peer;
    let left_out = plan.far_ends.addresses();
    let mut candidates = path_trial::candidates(&flows, &plan.addresses, peer, &left_out).await?;
    candidates.extend(openings(plan, &candidates)?);
    candidates.truncate(path_trial::MOST);
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    let mut tried_to_open = Vec::new();
    loop {
        let tried = match attempt(context, plan, &candidates).await? {
            Ok(tried) => tried,
            Err(reason) => {
                return Ok(vec![format!(
                    "the ways of its packets could not be tried before they were relied on: {reason}"
                )]);
            }
        };
        let mut obstacles = Vec::new();
        for (candidate, ways) in candidates.iter().zip(&tried) {
            ways.add_to(&mut obstacles, candidate, plan);
        }
        let mut blockers: Vec<Blocker> =
            obstacles.iter().map(|one| Blocker::new(CODE, one.to_string())).collect();
        let closed: BTreeSet<&DropRule> = tried.iter().flat_map(Ways::closed_here).collect();
        let next = closed.iter().find(|barrier| !tried_to_open.contains(**barrier));
        let may_open = plan.open_firewall && tried_to_open.len() < MOST_OPENED;
        if let Some(barrier) = next.filter(|_| may_open) {
            // One chain may stand behind another.
            let name = comment(&plan.link.destination.host)?;
            let (directories, migration) = (&context.directories, plan.offer.migration);
            let lock = SteeringLock::take(&directories.run).await?;
            let open =
                || opened_firewall::open(directories, migration, (peer, &name), barrier, &lock);
            match block_in_place(open) {
                Ok(()) => {
                    tried_to_open.push((*barrier).clone());
                    continue;
                }
                // Such as one that belongs to a process, which alone may change it.
                Err(cause) => blockers.push(Blocker::new(CODE, chain(cause.as_ref()))),
            }
        }
        blockers.extend(route_back(plan, &candidates).await?);
        blockers.dedup();
        return if blockers.is_empty() { Ok(Vec::new()) } else { Err(Blocked(blockers).into()) };
    }
}

/// Returns new connections to each port that is to lead to the container, from far ends of flows.
fn openings(plan: &Plan, candidates: &[Candidate]) -> Result<Vec<Candidate>, Cause> {
    let Some(away) = &plan.away else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for port in &away.ports {
        for candidate in candidates {
            let opening = candidate.opening(port, &plan.addresses, plan.link.peer)?;
            if let Some(opening) = opening {
                all.push(opening);
                break;
            }
        }
    }
    Ok(all)
}

/// Returns a host's name as it can stand in a rule's comment.
fn comment(name: &str) -> Result<RuleTag, InvalidTag> {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    name.chars().take(64).map(plain).collect::<String>().parse()
}

/// Returns a blocker if this host would drop what comes back once the container's bridge is gone.
async fn route_back(plan: &Plan, candidates: &[Candidate]) -> Result<Option<Blocker>, Cause> {
    let bridge = plan.port.bridge();
    let is_led = |address: &&IpAddr| {
        candidates.iter().any(|one| one.flow.own_end(&plan.addresses) == Some(**address))
    };
    for address in plan.addresses.iter().filter(is_led) {
        if routing::needs_bridge(plan.link.peer, *address, bridge.index).await? {
            return Ok(Some(Blocker::new(
                CODE,
                format!(
                    "{} checks senders (net.ipv4.conf.all.rp_filter), and has no route to {address} but by {}, \
                     which goes with its last container: from then on it would drop what comes back from {}; \
                     set net.ipv4.conf.all.rp_filter to 0, or make a default route",
                    host::name(),
                    bridge.name,
                    plan.link.destination.host
                ),
            )));
        }
    }
    Ok(None)
}

/// One of the two hosts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

impl Side {
    fn name(self, plan: &Plan) -> String {
        match self {
            Self::Source => host::name(),
            Self::Destination => plan.link.destination.host.clone(),
        }
    }
}

/// What became of the packets of a flow on both hosts.
struct Ways {
    here_towards: Fate,
    here_from: Fate,
    there: TriedPath,
    suspects: Vec<PeerText>,
}

/// Tries them; `Err` tells why they could not be tried.
async fn attempt(
    context: &Context,
    plan: &mut Plan,
    candidates: &[Candidate],
) -> Result<Result<Vec<Ways>, String>, Cause> {
    let flows: Vec<Flow> = candidates.iter().map(|candidate| candidate.flow.clone()).collect();
    let tag = plan.offer.migration.to_string().parse()?;
    let peer = plan.link.peer;
    let container = plan.addresses.clone();
    let connection = &mut plan.link.connection;
    connection.send(&Message::TryPaths(flows.clone().into_wire())).await?;
    if let Some(reason) = expect!(connection, deadline::ANSWER, PathsReady)? {
        return Ok(Err(format!("{} says: {reason}", plan.link.destination.host)));
    }
    let lock = SteeringLock::take(&context.directories.run).await?;
    let begun = block_in_place(|| Trial::begin(&tag, peer, &flows, &container));
    drop(lock);
    let mut trial = match begun {
        Ok(trial) => trial,
        Err(e) => {
            connection.send(&Message::EndPaths(())).await?;
            return Ok(Err(chain(&e)));
        }
    };
    let tunnel = peer.interface();
    let mut ways = Vec::new();
    for _ in 0..ROUNDS {
        for (number, candidate) in candidates.iter().enumerate() {
            if let Err(e) = trial.send(number, PacketDirection::ToContainer, candidate.interface) {
                connection.send(&Message::EndPaths(())).await?;
                return Ok(Err(chain(&e)));
            }
        }
        connection.send(&Message::AskPaths(())).await?;
        let there = expect!(connection, deadline::ANSWER, PathsTried)?;
        let there: Vec<TriedPath> = Vec::from_wire(there)?;
        if there.len() != candidates.len() {
            return Err(OtherWays.into());
        }
        let give_up = Instant::now() + ARRIVE;
        ways = loop {
            let mut ways = Vec::with_capacity(there.len());
            for (number, there) in there.iter().enumerate() {
                let (towards, from) = (
                    trial.fate(number, PacketDirection::ToContainer)?,
                    trial.fate(number, PacketDirection::FromContainer)?,
                );
                let by = if from == Fate::Stuck { &tunnel } else { &candidates[number].name };
                let suspects = match (&towards, &from) {
                    (Fate::Stuck, _) | (_, Fate::Stuck) => {
                        let suspects = path_trial::suspects(by, trial.is_ipv4(number));
                        suspects.into_iter().map(PeerText::from).collect()
                    }
                    _ => Vec::new(),
                };
                let there = there.clone();
                ways.push(Ways { here_towards: towards, here_from: from, there, suspects });
            }
            if ways.iter().all(|ways| ways.here_from.is_settled()) || Instant::now() >= give_up {
                break ways;
            }
            tokio::time::sleep(PAUSE).await;
        };
        if ways.iter().all(Ways::are_open) {
            break;
        }
    }
    // Entries and rules go on both hosts.
    block_in_place(|| drop(trial));
    connection.send(&Message::EndPaths(())).await?;
    Ok(Ok(ways))
}

impl Ways {
    fn are_open(&self) -> bool {
        self.there.towards == Fate::Arrived && self.here_from == Fate::Arrived
    }

    /// Returns what drops them on this host, where that is a chain of others.
    fn closed_here(&self) -> impl Iterator<Item = &DropRule> {
        let open = [self.there.towards == Fate::Arrived, self.here_from == Fate::Arrived];
        let here = [&self.here_towards, &self.here_from].into_iter().zip(open);
        here.filter_map(|(fate, open)| match fate {
            Fate::Dropped(barrier) if !open && barrier.can_be_opened() => Some(barrier),
            _ => None,
        })
    }

    /// Adds the first thing that is in the way, in each direction.
    fn add_to(&self, obstacles: &mut Vec<Obstacle>, candidate: &Candidate, plan: &Plan) {
        let (here, there) = (Side::Source, Side::Destination);
        let (own, others) = (&self.suspects[..], &self.there.suspects[..]);
        let towards = [(here, &self.here_towards, own), (there, &self.there.towards, others)];
        let from = [(there, &self.there.from, others), (here, &self.here_from, own)];
        let kind = kind(candidate, plan);
        for (stretch, way) in
            [(towards, PacketDirection::ToContainer), (from, PacketDirection::FromContainer)]
        {
            let name = |side: Side| side.name(plan);
            let Some((at, reason)) = words::in_the_way(stretch, name) else { continue };
            Obstacle::note(obstacles, (at.name(plan), reason), (kind.clone(), way));
        }
    }
}

/// Returns the kind of flows that one stands for, for people.
fn kind(candidate: &Candidate, plan: &Plan) -> String {
    let Candidate { flow, name, stands_for, .. } = candidate;
    let family = if flow.original.source.is_ipv4() { "IPv4" } else { "IPv6" };
    let what = match flow.direction(&plan.addresses) {
        Some(Direction::Inbound) => format!("to port {}", flow.original.destination_port),
        _ => "that the container has opened".to_owned(),
    };
    match stands_for {
        0 => format!("new {} {family} connections {what} by {name}", flow.protocol),
        _ => format!("{} {family} flows {what} by {name} ({stands_for} of them)", flow.protocol),
    }
}
