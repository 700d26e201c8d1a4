//! Connections and flows that were in use before a move and are dead after it: somebody's firewall, say, was changed
//! while the move was under way. What only rests is not among them.
//!
//! A socket that CRIU has restored asks its far end for an answer at once, and counts what comes from zero. So
//! one look tells that a connection lives, and only for those that have not heard anything is waited.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netmig::flow::{Conntrack, Direction, Flow};
use netmig::netns::Namespace;
use netmig::sockets::TcpSockets;
use protocol::message::SilentConnection;
use state::cause::Cause;

use super::datagrams::Datagrams;
use super::destination_rpc;
use super::migration::Migration;
use crate::convert::CountedFlows;

/// A connection whose far end was heard so lately is in use.
const LATELY: Duration = Duration::from_secs(2);
/// A connection is dead if nothing came for so long after packets could come. A restored socket sends again
/// after one second, and after two more (`TCP_TIMEOUT_INIT`, doubled each time): by then three packets have
/// not been answered. Far ends have sent again more often: their timers begin at a fifth of a second.
const PATIENCE: Duration = Duration::from_secs(4);
/// Between two readings of the conntrack table, for what has passed in between.
const READINGS: Duration = Duration::from_secs(2);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(200);
/// Connections that are named one by one.
const MOST_NAMED: usize = 20;

/// Own end and far end.
type Ends = (SocketAddr, SocketAddr);

/// What of a container is in use.
#[derive(Debug, Default)]
pub struct InUse {
    /// Its TCP connections.
    tcp: BTreeSet<Ends>,
    /// Its UDP flows, as far as they are watched.
    datagrams: Option<Datagrams>,
}

impl InUse {
    /// Begins to watch its UDP flows.
    pub fn watch(datagrams: Option<Datagrams>) -> Self {
        Self { datagrams, ..Self::default() }
    }

    /// Looks at the container, before it is interrupted.
    pub fn look(&mut self, namespace: &Namespace) -> Result<(), Cause> {
        if let Some(datagrams) = &mut self.datagrams {
            datagrams.note_passing()?;
        }
        let all = TcpSockets::open(namespace)?.info()?;
        // Far ends that have not answered for a while are not to be blamed on the move.
        let in_use = all.into_iter().filter(|info| info.retransmits == 0);
        let in_use = in_use.filter(|info| info.heard < LATELY || info.awaits_answer());
        self.tcp = in_use.map(|info| (info.own, info.far)).collect();
        Ok(())
    }

    /// Notes that its packets can come again.
    pub fn note_release(&mut self) -> Result<(), Cause> {
        self.datagrams.as_mut().map_or(Ok(()), Datagrams::note_release)
    }

    /// Returns the UDP flows that the destination is to count, too, and expects that it does.
    pub fn flows_to_count(&mut self) -> Option<CountedFlows> {
        self.datagrams.as_mut().map(Datagrams::flows_to_count)
    }

    /// Waits until it is known which of its UDP flows are dead, if any seems to be; returns a sentence for each.
    async fn dead_datagrams(
        &mut self,
        migration: &mut Migration<'_>,
        since: Instant,
    ) -> Result<Vec<String>, Cause> {
        let Some(mut datagrams) = self.datagrams.take() else { return Ok(Vec::new()) };
        datagrams.read(migration).await?;
        if !datagrams.is_any_stuck() {
            return Ok(Vec::new());
        }
        tokio::time::sleep(PATIENCE.saturating_sub(since.elapsed())).await;
        datagrams.read(migration).await?;
        let destination = &migration.plan.link.destination.host;
        Ok(datagrams.dead(destination, since.elapsed()))
    }
}

/// Waits until all of them have heard something, but no longer than a while after packets could come, which
/// was at `since`; returns a sentence for each one that is dead.
pub async fn dead(
    migration: &mut Migration<'_>,
    in_use: &mut InUse,
    since: Instant,
) -> Result<Vec<String>, Cause> {
    let mut dead = dead_connections(migration, &in_use.tcp, since).await?;
    dead.extend(in_use.dead_datagrams(migration, since).await?);
    Ok(dead)
}

async fn dead_connections(
    migration: &mut Migration<'_>,
    in_use: &BTreeSet<Ends>,
    since: Instant,
) -> Result<Vec<String>, Cause> {
    if in_use.is_empty() {
        return Ok(Vec::new());
    }
    let id = migration.id();
    let plan = &migration.plan;
    let (container, readdressed) = (plan.addresses.clone(), plan.readdressed.clone());
    let before = |own: SocketAddr| {
        let other = readdressed.iter().find(|other| other.new == own.ip());
        SocketAddr::new(other.map_or(own.ip(), |other| other.old), own.port())
    };
    let mut first: Option<(Instant, Vec<Flow>)> = None;
    let silent = loop {
        let mut silent = destination_rpc::silent(migration.connection(), id).await?;
        for connection in &mut silent {
            connection.own = before(connection.own);
        }
        // Whatever the far end says more than once, or of others, is nothing.
        let mut left = in_use.clone();
        silent.retain(|connection| left.remove(&(connection.own, connection.far)));
        if silent.is_empty() {
            return Ok(Vec::new());
        }
        match &first {
            None => first = Some((Instant::now(), Conntrack::open()?.dump(&container)?)),
            Some((read, _)) if read.elapsed() >= READINGS && since.elapsed() >= PATIENCE => {
                break silent;
            }
            Some(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    };
    let Some((read, first)) = first else { return Ok(Vec::new()) };
    let passed = read.elapsed();
    let heard_here = talking(&first, &Conntrack::open()?.dump(&container)?, passed, &container);
    let is_dead = |connection: &&SilentConnection| {
        connection.awaits_answer || heard_here.contains(&(connection.own, connection.far))
    };
    Ok(told(&silent.iter().filter(is_dead).collect::<Vec<_>>()))
}

fn told(dead: &[&SilentConnection]) -> Vec<String> {
    let seconds = PATIENCE.as_secs();
    let each = |SilentConnection { own, far, .. }: &&SilentConnection| {
        format!(
            "the TCP connection of {own} with {far} was in use, and nothing has come of it in the {seconds} s \
             since the move; look for what drops its packets on the way to the destination and back"
        )
    };
    let mut all: Vec<String> = dead.iter().take(MOST_NAMED).map(each).collect();
    if dead.len() > MOST_NAMED {
        all.push(format!("{} more TCP connections, in the same way", dead.len() - MOST_NAMED));
    }
    all
}

/// Returns the connections of which packets came to this host between two readings of its conntrack table: each sets
/// the time after which the entry is forgotten.
fn talking(
    before: &[Flow],
    after: &[Flow],
    passed: Duration,
    container: &[std::net::IpAddr],
) -> BTreeSet<Ends> {
    /// The table tells whole seconds.
    const ROUNDING: f64 = 1.5;
    let talks = |flow: &&Flow| {
        let earlier = before.iter().find(|of| of.tcp.is_some() && of.original == flow.original);
        let left = |flow: &Flow| f64::from(flow.timeout);
        flow.tcp.is_some()
            && earlier.is_some_and(|of| left(flow) + passed.as_secs_f64() > left(of) + ROUNDING)
    };
    after.iter().filter(talks).filter_map(|flow| ends(flow, container)).collect()
}

/// Returns the ends of a connection as the container sees them.
fn ends(flow: &Flow, container: &[std::net::IpAddr]) -> Option<Ends> {
    Some(match flow.direction(container)? {
        Direction::Inbound => (
            SocketAddr::new(flow.reply.source, flow.reply.source_port),
            SocketAddr::new(flow.reply.destination, flow.reply.destination_port),
        ),
        Direction::Outbound => (
            SocketAddr::new(flow.original.source, flow.original.source_port),
            SocketAddr::new(flow.original.destination, flow.original.destination_port),
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use netmig::flow::{Protocol, TcpState, Tuple, Zone};

    use super::*;

    const CONTAINER: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(10, 88, 0, 2))];

    fn flow(port: u16, timeout: u32) -> Flow {
        let original = Tuple {
            source: "192.0.2.3".parse().unwrap(),
            destination: "192.0.2.1".parse().unwrap(),
            source_port: port,
            destination_port: 8080,
        };
        let reply = Tuple { source: CONTAINER[0], source_port: 80, ..original.inverse() };
        Flow {
            protocol: Protocol::Tcp,
            original,
            reply,
            status: 0,
            timeout,
            mark: 0,
            zone: Zone::default(),
            tcp: Some(TcpState { state: 3, scales: [7, 7], flags: [0, 0] }),
        }
    }

    #[test]
    fn connections_talk_if_their_entries_grow_younger() {
        let before = [flow(1, 432_000), flow(2, 431_000), flow(3, 300), flow(4, 300)];
        // Two rest; one was heard again; of one the kernel waits for an acknowledgement, and heard it again.
        let after = [flow(1, 431_997), flow(2, 431_999), flow(3, 297), flow(4, 299), flow(5, 300)];
        let talking = talking(&before, &after, Duration::from_secs_f64(3.4), &CONTAINER);
        let ports: Vec<u16> = talking.iter().map(|(_, far)| far.port()).collect();
        assert_eq!(ports, [2, 4]);
        assert!(talking.iter().all(|(own, _)| *own == "10.88.0.2:80".parse().unwrap()));
    }

    #[test]
    fn a_thousand_dead_connections_are_told_in_few_lines() {
        let (own, far) = ("10.88.0.2:80".parse().unwrap(), "192.0.2.3:9".parse().unwrap());
        let dead = vec![SilentConnection { own, far, awaits_answer: true }; 1000];
        let told = told(&dead.iter().collect::<Vec<_>>());
        assert_eq!(told.len(), MOST_NAMED + 1);
        assert!(told[0].contains("192.0.2.3:9") && told[MOST_NAMED].starts_with("980 more"));
    }
}
