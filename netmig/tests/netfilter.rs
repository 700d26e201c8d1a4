//! Flows, table and hold against the running kernel, each test in a network namespace of its
//! own. They need root, and so run only when asked:
//!
//! ```text
//! cargo test -p netmig --test netfilter -- --ignored
//! ```

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;

use netmig::flow::{
    Aliases, Conntrack, Flow, Protocol, TcpState, TunnelNat, Tuple, Zone, ZoneScope,
};
use netmig::hold::{HoldRules, OnHolderLoss, Pace, PreparedHold};
use netmig::peer_number::PeerNumber;
use netmig::table::{Forward, ForwardedPort, Purpose, RuleTag, Table};
use nix::sched::{CloneFlags, unshare};

/// Puts the test's thread into a fresh network namespace, which ends with it.
fn alone() {
    unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn tuple(source: &str, destination: &str, source_port: u16) -> Tuple {
    let (source, destination) = (address(source), address(destination));
    Tuple { source, destination, source_port, destination_port: 80 }
}

fn flow(protocol: Protocol, original: Tuple) -> Flow {
    let tcp = TcpState { state: 3, scales: [7, 9], flags: [0x0b, 0x0b] };
    Flow {
        protocol,
        original,
        reply: original.inverse(),
        status: 0x0e,
        timeout: 600,
        mark: 0x0900_0000,
        zone: Zone::default(),
        tcp: (protocol == Protocol::Tcp).then_some(tcp),
    }
}

/// Everything but what the kernel decides by itself: the time left, and status bits beyond ours.
fn essence(mut flows: Vec<Flow>) -> Vec<Flow> {
    for flow in &mut flows {
        flow.timeout = 0;
        flow.status &= 0x0e;
        if let Some(tcp) = &mut flow.tcp {
            tcp.flags = tcp.flags.map(|flags| flags & 0x0f);
        }
    }
    flows.sort_by_key(|flow| (flow.original, flow.protocol, flow.zone.id));
    flows
}

fn samples() -> Vec<Flow> {
    let v4 = tuple("192.0.2.3", "10.88.0.2", 1);
    let v6 = tuple("2001:db8::3", "fd00::2", 1);
    let mut flows: Vec<Flow> = [v4, v6, tuple("10.88.0.2", "192.0.2.4", 5)]
        .into_iter()
        .flat_map(|tuple| [Protocol::Tcp, Protocol::Udp].map(|protocol| flow(protocol, tuple)))
        .collect();
    // The same tuples again, told apart by zones.
    for (id, scope) in [(1, ZoneScope::Both), (2, ZoneScope::Original)] {
        flows.push(Flow { zone: Zone { id, scope }, ..flow(Protocol::Tcp, v4) });
    }
    // Translated to another address, as for a container that could not keep its own.
    let inbound = tuple("192.0.2.3", "10.88.0.7", 2);
    let mut translated = flow(Protocol::Tcp, inbound);
    translated.reply.source = address("10.88.0.2");
    flows.push(translated);
    let mut outbound = flow(Protocol::Udp, tuple("10.88.0.2", "192.0.2.4", 6));
    outbound.reply.destination = address("10.88.0.7");
    flows.push(outbound);
    flows
}

#[test]
#[ignore = "needs root"]
fn flows_of_every_kind_are_created_read_marked_and_deleted() {
    alone();
    let container = [address("10.88.0.2"), address("fd00::2")];
    let mut conntrack = Conntrack::open().unwrap();
    let flows = samples();
    let created = conntrack.create(&flows).unwrap();
    // Where only the original direction has a zone, the reply tuples collide: exactly that one
    // is refused as existing.
    let whole: Vec<Flow> =
        flows.iter().filter(|flow| flow.zone.scope == ZoneScope::Both).cloned().collect();
    assert_eq!(created.existing, [7], "{created:?}");
    assert_eq!(created.done, whole.len());
    assert_eq!(essence(conntrack.dump(&container).unwrap()), essence(whole.clone()));
    assert_eq!(conntrack.create(&whole).unwrap().existing.len(), whole.len());

    let marked = conntrack.set_mark(&whole, 0x0002_0000, 0x00ff_0000).unwrap();
    assert_eq!(marked.done, whole.len(), "{marked:?}");
    let read = conntrack.dump(&container).unwrap();
    assert!(read.iter().all(|flow| flow.mark == 0x0902_0000), "the other bits stay");

    let (first, rest) = whole.split_at(3);
    assert_eq!(conntrack.delete(first).unwrap().done, 3);
    let outcome = conntrack.set_mark(&whole, 0, 0x00ff_0000).unwrap();
    assert_eq!((outcome.gone, outcome.done), (vec![0, 1, 2], rest.len()));
}

#[test]
#[ignore = "needs root"]
fn what_the_kernel_refuses_is_an_error_that_names_the_flow() {
    alone();
    let mut conntrack = Conntrack::open().unwrap();
    let good = flow(Protocol::Tcp, tuple("192.0.2.3", "10.88.0.2", 1));
    let gone = flow(Protocol::Tcp, tuple("192.0.2.3", "10.88.0.2", 2));
    conntrack.create(std::slice::from_ref(&good)).unwrap();
    // Of two families, which no entry is.
    let absurd = flow(Protocol::Udp, tuple("192.0.2.3", "fd00::2", 3));
    let flows = [gone.clone(), absurd.clone(), good.clone()];
    for refused in [
        conntrack.set_mark(&flows, 0x0002_0000, 0x00ff_0000).map(drop),
        conntrack.set_timeout(&flows, 99).map(drop),
        conntrack.create(std::slice::from_ref(&absurd)).map(drop),
        conntrack.delete(&[gone.clone(), absurd.clone()]).map(drop),
    ] {
        let message = refused.unwrap_err().to_string();
        assert!(message.contains(&absurd.to_string()), "{message}");
    }
    let marked = conntrack.dump(&[address("10.88.0.2")]).unwrap();
    assert_eq!(marked.len(), 1);
    assert_eq!(marked[0].mark, 0x0902_0000, "the others are marked nevertheless");
    let ended = conntrack.set_mark(&[gone], 0, 0x00ff_0000).unwrap();
    assert_eq!((ended.gone, ended.done), (vec![0], 0), "one that has ended is no error");
}

#[test]
#[ignore = "needs root"]
fn a_large_table_is_filtered_with_the_same_answer() {
    alone();
    let container = [address("10.88.0.2"), address("fd00::2")];
    let mut conntrack = Conntrack::open().unwrap();
    let own: Vec<Flow> =
        samples().into_iter().filter(|flow| flow.zone.scope == ZoneScope::Both).collect();
    let others: Vec<Flow> = (1..=20_000)
        .map(|port| flow(Protocol::Udp, tuple("192.0.2.9", "10.88.0.99", port)))
        .collect();
    assert_eq!(conntrack.create(&own).unwrap().done, own.len());
    assert_eq!(conntrack.create(&others).unwrap().done, others.len());
    assert_eq!(conntrack.count().unwrap(), own.len() + others.len());
    assert_eq!(essence(conntrack.dump(&container).unwrap()), essence(own));
}

#[test]
#[ignore = "needs root"]
fn the_table_is_made_and_removed_any_number_of_times() {
    alone();
    let mut table = Table::open().unwrap();
    let peer = PeerNumber::new(3).unwrap();
    table.remove().unwrap();
    assert_eq!(table.read().unwrap().rules, []);
    assert!(table.steer(peer).is_err(), "no table, no rules");
    for _ in 0..2 {
        table.install().unwrap();
        table.steer(peer).unwrap();
        table.steer(PeerNumber::new(4).unwrap()).unwrap();
    }
    assert_eq!(table.read().unwrap().rules.len(), 8);
    for _ in 0..2 {
        table.unsteer(peer).unwrap();
    }
    assert_eq!(table.read().unwrap().with_purpose(&Purpose::Peer(peer)).count(), 0);
    assert_eq!(table.read().unwrap().rules.len(), 4);
    for _ in 0..2 {
        table.remove().unwrap();
    }
    assert_eq!(table.read().unwrap().rules, []);
}

#[test]
#[ignore = "needs root"]
fn holds_come_and_go_side_by_side() {
    alone();
    let mut table = Table::open().unwrap();
    table.install().unwrap();
    let rules = HoldRules {
        addresses: vec![address("10.88.0.2"), address("fd00::2")],
        published: vec![(Protocol::Tcp, 80), (Protocol::Udp, 53)],
        on_loss: OnHolderLoss::Accept,
    };
    let engage = |tag: &str| {
        let mut hold = PreparedHold::new(tag.parse().unwrap(), &rules).unwrap().engage().unwrap();
        hold.engage_all().unwrap();
        hold
    };
    let (first, second, lost) = (engage("first"), engage("second"), engage("lost"));
    assert_eq!(table.read().unwrap().rules.len(), 3 * 10);
    drop(lost);
    let report = first.release(Pace::default(), None).unwrap();
    assert_eq!((report.counters.held, report.closing), (0, 0));
    second.drop_all().unwrap();
    assert_eq!(table.read().unwrap().rules.len(), 10, "an unreleased hold leaves its rules");
    drop(PreparedHold::new("unused".parse().unwrap(), &rules).unwrap());
    table.sweep_holds(&["lost".parse().unwrap()]).unwrap();
    assert_eq!(table.read().unwrap().rules.len(), 10, "one that is kept is kept");
    table.sweep_holds(&[]).unwrap();
    assert_eq!(table.read().unwrap().rules, []);
}

#[test]
#[ignore = "needs root"]
fn forwards_are_replaced_and_removed_and_nothing_else() {
    alone();
    let mut table = Table::open().unwrap();
    table.install().unwrap();
    let (tag, other): (RuleTag, RuleTag) = ("web".parse().unwrap(), "db".parse().unwrap());
    let (three, four) = (PeerNumber::new(3).unwrap(), PeerNumber::new(4).unwrap());
    let port = |to: &str, host| ForwardedPort {
        protocol: Protocol::Udp,
        address: host,
        to: to.parse().unwrap(),
        port: 8053,
    };
    let ports = vec![
        port("10.88.0.2:53", None),
        port("[fd00::2]:53", None),
        port("10.88.0.2:53", Some(address("192.0.2.1"))),
    ];
    let hidden = vec![(address("10.88.0.2"), 16), (address("fd00::2"), 64)];
    let sources = vec![address("192.0.2.1"), address("fd00:1::1")];
    let forward = |peer| Forward {
        peer,
        ports: ports.clone(),
        hidden: hidden.clone(),
        sources: sources.clone(),
    };
    table.forward(&other, &forward(four)).unwrap();
    let before = table.read().unwrap();
    for peer in [three, three, four] {
        table.forward(&tag, &forward(peer)).unwrap();
        let read = table.read().unwrap();
        assert_eq!(read.rules.len(), 2 * before.rules.len());
        let purpose = Purpose::Forward(peer, tag.clone());
        assert_eq!(read.with_purpose(&purpose).count(), before.rules.len());
    }
    let own = |ip| (address(ip), address(ip));
    table
        .accept(&tag, three, &[own("10.88.0.2"), (address("fd01::2"), address("fd00::2"))])
        .unwrap();
    table.accept(&tag, four, &[own("10.88.0.2")]).unwrap();
    table.unaccept(&tag, three).unwrap();
    table.unforward(&tag).unwrap();
    table.unforward(&tag).unwrap();
    assert_eq!(table.read().unwrap().rules.len(), before.rules.len() + 1);
    table.unaccept(&tag, four).unwrap();
    assert_eq!(table.read().unwrap(), before);
    let aliases = Aliases::new([5; 16]);
    let alias = |here| aliases.of(address(here)).unwrap();
    let both = |of: [&'static str; 2]| of.map(alias).to_vec();
    let gateways = both(["10.88.0.1", "fd00::1"]);
    let container = both(["10.88.0.2", "fd00::2"]);
    for _ in 0..2 {
        let exchange = TunnelNat {
            gateways: gateways.clone(),
            siblings: vec![(alias("10.88.0.3"), address("10.88.0.2"))],
            container: container.clone(),
            passing: vec![(three, container[0])],
            passing_ends: vec![(three, gateways[1], address("fd00::2"))],
        };
        table.set_tunnel_nat(&tag, &exchange).unwrap();
        assert_eq!(table.read().unwrap().rules.len(), before.rules.len() + 20);
    }
    table.remove_tunnel_nat(&tag).unwrap();
    assert_eq!(table.read().unwrap(), before);
}
