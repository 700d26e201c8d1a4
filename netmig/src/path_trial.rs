//! Path trials: test packets show whether the hosts let packets of moved flows pass, before flows
//! rely on it.
//!
//! For a flow that is to be steered to a peer, a twin is created: the same ends, NAT and connmark,
//! but an unused port, in a conntrack entry that expires after [`EXPIRES_AFTER`]. A packet of the
//! twin is injected into the interface by which those of the real flow come ([`inject`](self)). It
//! passes everything that they pass: hooks of all tables, conntrack, reverse path filtering,
//! routing, the tunnel, and the same on the other host. A rule in netmig's postrouting chain drops
//! it there before it would leave. So neither the container nor the far end ever sees it. The
//! packet is traced, so that a rule that drops it earlier can be named.
//!
//! | packet | injected on the source into | dropped on |
//! | --- | --- | --- |
//! | towards the container | the interface of the route to the far end | the destination, before it enters the bridge |
//! | from the container | on the destination, the container's bridge | the source, before it leaves for the far end |

mod candidates;
mod error;
mod inject;
mod packet;
mod trace;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;

use crate::flow::{Conntrack, Direction, Flow, STATUS_FIXED_TIMEOUT, STATUS_SEEN_REPLY, Tuple};
use crate::netlink::route::{self, Link};
use crate::netlink::{Connection, Protocol as Netlink};
use crate::peer_number::PeerNumber;
use crate::table::{RuleTag, Table};

use inject::Injector;
use packet::Stage;

pub use candidates::{Candidate, candidates, is_one_host};
pub use error::Error;
pub(crate) use trace::Tracer;
pub use trace::{DropRule, Fate};

/// Most twins of one trial.
pub const MOST: usize = 32;
/// How often a packet that has not arrived is sent: packets may be lost.
pub const ROUNDS: usize = 3;
/// Timeout of the twins' conntrack entries, in seconds. They expire even if this process dies.
pub const EXPIRES_AFTER: u32 = 5;

/// A direction of a flow, seen from its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PacketDirection {
    /// Packets that the container receives.
    ToContainer,
    /// Packets that the container sends.
    FromContainer,
}

/// An interface into which packets can be injected.
#[derive(Debug)]
struct Entrance {
    name: String,
    mac: [u8; 6],
    injector: Injector,
}

/// One host's part in a trial. Dropping it removes its rules and entries.
pub struct Trial {
    tag: RuleTag,
    table: Table,
    conntrack: Conntrack,
    tracer: Tracer,
    flows: Vec<Tried>,
    /// Entries that the trial has created.
    made: Vec<Flow>,
    entrances: HashMap<u32, Entrance>,
    links: Vec<Link>,
}

/// A twin.
struct Tried {
    flow: Flow,
    /// Tuples of its packets as they come to this host.
    towards: Tuple,
    from: Tuple,
    fates: HashMap<PacketDirection, Fate>,
}

impl Trial {
    /// Creates the twins' entries, and rules that let none of their packets leave this host except
    /// to `peer`. Removes the remains of an earlier trial with the same tag.
    ///
    /// # Errors
    /// [`Error::Taken`] when a twin is a real flow; [`Error::Table`], [`Error::Flows`],
    /// [`Error::Trace`], [`Error::Interface`]. Nothing remains in the kernel then.
    pub fn begin(
        tag: &RuleTag,
        peer: PeerNumber,
        flows: &[Flow],
        container: &[IpAddr],
    ) -> Result<Self, Error> {
        let tracer = Tracer::open()?;
        let links = Connection::open(Netlink::Route)
            .and_then(|mut connection| route::links(&mut connection))
            .map_err(|error| Error::Interface(error.into()))?;
        let tried = flows.iter().take(MOST).filter_map(|flow| Tried::new(flow, container));
        let tried: Vec<Tried> = tried.collect();
        let of_rules: Vec<Flow> = tried.iter().map(|tried| tried.flow.clone()).collect();
        let mut trial = Self {
            tag: tag.clone(),
            table: Table::open()?,
            conntrack: Conntrack::open()?,
            tracer,
            flows: tried,
            made: Vec::new(),
            entrances: HashMap::new(),
            links,
        };
        let entry = |flow: &Flow| Flow {
            status: flow.status | STATUS_FIXED_TIMEOUT,
            timeout: EXPIRES_AFTER,
            ..flow.clone()
        };
        let entries: Vec<Flow> = of_rules.iter().map(entry).collect();
        let outcome = trial.conntrack.create(&entries)?;
        let is_new = |(number, flow)| (!outcome.existing.contains(&number)).then_some(flow);
        trial.made = entries.into_iter().enumerate().filter_map(is_new).collect();
        // Packets of real flows must not be dropped.
        if let Some(flow) = outcome.existing.first().and_then(|number| of_rules.get(*number)) {
            return Err(Error::Taken(flow.to_string()));
        }
        trial.table.add_path_trial(tag, peer, &of_rules)?;
        Ok(trial)
    }

    /// Returns the number of twins.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Returns whether there is no twin.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Prepares an interface for injection.
    ///
    /// # Errors
    /// [`Error::Interface`] when there is none with that index, [`Error::Inject`] when the kernel
    /// refuses the program.
    pub fn open(&mut self, interface: u32) -> Result<(), Error> {
        if self.entrances.contains_key(&interface) {
            return Ok(());
        }
        let link = self.links.iter().find(|link| link.index == interface);
        let absent = || Error::Interface(io::Error::from_raw_os_error(libc::ENODEV));
        let Link { name, mac, .. } = link.ok_or_else(absent)?;
        let injector = Injector::new(interface)
            .map_err(|source| Error::Inject { interface: name.clone(), source })?;
        let (name, mac) = (name.clone(), mac.unwrap_or_default());
        self.entrances.insert(interface, Entrance { name, mac, injector });
        Ok(())
    }

    /// Injects a packet of the twin with this number into an interface.
    ///
    /// # Errors
    /// [`Error::Interface`], [`Error::Inject`].
    pub fn send(
        &mut self,
        number: usize,
        way: PacketDirection,
        interface: u32,
    ) -> Result<(), Error> {
        self.open(interface)?;
        let (Some(tried), Some(entrance)) =
            (self.flows.get(number), self.entrances.get(&interface))
        else {
            return Ok(());
        };
        let (tuple, is_original) = match way {
            PacketDirection::ToContainer => (tried.towards, tried.towards == tried.flow.original),
            PacketDirection::FromContainer => (tried.from, tried.from == tried.flow.original),
        };
        let stage = match (tried.flow.status & STATUS_SEEN_REPLY == 0, is_original) {
            (true, true) => Stage::First,
            (true, false) => Stage::Answer,
            (false, _) => Stage::Later,
        };
        let frame = packet::frame(entrance.mac, tried.flow.protocol, &tuple, stage);
        entrance
            .injector
            .receive(&frame)
            .map_err(|source| Error::Inject { interface: entrance.name.clone(), source })
    }

    /// Returns what is known so far of the packets of the twin with this number. If one of several
    /// packets was dropped and another one arrived, the latter counts.
    ///
    /// # Errors
    /// [`Error::Trace`].
    pub fn fate(&mut self, number: usize, way: PacketDirection) -> Result<Fate, Error> {
        let flows = &mut self.flows;
        self.tracer.read(|(protocol, tuple), fate| {
            for tried in flows.iter_mut().filter(|tried| tried.flow.protocol == protocol) {
                let way = match tuple {
                    tuple if tuple == tried.towards => PacketDirection::ToContainer,
                    tuple if tuple == tried.from => PacketDirection::FromContainer,
                    _ => continue,
                };
                let known = tried.fates.entry(way).or_insert(Fate::Unseen);
                if rank(&fate) > rank(known) {
                    *known = fate.clone();
                }
            }
        })?;
        let known = self.flows.get(number).and_then(|tried| tried.fates.get(&way));
        Ok(known.cloned().unwrap_or(Fate::Unseen))
    }

    /// Returns whether the twin with this number stands for a new connection.
    #[must_use]
    pub fn is_new(&self, number: usize) -> bool {
        self.flows.get(number).is_some_and(|tried| tried.flow.status & STATUS_SEEN_REPLY == 0)
    }

    /// Returns whether the twin with this number has IPv4 addresses.
    #[must_use]
    pub fn is_ipv4(&self, number: usize) -> bool {
        self.flows.get(number).is_some_and(|tried| tried.flow.original.source.is_ipv4())
    }
}

impl fmt::Debug for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trial").field("tag", &self.tag).finish_non_exhaustive()
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let deleted = self.conntrack.delete(&self.made).map(drop).map_err(Error::from);
        let removed = self.table.remove_path_trial(&self.tag).map_err(Error::from);
        for error in [deleted.err(), removed.err()].into_iter().flatten() {
            // The entries expire, and the rules are removed with the migration.
            tracing::warn!("cannot remove the remains of a path trial: {error}");
        }
    }
}

/// Returns how much a fate weighs among those of several packets.
fn rank(fate: &Fate) -> u8 {
    match fate {
        Fate::Unseen => 0,
        Fate::Stuck => 1,
        Fate::Dropped(_) => 2,
        Fate::Forwarded => 3,
        Fate::Arrived => 4,
    }
}

impl Tried {
    fn new(flow: &Flow, container: &[IpAddr]) -> Option<Self> {
        let (towards, from) = match flow.direction(container)? {
            Direction::Inbound => (flow.original, flow.reply),
            Direction::Outbound => (flow.reply, flow.original),
        };
        Some(Self { flow: flow.clone(), towards, from, fates: HashMap::new() })
    }
}

/// Returns whether this host may try the path of a twin that a peer names: the trial injects
/// packets that seem to come from the container. So the twin has to be a flow of the container,
/// steered here by that peer without any NAT of the peer's choice, and its far end a single host
/// other than this one, whose addresses are `own`.
#[must_use]
pub fn may_be_tried(flow: &Flow, container: &[IpAddr], own: &[IpAddr]) -> bool {
    let is_elsewhere = |end: IpAddr| {
        is_one_host(end) && !own.contains(&end.to_canonical()) && !container.contains(&end)
    };
    flow.direction(container).is_some()
        && flow.anchor(container).is_none()
        && flow.other_end(container).is_some_and(is_elsewhere)
}

/// Returns what on this host may have dropped packets that came by an interface and that no rule of
/// nftables dropped.
#[must_use]
pub fn suspects(interface: &str, ipv4: bool) -> Vec<String> {
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let mut found = Vec::new();
    let names = if ipv4 { "ip_tables_names" } else { "ip6_tables_names" };
    let program = if ipv4 { "iptables-legacy" } else { "ip6tables-legacy" };
    if read(format!("/proc/thread-self/net/{names}")).lines().any(|table| table == "filter") {
        found.push(format!(
            "the legacy table filter, by a rule or the policy of its chain FORWARD ({program} -S FORWARD), which \
             --open-firewall does not open: run {program} -I FORWARD -i netmig+ -j ACCEPT; {program} -I FORWARD \
             -o netmig+ -j ACCEPT"
        ));
    }
    let check = |of: &str| read(format!("/proc/sys/net/ipv4/conf/{of}/rp_filter"));
    let strict = ["all", interface].map(|of| check(of).trim().parse().unwrap_or(0u8));
    if ipv4 && let Some(value) = strict.into_iter().max().filter(|value| *value > 0) {
        found.push(format!(
            "reverse path filtering (net.ipv4.conf.{interface}.rp_filter is {value} in effect), if no route \
             leads back there"
        ));
    }
    found.push("a missing or prohibiting route (ip route, ip rule)".to_owned());
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Protocol, Zone};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Returns a flow to the container as the source has it, by a published port.
    fn inbound(far: &str) -> Flow {
        let original = Tuple {
            source: ip(far),
            destination: ip("192.0.2.1"),
            source_port: 40000,
            destination_port: 8080,
        };
        let reply = Tuple { source: ip("10.88.0.2"), source_port: 80, ..original.inverse() };
        Flow {
            protocol: Protocol::Udp,
            original,
            reply,
            status: STATUS_SEEN_REPLY,
            timeout: 9,
            mark: 5 << 16,
            zone: Zone::default(),
            tcp: None,
        }
    }

    #[test]
    fn only_ways_between_the_container_and_a_host_elsewhere_are_tried() {
        let (container, own) = ([ip("10.88.0.2")], [ip("192.0.2.2"), ip("10.88.0.1")]);
        let may = |flow: &Flow| may_be_tried(flow, &container, &own);
        assert!(may(&inbound("192.0.2.3")));
        for far in [
            "192.0.2.2",
            "10.88.0.1",
            "127.0.0.1",
            "255.255.255.255",
            "224.0.0.1",
            "0.0.0.0",
            "10.88.0.2",
        ] {
            assert!(!may(&inbound(far)), "{far}");
        }
        // A flow of another container.
        let mut other = inbound("192.0.2.3");
        other.reply.source = ip("10.88.0.3");
        assert!(!may(&other));
        // Its anchor is another host: its tuples would be used as they are.
        let translated = Flow { mark: 7 << 24, ..inbound("192.0.2.3") };
        assert!(!may(&translated));
    }
}
