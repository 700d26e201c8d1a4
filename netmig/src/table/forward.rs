//! Forwarding new connections to the ports of a container that has moved.
//!
//! On the container's former host a new connection to one of its ports gets the connmark of the
//! peer, like a moved flow, and DNAT to the container's own address, so that it goes through the
//! tunnel. The peer marks connections that come by the tunnel for the container, so that the
//! answers come back. All later packets follow these connmarks and NAT entries: removing the rules
//! ends no connection.
//!
//! The container's new host cannot answer some sources, which are replaced by an address of this
//! host: its loopback, the container's own network (whose addresses are on a link over there), and
//! the peer. Answers are translated back as they come out of the tunnel, so no interface needs that
//! address. Packets whose source is a loopback address leave only by an interface with
//! `route_localnet` set (see [`crate::tunnel::carry_loopback`]); so packets from the tunnel that
//! have such an address as source or destination are dropped.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::rules::{NewRule, set_mark};
use super::statement::Statement;
use super::tunnel_nat::LOOPBACK;
use super::{
    CHAIN_FORWARD, CHAIN_FORWARD_OUTPUT, CHAIN_FORWARD_SOURCE, CHAIN_RAW, CHAIN_STEER, Purpose,
    RuleTag, Table, TableError,
};
use crate::flow::Protocol;
use crate::peer_number::{ORIGINAL_MASK, PeerNumber, REPLY_MASK};

/// Most rules for one container.
const MOST_RULES: usize = 4096;

/// A port of this host that is forwarded to a port of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ForwardedPort {
    /// The protocol.
    pub protocol: Protocol,
    /// The host's address on which it is published; `None` for all.
    pub address: Option<IpAddr>,
    /// The container's address and port, which also determine the family.
    pub to: SocketAddr,
    /// The host's port.
    pub port: u16,
}

/// Where new connections for a container go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The peer that has the container, or is the next hop towards it.
    pub peer: PeerNumber,
    /// The ports.
    pub ports: Vec<ForwardedPort>,
    /// Sources to be replaced, in addition to 127.0.0.0/8: an address and a prefix length.
    pub hidden: Vec<(IpAddr, u8)>,
    /// The addresses that replace them, one of each family.
    pub sources: Vec<IpAddr>,
}

/// Adjacent ports that keep their number, or a single port.
struct Range {
    first: ForwardedPort,
    last: u16,
}

impl Range {
    fn takes(&self, next: &ForwardedPort) -> bool {
        let kept = |port: &ForwardedPort| port.port == port.to.port();
        let place = |port: &ForwardedPort| (port.protocol, port.address, port.to.ip());
        kept(&self.first)
            && kept(next)
            && place(&self.first) == place(next)
            && self.last.checked_add(1) == Some(next.port)
    }

    fn statements(&self, peer: PeerNumber) -> Vec<Statement> {
        let ForwardedPort { protocol, address, to, port } = self.first;
        let place = match address {
            Some(address) => Statement::Destination(address),
            None => Statement::DestinationIsLocal,
        };
        let target = (to.port() != port).then(|| to.port());
        vec![
            Statement::Family(to.ip()),
            Statement::DestinationPorts(protocol, port, self.last),
            place,
            Statement::SetConnmark { mask: ORIGINAL_MASK, value: peer.original_mark() },
            set_mark(peer),
            Statement::Dnat(to.ip(), target),
        ]
    }
}

fn ranges(ports: &[ForwardedPort]) -> Vec<Range> {
    let sorted: BTreeSet<_> = ports
        .iter()
        .map(|port| (port.protocol, port.address, port.to.ip(), port.port, *port))
        .filter(|(_, address, to, ..)| address.is_none_or(|own| own.is_ipv4() == to.is_ipv4()))
        .collect();
    let mut ranges: Vec<Range> = Vec::new();
    for (.., port) in sorted {
        match ranges.last_mut() {
            Some(range) if range.takes(&port) => range.last = port.port,
            _ => ranges.push(Range { first: port, last: port.port }),
        }
    }
    ranges
}

fn forwarding(forward: &Forward) -> Result<Vec<NewRule>, TableError> {
    let peer = forward.peer;
    let rule = |chain: &str, statements| NewRule { chain: chain.to_owned(), statements };
    let mut rules = Vec::new();
    for range in ranges(&forward.ports) {
        rules.push(rule(CHAIN_FORWARD, range.statements(peer)));
        rules.push(rule(CHAIN_FORWARD_OUTPUT, range.statements(peer)));
    }
    let hidden: BTreeSet<_> = forward.hidden.iter().copied().chain([LOOPBACK]).collect();
    for (address, length) in hidden {
        let same_family = |other: &&IpAddr| other.is_ipv4() == address.is_ipv4();
        let Some(source_address) = forward.sources.iter().find(same_family) else { continue };
        let marked = Statement::Connmark { mask: ORIGINAL_MASK, value: peer.original_mark() };
        let source = Statement::SourceNetwork(address, length);
        let way = Statement::OutputInterface(peer.interface());
        rules.push(rule(
            CHAIN_FORWARD_SOURCE,
            vec![way, marked, source, Statement::Snat(*source_address)],
        ));
    }
    let by = || Statement::InputInterface(peer.interface());
    let claimed = Statement::SourceNetwork(LOOPBACK.0, LOOPBACK.1);
    let wanted = Statement::DestinationNetwork(LOOPBACK.0, LOOPBACK.1);
    rules.extend([claimed, wanted].map(|step| rule(CHAIN_RAW, vec![by(), step, Statement::Drop])));
    if rules.len() > MOST_RULES {
        return Err(TableError::NumberOfForwards { asked: rules.len(), most: MOST_RULES });
    }
    Ok(rules)
}

fn accepting(peer: PeerNumber, addresses: &[(IpAddr, IpAddr)]) -> Vec<NewRule> {
    let mut rules = Vec::new();
    for (there, here) in addresses {
        let mut rule = |chain: &str, statements: Vec<Statement>| {
            let of_peer =
                vec![Statement::InputInterface(peer.interface()), Statement::Destination(*there)];
            rules.push(NewRule {
                chain: chain.to_owned(),
                statements: [of_peer, statements].concat(),
            });
        };
        let answer = Statement::SetConnmark { mask: REPLY_MASK, value: peer.reply_mark() };
        rule(CHAIN_STEER, vec![Statement::CtStateNew, answer]);
        if there != here {
            rule(CHAIN_FORWARD, vec![Statement::Dnat(*here, None)]);
        }
    }
    rules
}

impl Table {
    /// Forwards new connections as `forward` says. This replaces what the same tag said before, and
    /// changes nothing where nothing is missing.
    ///
    /// # Errors
    /// [`TableError::NumberOfForwards`] for too many ports; [`TableError::Refused`] when the table
    /// is not installed, or nftables refuses; [`TableError::Read`].
    pub fn forward(&mut self, tag: &RuleTag, forward: &Forward) -> Result<(), TableError> {
        let purpose = Purpose::Forward(forward.peer, tag.clone());
        let rules = forwarding(forward)?;
        let earlier = |other: &Purpose| matches!(other, Purpose::Forward(_, of) if of == tag);
        self.put(&purpose, &rules, earlier, "forward new connections")
    }

    /// Ends forwarding, for new connections only; absent rules are not an error.
    ///
    /// # Errors
    /// [`TableError::Read`], [`TableError::Refused`] when the table cannot be read or changed.
    pub fn unforward(&mut self, tag: &RuleTag) -> Result<(), TableError> {
        self.remove_rules(|purpose| matches!(purpose, Purpose::Forward(_, of) if of == tag))
    }

    /// Accepts new connections that come by the tunnel to `peer` for the first address of a pair:
    /// the second one answers them, by the same tunnel. Changes nothing where nothing is missing.
    ///
    /// # Errors
    /// [`TableError::Refused`] when the table is not installed, or nftables refuses;
    /// [`TableError::Read`].
    pub fn accept(
        &mut self,
        tag: &RuleTag,
        peer: PeerNumber,
        addresses: &[(IpAddr, IpAddr)],
    ) -> Result<(), TableError> {
        let purpose = Purpose::Accept(peer, tag.clone());
        let act = format!("take new connections from peer {peer}");
        self.put(&purpose, &accepting(peer, addresses), |_| false, &act)
    }

    /// Ends this, for new connections only; absent rules are not an error.
    ///
    /// # Errors
    /// As [`Table::unforward`].
    pub fn unaccept(&mut self, tag: &RuleTag, peer: PeerNumber) -> Result<(), TableError> {
        let purpose = Purpose::Accept(peer, tag.clone());
        self.remove_rules(|other| *other == purpose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host: Option<&str>, port: u16, to: &str) -> ForwardedPort {
        let address = host.map(|host| host.parse().unwrap());
        ForwardedPort { protocol: Protocol::Tcp, address, to: to.parse().unwrap(), port }
    }

    fn spans(ports: &[ForwardedPort]) -> Vec<(u16, u16)> {
        ranges(ports).iter().map(|range| (range.first.port, range.last)).collect()
    }

    #[test]
    fn only_ports_that_keep_their_number_share_a_rule() {
        let kept = |number| port(None, number, &format!("10.88.0.2:{number}"));
        assert_eq!(spans(&[kept(81), kept(80), kept(82), kept(90)]), [(80, 82), (90, 90)]);
        let moved = |number| port(None, number, "10.88.0.2:80");
        assert_eq!(spans(&[moved(8080), moved(8081)]), [(8080, 8080), (8081, 8081)]);
        let there = port(Some("192.0.2.1"), 81, "10.88.0.2:81");
        assert_eq!(spans(&[kept(80), there]), [(80, 80), (81, 81)]);
        let six = port(Some("192.0.2.1"), 81, "[fd00::2]:81");
        assert_eq!(spans(&[six]), [], "an IPv4 address never leads to an IPv6 one");
    }

    #[test]
    fn a_new_connection_is_marked_before_it_is_translated() {
        let peer = PeerNumber::new(3).unwrap();
        let ports = vec![port(None, 8080, "10.88.0.2:80")];
        let hidden = vec![("10.88.0.2".parse().unwrap(), 16), ("fd00::2".parse().unwrap(), 64)];
        let sources = vec!["192.0.2.1".parse().unwrap()];
        let forward = Forward { peer, ports, hidden, sources };
        let rules = forwarding(&forward).unwrap();
        let of = |chain: &str| rules.iter().filter(|rule| rule.chain == chain).count();
        assert_eq!((of(CHAIN_FORWARD), of(CHAIN_FORWARD_OUTPUT)), (1, 1));
        assert_eq!((of(CHAIN_FORWARD_SOURCE), of(CHAIN_RAW)), (2, 2));
        let statements = &rules[0].statements;
        assert!(
            statements.contains(&Statement::SetConnmark { mask: 0x00ff_0000, value: 0x0003_0000 })
        );
        assert_eq!(
            statements.last(),
            Some(&Statement::Dnat("10.88.0.2".parse().unwrap(), Some(80)))
        );
        let [own, other] = ["10.88.0.2", "198.18.0.7"].map(|ip| ip.parse().unwrap());
        let answers = accepting(peer, &[(own, own), (other, own)]);
        let mark = Statement::SetConnmark { mask: 0xff00_0000, value: 0x0300_0000 };
        assert_eq!(answers[0].statements.last(), Some(&mark));
        assert_eq!(answers.len(), 3, "only the other address is translated");
        assert_eq!(answers[2].statements.last(), Some(&Statement::Dnat(own, None)));
    }

    #[test]
    fn too_many_ports_are_refused() {
        let ports = (1..60_000).map(|number| port(None, number, "10.88.0.2:80")).collect();
        let (hidden, sources) = (vec![], vec![]);
        let forward = Forward { peer: PeerNumber::new(3).unwrap(), ports, hidden, sources };
        assert!(matches!(forwarding(&forward), Err(TableError::NumberOfForwards { .. })));
    }
}
