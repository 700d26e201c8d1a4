//! Flows whose packets passed before a move and do not after it.
//!
//! That the far end of a flow is silent says nothing. But this host sees whether packets that come to it leave it, and the
//! destination sees the same of its own part, from the moment at which the container runs there. Both count the packets of
//! every flow. How long is waited depends on what was seen: until each flow that was in use has passed, if all do.

mod verdict;
mod watched;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netmig::flow::{Flow, FlowEnds, Protocol};
use netmig::routing;
use netmig::table::{FlowCounter, PacketCount, Passage, RuleTag};
use ownership::source::Next;
use protocol::message::{AskPassage, Message, PASSAGE};
use protocol::wire::FLOWS_PER_FRAME;
use state::cause::{Cause, chain};
use steering::tunnels::SteeringLock;
use tokio::task::block_in_place;

use super::dead_connections;
use super::destination_rpc;
use super::migration::Migration;
use super::retry;
use crate::convert::Wire;
use verdict::{Counted, State, Way};
use watched::{Finding, Hosts, Watched};

/// Flows are dead if packets have not got through for so long after they could.
pub(super) const PATIENCE: Duration = Duration::from_secs(4);
/// How long is waited for a flow of which nothing has come at all since then.
const QUIET: Duration = Duration::from_millis(1500);
/// How long it is watched at least whether packets go on to pass, unless they do.
const LEAST: Duration = Duration::from_millis(300);
/// How long packets are watched that do not get through.
const DOUBT: Duration = Duration::from_secs(2);
/// Between two readings: the first, and any later one.
const PAUSES: [Duration; 2] = [Duration::from_millis(60), Duration::from_millis(200)];

/// Packets of each flow.
type Counts = BTreeMap<FlowEnds, Passage>;

/// Counts what passes this host, and has the destination do so.
#[derive(Debug)]
pub struct FlowPassage {
    tag: RuleTag,
    container: Vec<IpAddr>,
    counter: Option<FlowCounter>,
    /// What had passed when the interruption began; `None` if that is not known.
    before: Option<Counts>,
    /// What had passed when packets were released.
    released: Counts,
}

/// What was counted at one moment: here before and after the destination was asked.
#[derive(Debug)]
struct Reading {
    here: Counts,
    there: Option<Counts>,
    here_after: Counts,
}

/// What has become of flows that were in use.
#[derive(Debug, Default)]
pub struct Looked {
    /// Those that are dead.
    pub dead: BTreeSet<FlowEnds>,
    /// A sentence for each one that is dead.
    pub lost: Vec<String>,
    /// A sentence for each one of which it is not known whether it lives.
    pub unverified: Vec<String>,
    /// A sentence for each one of which few packets did not get through, as may happen to any.
    pub doubtful: Vec<String>,
}

/// The destination's answer is none.
#[derive(Debug, thiserror::Error)]
#[error("the destination tells of other flows than those that it was asked about")]
struct OtherFlows;

/// A look at flows that has begun.
#[derive(Debug)]
pub struct Look {
    passage: FlowPassage,
    watched: Vec<Watched>,
    first: Reading,
    began: Instant,
    /// Why the destination's part is not known, if it is not.
    unknown_there: Option<Unknown>,
}

/// Why what has passed at the destination is not known.
#[derive(Debug)]
struct Unknown {
    reason: String,
    /// Whether it is since the destination does not answer.
    is_unreachable: bool,
}

fn minus(now: &Counts, before: &Counts, ends: &FlowEnds) -> Passage {
    let of = |counts: &Counts| counts.get(ends).copied().unwrap_or_default();
    let (now, before) = (of(now), of(before));
    let less = |now: PacketCount, before: PacketCount| PacketCount {
        came: now.came.saturating_sub(before.came),
        left: now.left.saturating_sub(before.left),
    };
    Passage { towards: less(now.towards, before.towards), from: less(now.from, before.from) }
}

impl FlowPassage {
    /// Begins to count packets of a container with these addresses.
    ///
    /// # Errors
    /// nftables refuses the rules.
    pub fn watch(tag: &RuleTag, container: &[IpAddr]) -> Result<Self, Cause> {
        let counter = Some(FlowCounter::begin(tag, container)?);
        let (tag, container) = (tag.clone(), container.to_vec());
        Ok(Self { tag, container, counter, before: None, released: Counts::new() })
    }

    /// Returns what has passed so far; `None` if others have removed the rules.
    fn read(&mut self) -> Result<Option<Counts>, Cause> {
        let Some(counter) = &mut self.counter else { return Ok(None) };
        Ok(counter.read()?)
    }

    /// Notes what has passed; to be called right before the interruption.
    ///
    /// # Errors
    /// nftables cannot be read.
    pub fn note_before(&mut self) -> Result<(), Cause> {
        self.before = self.read()?;
        Ok(())
    }

    /// Notes that packets can come again.
    ///
    /// # Errors
    /// nftables cannot be read.
    pub fn note_release(&mut self) -> Result<(), Cause> {
        if let Some(counts) = self.read()? {
            self.released = counts;
        }
        Ok(())
    }

    /// Makes the rules again if others have removed them.
    async fn renew(&mut self, migration: &Migration<'_>) -> Result<Counts, Cause> {
        if let Some(counts) = self.read()? {
            return Ok(counts);
        }
        let _lock = SteeringLock::take(&migration.context.directories.run).await?;
        block_in_place(|| {
            // In this order: the end of a counter removes the rules of its tag.
            self.counter = None;
            self.counter = Some(FlowCounter::begin(&self.tag, &self.container)?);
            self.released = Counts::new();
            Ok(Counts::new())
        })
    }

    /// Begins to look at these flows, which were led to the destination or past this host. `local` are addresses of the
    /// destination whose flows are local there, and `in_use` says which connections are known to have been in use.
    ///
    /// # Errors
    /// This host's part cannot be read.
    pub async fn look(
        mut self,
        migration: &mut Migration<'_>,
        flows: &[Flow],
        local: &[IpAddr],
        in_use: impl Fn(&FlowEnds) -> bool,
    ) -> Result<Look, Cause> {
        let here = self.renew(migration).await?;
        let mut own = routing::host_addresses().await?;
        // The bridge has gone with its last container, and its address with it.
        let gateways = migration.plan.port.bridge().addresses.clone();
        own.extend(gateways.iter().copied());
        let mut there = migration.plan.far_ends.addresses();
        there.extend_from_slice(local);
        let hosts = Hosts { source: &own, destination: &there, gateways: &gateways };
        let plan = &migration.plan;
        let watch = |flow: &Flow| {
            Watched::of(flow, &plan.addresses, &plan.readdressed, &hosts, self.before.as_ref())
        };
        let mut watched: Vec<Watched> = flows.iter().filter_map(watch).collect();
        for one in &mut watched {
            one.is_in_use |= in_use(&one.ends);
        }
        let mut unknown_there = None;
        let there = self.there(migration, &watched, &mut unknown_there).await;
        let here_after = self.renew(migration).await?;
        let first = Reading { here, there, here_after };
        Ok(Look { passage: self, watched, first, began: Instant::now(), unknown_there })
    }

    /// Returns what has passed at the destination, over a new connection if the conversation has broken; notes why that
    /// is not known, if it is not.
    async fn there(
        &self,
        migration: &mut Migration<'_>,
        watched: &[Watched],
        unknown: &mut Option<Unknown>,
    ) -> Option<Counts> {
        if unknown.is_some() || watched.is_empty() {
            return None;
        }
        let destination = migration.plan.link.destination.host.clone();
        if !migration.connection().has(PASSAGE) {
            let reason = format!("the agent of {destination} is of an earlier version");
            *unknown = Some(Unknown { reason, is_unreachable: false });
            return None;
        }
        let (reason, is_unreachable) = match ask_insisting(migration, watched).await {
            Ok(Some(counts)) => return Some(counts),
            Ok(None) => (format!("{destination} cannot count its packets"), false),
            Err(e) => (format!("{destination} could not be asked: {}", chain(e.as_ref())), true),
        };
        *unknown = Some(Unknown { reason, is_unreachable });
        None
    }
}

/// Asks the destination, and once more if the conversation has broken, or if it has not counted.
async fn ask_insisting(
    migration: &mut Migration<'_>,
    watched: &[Watched],
) -> Result<Option<Counts>, Cause> {
    let answer = match ask(migration, watched).await {
        Err(cause) => {
            let is_broken = cause
                .downcast_ref::<destination_rpc::Error>()
                .is_some_and(|error| error.next() == Next::AskAgain);
            if !is_broken {
                return Err(cause);
            }
            tracing::warn!("{}", chain(cause.as_ref()));
            retry::reconnect(migration).await?;
            ask(migration, watched).await?
        }
        Ok(answer) => answer,
    };
    if answer.is_some() {
        return Ok(answer);
    }
    // An agent that was started again has lost what was counted.
    let addresses = there(&migration.plan.addresses, &migration.plan.readdressed);
    migration.connection().send(&Message::CountPackets(addresses)).await?;
    ask(migration, watched).await
}

/// Returns the container's addresses at the destination.
pub(super) fn there(container: &[IpAddr], others: &[netmig::flow::Readdressed]) -> Vec<IpAddr> {
    let new = |own: &IpAddr| {
        others.iter().find(|other| other.old == *own).map_or(*own, |other| other.new)
    };
    container.iter().map(new).collect()
}

async fn ask(migration: &mut Migration<'_>, watched: &[Watched]) -> Result<Option<Counts>, Cause> {
    let id = migration.id();
    let mut all = Counts::new();
    for part in watched.chunks(FLOWS_PER_FRAME) {
        let flows: Vec<FlowEnds> = part.iter().map(|one| one.there).collect();
        let ask = AskPassage { migration: id, flows: flows.into_wire() };
        let passed = destination_rpc::passage(migration.connection(), ask).await?;
        let Some(passed) = Option::<Vec<Passage>>::from_wire(passed)? else { return Ok(None) };
        if passed.len() != part.len() {
            return Err(OtherFlows.into());
        }
        all.extend(part.iter().map(|one| one.ends).zip(passed));
    }
    Ok(Some(all))
}

impl Look {
    /// Why the destination cannot be asked anything, if so.
    pub fn unreachable(&self) -> Option<&str> {
        self.unknown_there.as_ref().filter(|why| why.is_unreachable).map(|why| why.reason.as_str())
    }

    /// Watches the flows for as long as it takes to know what has become of them. Packets could come since `since`. Of TCP
    /// connections of which nothing comes any more only those that are `silent` are told of.
    ///
    /// # Errors
    /// This host's part cannot be read.
    pub async fn end(
        mut self,
        migration: &mut Migration<'_>,
        since: Instant,
        silent: impl Fn(&FlowEnds) -> bool,
    ) -> Result<Looked, Cause> {
        let mut pauses = PAUSES.into_iter();
        let mut pause = PAUSES[0];
        let findings = loop {
            pause = pauses.next().unwrap_or(pause);
            tokio::time::sleep(pause).await;
            let findings = self.read(migration).await?;
            let (waited, watched) = (since.elapsed(), self.began.elapsed());
            let is_over = if findings.iter().any(Finding::is_in_doubt) {
                waited >= PATIENCE && watched >= DOUBT
            } else if findings.iter().any(Finding::is_quiet) {
                waited >= QUIET && watched >= LEAST
            } else if findings.iter().all(Finding::passes) {
                true
            } else {
                watched >= LEAST
            };
            if is_over {
                break findings;
            }
        };
        // A connection may have fallen silent since it was last asked for.
        let is_unheard = |(one, finding): (&Watched, &Finding)| {
            one.ends.protocol == Protocol::Tcp && matches!(finding, Finding::Unheard(_))
        };
        let silent_now = match self.watched.iter().zip(&findings).any(is_unheard) {
            true => dead_connections::silent_now(migration).await,
            false => Some(BTreeSet::new()),
        };
        // Its packets were dropped. If nobody can say that it was closed, it counts as dead.
        let is_silent_now = |ends: &FlowEnds| {
            silent_now.as_ref().is_none_or(|all| all.contains(&(ends.own, ends.far)))
        };
        let is_silent = |ends: &FlowEnds| silent(ends) || is_silent_now(ends);
        let destination = migration.plan.link.destination.host.clone();
        let told: Vec<(&Watched, &Finding)> = self
            .watched
            .iter()
            .zip(&findings)
            .filter(|(one, finding)| match one.ends.protocol {
                Protocol::Tcp => match finding {
                    Finding::Dead(_) => true,
                    Finding::Unheard(_) => is_silent(&one.ends),
                    _ => false,
                },
                _ => true,
            })
            .collect();
        let unknown = self.unknown_there.as_ref().map(|why| why.reason.as_str());
        Ok(watched::tell(&told, &destination, unknown, since.elapsed()))
    }

    async fn read(&mut self, migration: &mut Migration<'_>) -> Result<Vec<Finding>, Cause> {
        let here = self.passage.renew(migration).await?;
        let there = self.passage.there(migration, &self.watched, &mut self.unknown_there).await;
        let here_after = self.passage.renew(migration).await?;
        let now = Reading { here, there, here_after };
        // An agent that has begun anew counts from zero.
        if is_less(now.there.as_ref(), self.first.there.as_ref()) {
            self.first.there.clone_from(&now.there);
        }
        Ok(self.watched.iter().map(|one| self.finding(one, &now)).collect())
    }

    fn finding(&self, one: &Watched, now: &Reading) -> Finding {
        let (first, ends) = (&self.first, &one.ends);
        let nothing = Counts::new();
        let all = Counted {
            source: Some(minus(&now.here, &self.passage.released, ends)),
            destination: now.there.as_ref().map(|there| minus(there, &nothing, ends)),
        };
        // What leaves a host within the time comes to the other one within it, too.
        let source = Passage {
            towards: minus(&now.here, &first.here_after, ends).towards,
            from: minus(&now.here_after, &first.here, ends).from,
        };
        let destination = now.there.as_ref().zip(first.there.as_ref());
        let recent = Counted {
            source: Some(source),
            destination: destination.map(|(now, first)| minus(now, first, ends)),
        };
        let state = |way: Way| -> State { verdict::state(one.sides, way, &all, &recent) };
        Finding::of(one, Way::BOTH.map(state))
    }
}

/// Returns whether something has been counted less often than before.
fn is_less(now: Option<&Counts>, first: Option<&Counts>) -> bool {
    let (Some(now), Some(first)) = (now, first) else { return false };
    let sum = |passage: &Passage| {
        let Passage { towards, from } = passage;
        towards.came + towards.left + from.came + from.left
    };
    first.iter().any(|(ends, first)| now.get(ends).map_or(0, sum) < sum(first))
}
