//! Connections and flows that were in use before a move and are dead after it: somebody's firewall, say, was changed
//! while the move was under way. What only rests is not among them.
//!
//! A socket that CRIU has restored asks its far end for an answer at once, and counts what comes from zero. So
//! one look tells that a connection hears its far end, and only for those that have not heard anything is waited: a restored
//! socket sends again after one second, and after two more (`TCP_TIMEOUT_INIT`, doubled each time), so after
//! [`PATIENCE`] three packets have not been answered. Far ends have sent again more often: their timers begin at a fifth of a
//! second. Whether the far end hears the container, and what has become of datagrams, is told by the packets that both
//! hosts count ([`flow_passage`](super::flow_passage)).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use netmig::flow::{Conntrack, Flow, FlowEnds, Protocol};
use netmig::netns::Namespace;
use netmig::sockets::TcpSockets;
use ownership::source::Next;
use protocol::message::SilentConnection;
use state::cause::{Cause, chain};

use super::destination_rpc::{self, Error};
use super::flow_passage::{FlowPassage, Look, Looked, PATIENCE};
use super::migration::Migration;
use super::retry;

/// A connection whose far end was heard so lately is in use.
const LATELY: Duration = Duration::from_secs(2);
/// After so long a restored socket has sent again what was not acknowledged (`TCP_TIMEOUT_INIT`).
const SENT_AGAIN: Duration = Duration::from_millis(1500);
/// Between two readings of the conntrack table, for what has passed in between.
const READINGS: Duration = Duration::from_secs(2);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(200);
/// Connections that are named one by one.
const MOST_NAMED: usize = 20;

/// Own end and far end.
pub(super) type Ends = (SocketAddr, SocketAddr);

/// What of a container is in use.
#[derive(Debug, Default)]
pub struct InUse {
    /// Its TCP connections.
    tcp: BTreeSet<Ends>,
    /// Counts its packets.
    passage: Option<FlowPassage>,
    /// Why nothing is counted, if so.
    uncounted: Option<String>,
}

impl InUse {
    /// Begins to watch, with a counter of packets unless there is none for this reason.
    pub fn watch(passage: Result<FlowPassage, Cause>) -> Self {
        match passage {
            Ok(passage) => Self { passage: Some(passage), ..Self::default() },
            Err(e) => Self { uncounted: Some(chain(e.as_ref())), ..Self::default() },
        }
    }

    /// Looks at the container, before it is interrupted.
    pub fn look(&mut self, namespace: &Namespace) -> Result<(), Cause> {
        if let Some(passage) = &mut self.passage {
            passage.note_before()?;
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
        self.passage.as_mut().map_or(Ok(()), FlowPassage::note_release)
    }

    /// Whether packets are counted.
    pub fn is_counted(&self) -> bool {
        self.passage.is_some()
    }
}

/// TCP connections that were in use, and of which nothing has come.
#[derive(Debug, Default)]
struct SilentOnes {
    dead: Vec<SilentConnection>,
    /// Nothing shows that anything was to come of them, but that the far end has not answered the restored socket.
    unheard: Vec<SilentConnection>,
}

/// Waits until it is known what has become of the container's `flows`, but no longer than a while after packets could
/// come, which was at `since`. `local` are addresses of the destination whose flows are local there.
pub async fn look(
    migration: &mut Migration<'_>,
    in_use: InUse,
    (flows, local): (&[Flow], &[IpAddr]),
    since: Instant,
) -> Looked {
    let InUse { tcp, passage, uncounted } = in_use;
    let is_tcp_in_use =
        |ends: &FlowEnds| ends.protocol == Protocol::Tcp && tcp.contains(&(ends.own, ends.far));
    let begun = match passage {
        Some(passage) => passage.look(migration, flows, local, is_tcp_in_use).await,
        None => Err(uncounted.unwrap_or_default().into()),
    };
    // A destination that cannot be asked is not dialled a second time.
    let silent = match begun.as_ref().ok().and_then(Look::unreachable) {
        Some(reason) => Err(reason.to_owned().into()),
        None => {
            let least = least(flows, migration, &tcp);
            silent_connections(migration, &tcp, (since, least)).await
        }
    };
    let silent = silent.map_err(|e| chain(e.as_ref()));
    let named: BTreeSet<Ends> = match &silent {
        Ok(SilentOnes { dead, unheard }) => {
            dead.iter().chain(unheard).map(|one| (one.own, one.far)).collect()
        }
        Err(_) => tcp.clone(),
    };
    let is_named =
        |ends: &FlowEnds| ends.protocol == Protocol::Tcp && named.contains(&(ends.own, ends.far));
    let counted = match begun {
        Ok(look) => look.end(migration, since, is_named).await,
        Err(e) => Err(e),
    };
    let mut looked = counted.unwrap_or_else(|e| Looked {
        unverified: told_uncounted(flows, &chain(e.as_ref())).into_iter().collect(),
        ..Looked::default()
    });
    // Counted packets tell where they are dropped.
    let is_told = |own: SocketAddr, far: SocketAddr| {
        looked.dead.contains(&FlowEnds { protocol: Protocol::Tcp, own, far })
    };
    let (mut lost, mut unverified) = (Vec::new(), Vec::new());
    match silent {
        // Those that are silent and wait for nothing may rest.
        Ok(SilentOnes { mut dead, .. }) => {
            dead.retain(|one| !is_told(one.own, one.far));
            lost.extend(told(&dead));
        }
        Err(reason) => {
            let mut unknown = tcp;
            unknown.retain(|(own, far)| !is_told(*own, *far));
            unverified.extend(told_unknown(&unknown, &reason));
        }
    }
    lost.append(&mut looked.lost);
    unverified.append(&mut looked.unverified);
    Looked { lost, unverified, ..looked }
}

/// Returns how long it is watched at least whether connections are silent. Of a flow whose anchor is a third host, nobody
/// counts what that host drops. Only the container's own sockets tell of it, once they have sent again.
fn least(flows: &[Flow], migration: &Migration<'_>, in_use: &BTreeSet<Ends>) -> Duration {
    let (container, destination) = (&migration.plan.addresses, migration.plan.link.peer);
    let by_a_third = |flow: &Flow| {
        flow.anchor(container).is_some_and(|anchor| anchor != destination)
            && flow.ends(container).is_some_and(|ends| in_use.contains(&(ends.own, ends.far)))
    };
    if flows.iter().any(by_a_third) { SENT_AGAIN } else { Duration::ZERO }
}

async fn silent_connections(
    migration: &mut Migration<'_>,
    in_use: &BTreeSet<Ends>,
    (since, least): (Instant, Duration),
) -> Result<SilentOnes, Cause> {
    if in_use.is_empty() {
        return Ok(SilentOnes::default());
    }
    let plan = &migration.plan;
    let (container, readdressed) = (plan.addresses.clone(), plan.readdressed.clone());
    let before = |own: SocketAddr| {
        let other = readdressed.iter().find(|other| other.new == own.ip());
        SocketAddr::new(other.map_or(own.ip(), |other| other.old), own.port())
    };
    let mut first: Option<(Instant, Vec<Flow>)> = None;
    let mut suspects = in_use.clone();
    let silent = loop {
        let mut silent = ask(migration).await?;
        for connection in &mut silent {
            connection.own = before(connection.own);
        }
        // Whatever the destination says more than once, or of others, is nothing. One that was not silent at an
        // earlier look lives.
        let mut left = suspects.clone();
        silent.retain(|connection| left.remove(&(connection.own, connection.far)));
        if silent.is_empty() {
            if since.elapsed() >= least {
                return Ok(SilentOnes::default());
            }
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        if since.elapsed() >= least {
            suspects = silent.iter().map(|one| (one.own, one.far)).collect();
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
    let Some((read, first)) = first else { return Ok(SilentOnes::default()) };
    let passed = read.elapsed();
    let heard_here = talking(&first, &Conntrack::open()?.dump(&container)?, passed, &container);
    let is_dead = |connection: &SilentConnection| {
        connection.awaits_answer || heard_here.contains(&(connection.own, connection.far))
    };
    let (dead, unheard) = silent.into_iter().partition(is_dead);
    Ok(SilentOnes { dead, unheard })
}

/// Returns which connections are silent at this moment; `None` if that cannot be found out.
pub(super) async fn silent_now(migration: &mut Migration<'_>) -> Option<BTreeSet<Ends>> {
    let readdressed = migration.plan.readdressed.clone();
    let before = |own: SocketAddr| {
        let other = readdressed.iter().find(|other| other.new == own.ip());
        SocketAddr::new(other.map_or(own.ip(), |other| other.old), own.port())
    };
    let silent = ask(migration).await.ok()?;
    Some(silent.into_iter().map(|one| (before(one.own), one.far)).collect())
}

/// Asks which connections are silent, over a new connection if the conversation has broken.
async fn ask(migration: &mut Migration<'_>) -> Result<Vec<SilentConnection>, Error> {
    let id = migration.id();
    match destination_rpc::silent(migration.connection(), id).await {
        Err(e) if e.next() == Next::AskAgain => {
            tracing::warn!("{}", chain(&e));
            retry::reconnect(migration).await?;
            destination_rpc::silent(migration.connection(), id).await
        }
        answer => answer,
    }
}

/// Tells at most so many of `all`, and how many more there are.
fn some<T>(all: &[T], each: impl Fn(&T) -> String) -> Vec<String> {
    let mut told: Vec<String> = all.iter().take(MOST_NAMED).map(each).collect();
    if all.len() > MOST_NAMED {
        told.push(format!("{} more TCP connections, in the same way", all.len() - MOST_NAMED));
    }
    told
}

fn told_unknown(in_use: &BTreeSet<Ends>, reason: &str) -> Vec<String> {
    let all: Vec<&Ends> = in_use.iter().collect();
    some(&all, |(own, far)| format!("the TCP connection of {own} with {far}: {reason}"))
}

/// Tells of UDP flows whose packets this host has not counted.
fn told_uncounted(flows: &[Flow], reason: &str) -> Option<String> {
    let udp = flows.iter().filter(|flow| flow.protocol == Protocol::Udp).count();
    (udp > 0).then(|| format!("{udp} UDP flows: their packets could not be counted: {reason}"))
}

fn told(dead: &[SilentConnection]) -> Vec<String> {
    let seconds = PATIENCE.as_secs();
    some(dead, |SilentConnection { own, far, .. }| {
        format!(
            "the TCP connection of {own} with {far} was in use, and its far end has not answered in the {seconds} s \
             since the move; look for what drops its packets on the way to the destination and back"
        )
    })
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
    let ends = |flow: &Flow| flow.ends(container).map(|ends| (ends.own, ends.far));
    after.iter().filter(talks).filter_map(ends).collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use netmig::flow::{TcpState, Tuple, Zone};

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
        let told = told(&dead);
        assert_eq!(told.len(), MOST_NAMED + 1);
        assert!(told[0].contains("192.0.2.3:9") && told[MOST_NAMED].starts_with("980 more"));
    }
}
