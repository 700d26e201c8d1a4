//! UDP flows that passed this host before a move and do not after it.
//!
//! Datagrams have no answers to wait for: that a container is silent says nothing. But this host sees whether those
//! that come to it leave it, and the destination sees the same of its own part, from the moment at which the
//! container runs there. A flow is dead if, in one direction, its datagrams passed this host before the interruption,
//! and none of several that came to one of the hosts since has left it. Whatever its ends do, that is no guess.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use netmig::flow::{Conntrack, Direction, Flow, Protocol, STATUS_SEEN_REPLY};
use netmig::path_trial::is_one_host;
use netmig::routing;
use netmig::table::{FlowCounter, MOST_COUNTED, PacketCount, RuleTag};
use state::cause::{Cause, chain};
use state::host;

use super::destination_rpc;
use super::migration::Migration;
use crate::convert::{CountedFlows, FlowCount, Wire};

/// So many that have come and not left are no accident.
const SEVERAL: u64 = 3;

/// What is watched of them.
#[derive(Debug)]
pub struct Datagrams {
    passage: FlowCounter,
    flows: Vec<(Flow, Direction)>,
    /// Which directions of each passed before the interruption: original, reply.
    passed: Vec<[bool; 2]>,
    /// What had passed when packets were released.
    released: Vec<[PacketCount; 2]>,
    /// What has passed this host since.
    here: Vec<[PacketCount; 2]>,
    /// What has passed the destination.
    there: Vec<[PacketCount; 2]>,
    /// Whether the destination was asked to count.
    is_counted_there: bool,
}

/// The destination's answer is none.
#[derive(Debug, thiserror::Error)]
#[error("the destination tells of other flows than those that it was to count")]
struct OtherFlows;

impl Datagrams {
    /// Begins to watch flows that this host is about to lead to the destination: the most recent one of each kind.
    /// `left_out` are far ends at the destination.
    pub async fn watch(
        tag: &RuleTag,
        container: &[IpAddr],
        left_out: &[IpAddr],
    ) -> Result<Option<Self>, Cause> {
        let own = routing::host_addresses().await?;
        let flows = Conntrack::open()?.dump(container)?;
        let is_elsewhere =
            |end: IpAddr| is_one_host(end) && !own.contains(&end) && !left_out.contains(&end);
        let flows = choose(flows, container, is_elsewhere);
        if flows.is_empty() {
            return Ok(None);
        }
        let plain: Vec<Flow> = flows.iter().map(|(flow, _)| flow.clone()).collect();
        Ok(Some(Self {
            passage: FlowCounter::begin(tag, &plain)?,
            flows,
            passed: Vec::new(),
            released: Vec::new(),
            here: Vec::new(),
            there: Vec::new(),
            is_counted_there: false,
        }))
    }

    /// Returns them for the destination, which is to count their packets, too.
    pub fn flows_to_count(&mut self) -> CountedFlows {
        self.is_counted_there = true;
        CountedFlows(self.flows.iter().map(|(flow, _)| flow.into()).collect())
    }

    /// Notes which of them pass; to be called right before the interruption.
    pub fn note_passing(&mut self) -> Result<(), Cause> {
        let passed = self.passage.read()?.unwrap_or_default();
        self.passed = passed.iter().map(|both| both.map(|way| way.left > 0)).collect();
        Ok(())
    }

    /// Begins to look for those that do not; to be called when packets can come again.
    pub fn note_release(&mut self) -> Result<(), Cause> {
        // If others have removed the rules nothing can be said of this host any more.
        self.released = self.passage.read()?.unwrap_or_default();
        Ok(())
    }

    /// Reads what has passed on both hosts since then. A destination that does not tell counts as one on which
    /// nothing is dropped.
    pub async fn read(&mut self, migration: &mut Migration<'_>) -> Result<(), Cause> {
        self.here = self.passage.read()?.unwrap_or_default();
        if self.is_counted_there {
            self.there = self.counted_there(migration).await.unwrap_or_else(|e| {
                tracing::warn!("{}", chain(e.as_ref()));
                Vec::new()
            });
        }
        Ok(())
    }

    async fn counted_there(
        &self,
        migration: &mut Migration<'_>,
    ) -> Result<Vec<[PacketCount; 2]>, Cause> {
        let id = migration.id();
        let counts = destination_rpc::flow_counts(migration.connection(), id).await?;
        let counts: Option<Vec<FlowCount>> = Option::from_wire(counts)?;
        let Some(counts) = counts else { return Ok(Vec::new()) };
        if counts.len() != self.flows.len() {
            return Err(OtherFlows.into());
        }
        Ok(counts.iter().map(|count| [count.original, count.reply]).collect())
    }

    /// Returns whether packets of one have come to a host that have not left it: it is worth while to wait for more.
    pub fn is_any_stuck(&self) -> bool {
        !self.stuck_here(1).is_empty() || !self.stuck_there(1).is_empty()
    }

    /// Returns a sentence for each one that is dead, given the destination's name and how long it was waited for it.
    pub fn dead(&self, destination: &str, waited: Duration) -> Vec<String> {
        let here = host::name();
        let told = |stuck: Vec<Stuck>, host: &str| {
            stuck.iter().map(|one| self.sentence(one, host, waited)).collect::<Vec<_>>()
        };
        [told(self.stuck_here(SEVERAL), &here), told(self.stuck_there(SEVERAL), destination)]
            .concat()
    }

    fn sentence(&self, stuck: &Stuck, host: &str, waited: Duration) -> String {
        let Stuck { number, is_towards, came } = *stuck;
        let (flow, direction) = &self.flows[number];
        let (seconds, whom) =
            (waited.as_secs(), if is_towards { "for the container" } else { "from the container" });
        let (from, to) = (flow.original.source, flow.original.destination);
        let (from_port, to_port) = (flow.original.source_port, flow.original.destination_port);
        let opened = match direction {
            Direction::Inbound => "to",
            Direction::Outbound => "of the container to",
        };
        format!(
            "the UDP flow {opened} {to}:{to_port} (from {from}:{from_port}) was in use, and none of {came} datagrams \
             {whom} that came to {host} in the {seconds} s since the move has left it; look for what drops them there"
        )
    }

    fn stuck_here(&self, least: u64) -> Vec<Stuck> {
        stuck(&self.directions(), &self.passed, (&self.released, &self.here), least)
    }

    fn stuck_there(&self, least: u64) -> Vec<Stuck> {
        // Nothing came there before.
        let nothing = vec![[PacketCount::default(); 2]; self.there.len()];
        stuck(&self.directions(), &self.passed, (&nothing, &self.there), least)
    }

    fn directions(&self) -> Vec<Direction> {
        self.flows.iter().map(|(_, direction)| *direction).collect()
    }
}

/// A direction of a flow of which nothing has left a host.
#[derive(Debug, PartialEq, Eq)]
struct Stuck {
    /// The flow's number.
    number: usize,
    /// Whether it is the direction towards the container.
    is_towards: bool,
    /// How many packets have come.
    came: u64,
}

/// Returns the directions of flows that passed the source before, and of which at least `least` packets have come to a
/// host between two readings, and none left it.
fn stuck(
    directions: &[Direction],
    passed: &[[bool; 2]],
    (before, now): (&[[PacketCount; 2]], &[[PacketCount; 2]]),
    least: u64,
) -> Vec<Stuck> {
    let mut stuck = Vec::new();
    for (number, ((direction, passed), (before, now))) in
        directions.iter().zip(passed).zip(before.iter().zip(now)).enumerate()
    {
        for way in 0..2 {
            let since = |count: fn(&PacketCount) -> u64| {
                count(&now[way]).saturating_sub(count(&before[way]))
            };
            let came = since(|passed| passed.came);
            if passed[way] && came >= least && since(|passed| passed.left) == 0 {
                // The original direction is that of whoever opened it.
                let is_towards = (*direction == Direction::Inbound) == (way == 0);
                stuck.push(Stuck { number, is_towards, came });
            }
        }
    }
    stuck
}

/// Returns the most recent flow of each direction, address family and port of the container's host: those of one kind meet
/// the same rules. Only such as are answered, and whose anchor is this host.
fn choose(
    flows: Vec<Flow>,
    container: &[IpAddr],
    is_elsewhere: impl Fn(IpAddr) -> bool,
) -> Vec<(Flow, Direction)> {
    let mut kinds: BTreeMap<(bool, bool, Option<u16>), Flow> = BTreeMap::new();
    for flow in flows {
        let Some(direction) = flow.direction(container) else { continue };
        let is_inbound = direction == Direction::Inbound;
        let far = if is_inbound { flow.original.source } else { flow.original.destination };
        let is_fit = flow.protocol == Protocol::Udp
            && flow.status & STATUS_SEEN_REPLY != 0
            && flow.anchor(container).is_none()
            // Others are the bridge's, which sends them on without this host's seeing a packet.
            && flow.is_translated()
            && is_elsewhere(far)
            && flow.other_end(container).is_some_and(&is_elsewhere);
        if !is_fit {
            continue;
        }
        let port = is_inbound.then_some(flow.original.destination_port);
        let of_kind = kinds.entry((is_inbound, far.is_ipv4(), port));
        let chosen = of_kind.or_insert_with(|| flow.clone());
        if chosen.timeout < flow.timeout {
            *chosen = flow;
        }
    }
    let with_direction = |flow: Flow| flow.direction(container).map(|direction| (flow, direction));
    kinds.into_values().filter_map(with_direction).take(MOST_COUNTED).collect()
}

#[cfg(test)]
mod tests {
    use netmig::flow::{Tuple, Zone};

    use super::*;

    const CONTAINER: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(10, 88, 0, 2))];

    fn flow(far: &str, port: u16, timeout: u32) -> Flow {
        let original = Tuple {
            source: far.parse().unwrap(),
            destination: "192.0.2.1".parse().unwrap(),
            source_port: 40000,
            destination_port: port,
        };
        let reply = Tuple { source: CONTAINER[0], source_port: 80, ..original.inverse() };
        Flow {
            protocol: Protocol::Udp,
            original,
            reply,
            status: STATUS_SEEN_REPLY,
            timeout,
            mark: 0,
            zone: Zone::default(),
            tcp: None,
        }
    }

    #[test]
    fn one_flow_of_each_kind_is_watched() {
        let elsewhere = |end: IpAddr| end.to_string() != "192.0.2.9";
        let unanswered = Flow { status: 0, ..flow("192.0.2.3", 4, 120) };
        let by_a_third = Flow { mark: 5 << 24, ..flow("192.0.2.3", 5, 120) };
        let all = vec![
            flow("192.0.2.3", 1, 100),
            flow("192.0.2.4", 1, 110),
            flow("192.0.2.3", 2, 100),
            flow("192.0.2.9", 3, 100),
            unanswered,
            by_a_third,
        ];
        let chosen = choose(all, &CONTAINER, elsewhere);
        let told: Vec<(u16, u32)> =
            chosen.iter().map(|(flow, _)| (flow.original.destination_port, flow.timeout)).collect();
        assert_eq!(told, [(1, 110), (2, 100)]);
        let many = (1..100).map(|port| flow("192.0.2.3", port, 100)).collect();
        assert_eq!(choose(many, &CONTAINER, elsewhere).len(), MOST_COUNTED);
    }

    #[test]
    fn a_flow_is_dead_only_if_what_comes_does_not_leave_and_did_before() {
        let at = |came, left| PacketCount { came, left };
        let none = [at(0, 0); 2];
        let look = |passed: [bool; 2], before: [PacketCount; 2], now: [PacketCount; 2]| {
            stuck(&[Direction::Inbound], &[passed], (&[before], &[now]), 3)
        };
        let both = [true, true];
        assert_eq!(
            look(both, [at(9, 9), at(9, 9)], [at(12, 9), at(9, 9)]),
            [Stuck { number: 0, is_towards: true, came: 3 }]
        );
        assert_eq!(
            look(both, [at(9, 9), at(9, 9)], [at(9, 9), at(14, 9)]),
            [Stuck { number: 0, is_towards: false, came: 5 }]
        );
        // It rests, is slow, lives, lost some, or was stuck before.
        assert_eq!(look(both, none, none), []);
        assert_eq!(look(both, none, [at(2, 0), at(0, 0)]), []);
        assert_eq!(look(both, none, [at(90, 1), at(90, 90)]), []);
        assert_eq!(look([false, true], none, [at(90, 0), at(0, 0)]), []);
        // Somebody has removed the rules meanwhile.
        let (towards, came) = ([Direction::Inbound], [[at(9, 0); 2]]);
        assert_eq!(stuck(&towards, &[], (&[none], &came), 3), []);
        assert_eq!(stuck(&towards, &[both], (&[], &came), 3), []);
        assert_eq!(stuck(&towards, &[both], (&[none], &[]), 3), []);
    }
}
