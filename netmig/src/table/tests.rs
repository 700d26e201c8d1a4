//! The table against the running kernel.

use super::statement::Statement;
use std::net::IpAddr;

use super::*;
use crate::flow::{Alias, TunnelNat};
use nix::sched::{CloneFlags, unshare};

/// Puts another rule in the place of one of an purpose's, with the same comment and in the same chain.
fn tamper(table: &mut Table, purpose: &Purpose, statements: Vec<Statement>) -> u64 {
    let old = table.read().unwrap().with_purpose(purpose).last().unwrap().clone();
    let handle = handle().unwrap();
    let mut batch = Batch::new();
    rules::delete(&mut batch, &handle, &old).unwrap();
    let foreign = rules::NewRule { chain: old.chain, statements };
    rules::add(&mut batch, &handle, &foreign, purpose).unwrap();
    table.commit(batch, "tamper").unwrap();
    table.read().unwrap().with_purpose(purpose).map(|rule| rule.handle).max().unwrap()
}

#[test]
#[ignore = "needs root"]
fn a_rule_of_ours_that_others_have_changed_is_made_again() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let mut table = Table::open().unwrap();
    table.install().unwrap();
    let peer = PeerNumber::new(3).unwrap();
    let purpose = Purpose::Peer(peer);
    table.steer(peer).unwrap();
    let whole = table.read().unwrap().rules.len();
    let other = PeerNumber::new(4).unwrap();
    let mut almost = rules::steering(peer).pop().unwrap().statements;
    almost.pop();
    let wrong_peer = rules::steering(other).pop().unwrap().statements;
    for statements in [vec![Statement::Drop], almost, wrong_peer] {
        let foreign = tamper(&mut table, &purpose, statements);
        table.steer(peer).unwrap();
        let read = table.read().unwrap();
        assert_eq!(read.rules.len(), whole);
        assert!(read.rules.iter().all(|rule| rule.handle != foreign), "{read:?}");
        table.steer(peer).unwrap();
        assert_eq!(table.read().unwrap(), read, "nothing is changed where nothing is missing");
    }
}
#[test]
#[ignore = "needs root"]
fn the_kernel_gives_every_kind_of_rule_back_as_it_was_sent() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let mut table = Table::open().unwrap();
    table.install().unwrap();
    let peer = PeerNumber::new(3).unwrap();
    let tag: RuleTag = "web".parse().unwrap();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let port = |address, to: &str, port| ForwardedPort {
        protocol: crate::flow::Protocol::Tcp,
        address,
        to: to.parse().unwrap(),
        port,
    };
    let forward = Forward {
        peer,
        ports: vec![
            port(None, "10.88.0.2:80", 8080),
            port(Some(ip("192.0.2.1")), "10.88.0.2:81", 81),
            port(Some(ip("192.0.2.1")), "10.88.0.2:82", 82),
            port(None, "[fd00::2]:80", 8080),
        ],
        hidden: vec![(ip("10.88.0.2"), 16), (ip("fd00::2"), 64)],
        sources: vec![ip("192.0.2.1"), ip("fd01::1")],
    };
    let alias = |here, address| Alias { here: ip(here), address: ip(address) };
    let (four, six) = (alias("10.88.0.1", "198.18.0.1"), alias("fd00::1", "fd99::1"));
    let exchange = TunnelNat {
        gateways: vec![four, six],
        siblings: vec![(four, ip("10.88.0.2")), (six, ip("fd00::2"))],
        container: vec![four, six],
        passing: vec![(peer, four), (peer, six)],
        passing_ends: vec![(peer, four, ip("10.88.0.2")), (peer, six, ip("fd00::2"))],
    };
    let mut make = || {
        table.steer(peer).unwrap();
        table.admit_sender(peer, HardwareAddress([2, 0, 0, 0, 0, 1])).unwrap();
        table.forward(&tag, &forward).unwrap();
        let ways = [(ip("198.18.0.9"), ip("10.88.0.2")), (ip("fd00::2"), ip("fd00::2"))];
        table.accept(&tag, peer, &ways).unwrap();
        table.set_tunnel_nat(&tag, &exchange).unwrap();
        table.read().unwrap()
    };
    let made = make();
    assert_eq!(make(), made);
    let purposes: Vec<_> = made.rules.iter().filter_map(|rule| rule.purpose.as_ref()).collect();
    assert!(purposes.iter().all(|purpose| !compare::is_untold(purpose)), "{made:?}");
}
