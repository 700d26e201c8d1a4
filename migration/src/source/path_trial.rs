//! The ways that the container's packets will take are tried while nothing is interrupted. What does not come
//! through is refused, with the name of what drops it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use agent_core::cause::{Cause, chain};
use agent_core::message::{Blocker, Message, TriedPath};
use agent_core::peers::PeerLock;
use agent_core::{deadline, expect, host};
use netmig::flow::{Conntrack, Direction, Flow};
use netmig::path::{self, Barrier, Candidate, Fate, Trial, Way};
use netmig::routing;
use netmig::table::{HoldTag, InvalidTag, Table};
use tokio::task::block_in_place;

use super::plan::Plan;
use crate::context::Context;

/// How long packets that the destination sends back may be on their way.
const ARRIVE: Duration = Duration::from_millis(150);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);
/// How often what has not come through is sent again: a packet may be lost.
const ROUNDS: usize = 3;
/// Chains that are opened for one move.
const MOST_OPENED: usize = 8;
/// The code of what is refused.
const CODE: &str = "path-blocked";

/// Ways on which packets do not come through.
#[derive(Debug, thiserror::Error)]
pub struct Blocked(pub Vec<Blocker>);

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<&str> = self.0.iter().map(|blocker| blocker.message.as_str()).collect();
        f.write_str(&all.join("; "))
    }
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
    let mut candidates = path::candidates(&flows, &plan.addresses, peer, &left_out).await?;
    candidates.extend(openings(plan, &candidates)?);
    candidates.truncate(path::MOST);
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    let mut opened = Vec::new();
    loop {
        let tried = match attempt(context, plan, &candidates).await? {
            Ok(tried) => tried,
            Err(reason) => {
                return Ok(vec![format!(
                    "the ways of its packets could not be tried before they were relied on: {reason}"
                )]);
            }
        };
        let named = candidates.iter().zip(&tried);
        let mut blockers: Vec<Blocker> =
            named.flat_map(|(candidate, ways)| ways.blockers(candidate, plan)).collect();
        let closed: BTreeSet<&Barrier> = tried.iter().flat_map(Ways::closed_here).collect();
        let next = closed.iter().find(|barrier| !opened.contains(**barrier));
        if let Some(barrier) = next.filter(|_| plan.open_firewall && opened.len() < MOST_OPENED) {
            // One chain may stand behind another.
            let name = comment(&plan.link.destination.host)?;
            let _lock = PeerLock::take(&context.directories.run).await?;
            block_in_place(|| Table::open()?.open_chain(barrier, peer, &name))?;
            opened.push((*barrier).clone());
            continue;
        }
        blockers.extend(route_back(plan, &candidates).await?);
        blockers.dedup();
        return if blockers.is_empty() { Ok(Vec::new()) } else { Err(Blocked(blockers).into()) };
    }
}

/// New connections to each port that is to lead to the container, from far ends of flows.
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

/// A host's name as it can stand in a rule's comment.
fn comment(name: &str) -> Result<HoldTag, InvalidTag> {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    name.chars().take(64).map(plain).collect::<String>().parse()
}

/// This host would drop what comes back once the container's bridge is gone.
async fn route_back(plan: &Plan, candidates: &[Candidate]) -> Result<Option<Blocker>, Cause> {
    let bridge = plan.port.bridge();
    let is_led = |address: &&IpAddr| {
        candidates.iter().any(|one| one.flow.own_end(&plan.addresses) == Some(**address))
    };
    for address in plan.addresses.iter().filter(is_led) {
        if routing::needs_bridge(plan.link.peer, *address, bridge.index).await? {
            return Ok(Some(Blocker {
                code: CODE.to_owned(),
                message: format!(
                    "{} checks senders (net.ipv4.conf.all.rp_filter), and has no route to {address} but by {}, \
                     which goes with its last container: from then on it would drop what comes back from {}; \
                     set net.ipv4.conf.all.rp_filter to 0, or make a default route",
                    host::name(),
                    bridge.name,
                    plan.link.destination.host
                ),
            }));
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
    suspects: Vec<String>,
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
    connection.send(&Message::TryPaths(flows.clone())).await?;
    if let Some(reason) = expect!(connection, deadline::ANSWER, PathsReady)? {
        return Ok(Err(format!("{} says: {reason}", plan.link.destination.host)));
    }
    let lock = PeerLock::take(&context.directories.run).await?;
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
            if let Err(e) = trial.send(number, Way::Towards, candidate.interface) {
                connection.send(&Message::EndPaths(())).await?;
                return Ok(Err(chain(&e)));
            }
        }
        connection.send(&Message::AskPaths(())).await?;
        let there = expect!(connection, deadline::ANSWER, PathsTried)?;
        if there.len() != candidates.len() {
            return Err("the destination tells of other ways than those that were tried".into());
        }
        let give_up = Instant::now() + ARRIVE;
        ways = loop {
            let mut ways = Vec::with_capacity(there.len());
            for (number, there) in there.iter().enumerate() {
                let (towards, from) =
                    (trial.fate(number, Way::Towards)?, trial.fate(number, Way::From)?);
                let by = if from == Fate::Stuck { &tunnel } else { &candidates[number].name };
                let suspects = match (&towards, &from) {
                    (Fate::Stuck, _) | (_, Fate::Stuck) => {
                        path::suspects(by, trial.is_ipv4(number))
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

    /// What drops them on this host, where that is a chain of others.
    fn closed_here(&self) -> impl Iterator<Item = &Barrier> {
        let open = [self.there.towards == Fate::Arrived, self.here_from == Fate::Arrived];
        let here = [&self.here_towards, &self.here_from].into_iter().zip(open);
        here.filter_map(|(fate, open)| match fate {
            Fate::Dropped(barrier) if !open && barrier.can_be_opened() => Some(barrier),
            _ => None,
        })
    }

    /// The first thing that is in the way, in each direction.
    fn blockers(&self, candidate: &Candidate, plan: &Plan) -> Vec<Blocker> {
        let (here, there) = (Side::Source, Side::Destination);
        let towards = [
            (here, &self.here_towards, &self.suspects),
            (there, &self.there.towards, &self.there.suspects),
        ];
        let from = [
            (there, &self.there.from, &self.there.suspects),
            (here, &self.here_from, &self.suspects),
        ];
        let kind = kind(candidate, plan);
        let mut blockers = Vec::new();
        for (stretch, way) in [(towards, "to the container"), (from, "from the container")] {
            let Some((at, reason)) = in_the_way(stretch) else { continue };
            let at = at.name(plan);
            blockers.push(Blocker {
                code: CODE.to_owned(),
                message: format!("packets of {kind} would not get {way}: on {at} {reason}"),
            });
        }
        blockers
    }
}

/// The kind of flows that one stands for, for people.
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

/// Where a packet has ended and of what, if it has not arrived.
fn in_the_way<'a>(stretch: [(Side, &'a Fate, &'a Vec<String>); 2]) -> Option<(Side, String)> {
    let [(first, at_first, first_suspects), (second, at_second, second_suspects)] = stretch;
    if *at_second == Fate::Arrived {
        return None;
    }
    Some(match (at_first, at_second) {
        (Fate::Dropped(barrier), _) => (first, dropped(barrier)),
        (_, Fate::Dropped(barrier)) => (second, dropped(barrier)),
        (_, Fate::Stuck) => (second, lost(second_suspects)),
        (_, Fate::Forwarded) => (second, "they are led back into the tunnel (ip rule)".to_owned()),
        (Fate::Forwarded, _) => {
            (second, "they do not come out of the tunnel, or something drops them before netfilter".to_owned())
        }
        (Fate::Arrived, _) => {
            (first, "they are led elsewhere than into the tunnel, by a routing rule (ip rule)".to_owned())
        }
        (Fate::Stuck, _) => (first, lost(first_suspects)),
        (Fate::Unseen, _) => {
            (first, "something drops them before netfilter: XDP, tc, or a chain of a lower priority than -300".to_owned())
        }
    })
}

fn lost(suspects: &[String]) -> String {
    format!(
        "they are lost between their arrival and their preparation; by one of: {}",
        suspects.join(", ")
    )
}

/// What to do about a chain.
const REMEDY: &str = "have it accept what comes from and goes to interfaces netmig*, or on the source use \
                      --open-firewall";

fn dropped(barrier: &Barrier) -> String {
    let Barrier { table, chain, rule, .. } = barrier;
    let family = barrier.family_name();
    match rule {
        None => format!(
            "the policy of chain {chain} in nftables' table {family} {table} drops them; {REMEDY}"
        ),
        Some(handle) => format!(
            "rule {handle} of chain {chain} in nftables' table {family} {table} drops them (nft -a list chain \
             {family} {table} {chain}); {REMEDY}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn barrier() -> Fate {
        let (table, chain) = ("fw".to_owned(), "guard".to_owned());
        Fate::Dropped(Barrier { family: 1, table, chain, rule: None })
    }

    fn reason(first: Fate, second: Fate) -> Option<(bool, String)> {
        let none = Vec::new();
        let stretch = [(Side::Source, &first, &none), (Side::Destination, &second, &none)];
        in_the_way(stretch).map(|(side, reason)| (side == Side::Source, reason))
    }

    #[test]
    fn what_is_in_the_way_is_looked_for_in_the_packets_order() {
        assert_eq!(reason(Fate::Forwarded, Fate::Arrived), None);
        // A message of the trace may be lost; what has arrived has arrived.
        assert_eq!(reason(Fate::Unseen, Fate::Arrived), None);
        let (at_source, text) = reason(barrier(), Fate::Unseen).unwrap();
        assert!(at_source && text.contains("policy of chain guard") && text.contains("inet fw"));
        let (at_source, text) = reason(Fate::Forwarded, barrier()).unwrap();
        assert!(!at_source && text.contains("guard"));
        assert!(!reason(Fate::Forwarded, Fate::Stuck).unwrap().0);
        assert!(reason(Fate::Stuck, Fate::Unseen).unwrap().0);
        assert!(!reason(Fate::Forwarded, Fate::Unseen).unwrap().0);
    }
}
