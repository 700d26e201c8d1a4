//! The rules as data, and their translation into a batch.

use std::ffi::CString;
use std::net::IpAddr;

use nftnl::{Batch, Chain, MsgType, Rule};
use serde::{Deserialize, Serialize};

use super::step::{ORIGINAL, REPLY, Step};
use super::{
    CHAIN_HOLD, CHAIN_HOLD_OUTPUT, CHAIN_LATE, CHAIN_STAND_IN, CHAIN_STEER, CHAIN_STEER_OUTPUT,
    HoldTag, InstalledRule, Owner, TableError,
};
use crate::flow::{Flow, Protocol, StandIn, Tuple};
use crate::marks::MarkBits;
use crate::peer::{ORIGINAL_MASK, PeerNumber, REPLY_MASK};
use crate::tunnel::HardwareAddress;

/// Most rules of one hold: each is a comparison for every packet of the host.
const MOST_HOLD_RULES: usize = 256;
/// Which expression queues packets on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Queueing {
    /// nftables' own `queue` (`nft_queue`).
    Native,
    /// The xtables target NFQUEUE through `nft_compat`, where `nft_queue` is missing.
    Compat,
}

impl Queueing {
    /// Its name, to show to people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Compat => "compat",
        }
    }
}

/// What happens to packets that arrive while a hold's rules are there but its holder is not
/// (it was killed). Packets that it was holding are dropped by the kernel either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OnHolderLoss {
    /// They pass as if there were no hold (the queue's bypass flag).
    Accept,
    /// They are dropped; TCP will send them again.
    Drop,
}

/// Which packets a hold takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRules {
    /// The container's addresses: packets *towards* them of any flow, whoever opened it.
    pub addresses: Vec<IpAddr>,
    /// Ports of this host that are published by the container: packets of new flows to them,
    /// which are not translated yet and so do not show the container's address.
    pub published: Vec<(Protocol, u16)>,
    /// What the kernel does when the holder is gone.
    pub on_loss: OnHolderLoss,
}

/// A rule to be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewRule {
    pub(super) chain: String,
    pub(super) steps: Vec<Step>,
}

/// A far end of this host whose packets may still come from a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LateEnd {
    /// Its address, with what stands for it.
    pub far: StandIn,
    /// The container's address as they come for it, and as it is here.
    pub container: (IpAddr, IpAddr),
}

/// The step that marks a packet for a peer's routing table.
pub(super) fn set_mark(peer: PeerNumber) -> Step {
    let bits = MarkBits::in_use();
    Step::SetMark { mask: bits.mask(), value: bits.mark(peer) }
}

/// The rules that turn the connmark's byte of a packet's direction into the skb mark.
pub(super) fn steering(peer: PeerNumber) -> Vec<NewRule> {
    let set = set_mark(peer);
    let directions =
        [(ORIGINAL, ORIGINAL_MASK, peer.original_mark()), (REPLY, REPLY_MASK, peer.reply_mark())];
    let mut rules = Vec::new();
    for chain in [CHAIN_STEER, CHAIN_STEER_OUTPUT] {
        for (direction, mask, value) in directions {
            let connmark = Step::Connmark { mask, value };
            let steps = vec![Step::Direction(direction), connmark, set.clone()];
            rules.push(NewRule { chain: chain.to_owned(), steps });
        }
    }
    rules
}

/// The rules that let packets from a peer past conntrack, each to the second address of a pair if it
/// came for the first.
pub(super) fn late(peer: PeerNumber, addresses: &[(IpAddr, IpAddr)]) -> Vec<NewRule> {
    let rule = |(there, here): &(IpAddr, IpAddr)| {
        let mut steps = vec![Step::From(peer.interface()), Step::To(*there)];
        if there != here {
            steps.push(Step::WriteDestination(*here));
        }
        steps.push(Step::Untracked);
        NewRule { chain: CHAIN_LATE.to_owned(), steps }
    };
    addresses.iter().map(rule).collect()
}

/// The rules that let packets from a peer past conntrack that come from an address which stands for one of
/// this host, and give them that one when they have been routed: the kernel drops what comes from elsewhere
/// with an address of its own (`fib_validate_source`, `net/ipv4/fib_frontend.c`).
pub(super) fn late_from(peer: PeerNumber, ends: &[LateEnd]) -> Vec<NewRule> {
    let rules = |end: &LateEnd| {
        let LateEnd { far, container: (there, here) } = *end;
        let mut steps =
            vec![Step::From(peer.interface()), Step::FromAddress(far.address), Step::To(there)];
        if there != here {
            steps.push(Step::WriteDestination(here));
        }
        steps.push(Step::Untracked);
        let leave =
            vec![Step::FromAddress(far.address), Step::To(here), Step::WriteSource(far.here)];
        [(CHAIN_LATE, steps), (CHAIN_STAND_IN, leave)]
            .map(|(chain, steps)| NewRule { chain: chain.to_owned(), steps })
    };
    ends.iter().flat_map(rules).collect()
}

/// The rule that drops what comes by the way to a peer in frames of anybody else on the segment, before
/// conntrack sees it.
pub(super) fn admitting(peer: PeerNumber, sender: HardwareAddress) -> NewRule {
    let steps = vec![Step::From(peer.interface()), Step::NotFromHardware(sender), Step::Drop];
    NewRule { chain: CHAIN_LATE.to_owned(), steps }
}

/// The rules that trace packets of flows, and drop those that would leave this host otherwise than to a peer.
pub(super) fn catching(peer: PeerNumber, flows: &[Flow]) -> Vec<NewRule> {
    let mut rules = Vec::new();
    for flow in flows {
        for Tuple { source, destination, source_port, destination_port } in
            [flow.original, flow.reply]
        {
            let steps = vec![
                Step::FromAddress(source),
                Step::To(destination),
                Step::Ports(flow.protocol, destination_port, destination_port),
                Step::SourcePort(source_port),
                Step::Trace,
                // Before rules for late packets of flows that come home, which pass untracked.
                Step::Accept,
            ];
            rules.push(NewRule { chain: CHAIN_LATE.to_owned(), steps });
        }
        let steps = vec![
            Step::NotTowards(peer.interface()),
            Step::FlowSource(ORIGINAL, flow.original.source),
            Step::FlowDestination(ORIGINAL, flow.original.destination),
            Step::FlowPorts(
                flow.protocol,
                flow.original.source_port,
                flow.original.destination_port,
            ),
            Step::Drop,
        ];
        rules.push(NewRule { chain: CHAIN_STAND_IN.to_owned(), steps });
    }
    rules
}

/// Name of the chain that has a hold's rules.
pub(super) fn hold_chain(tag: &HoldTag) -> String {
    format!("{CHAIN_HOLD}-{tag}")
}

/// The rules that put a hold in force.
pub(super) fn engaging(tag: &HoldTag) -> [NewRule; 2] {
    leading_to(tag, &[])
}

/// The rules that put a hold in force for new TCP connections only: their first packet waits.
pub(super) fn engaging_new(tag: &HoldTag) -> [NewRule; 2] {
    leading_to(tag, &[Step::StateNew, Step::Ports(Protocol::Tcp, 0, u16::MAX)])
}

/// Rules that lead what these steps match to the hold's own chain.
fn leading_to(tag: &HoldTag, which: &[Step]) -> [NewRule; 2] {
    [CHAIN_HOLD, CHAIN_HOLD_OUTPUT].map(|chain| NewRule {
        chain: chain.to_owned(),
        steps: [which, &[Step::Jump { chain: hold_chain(tag) }]].concat(),
    })
}

/// The rules of a hold, in a chain of its own to which nothing leads yet.
///
/// Only packets towards the container are taken: what it sent before it was frozen reaches its
/// peers at once.
pub(super) fn holding(
    tag: &HoldTag,
    rules: &HoldRules,
    number: u16,
    queueing: Queueing,
) -> Result<Vec<NewRule>, TableError> {
    let bypass = rules.on_loss == OnHolderLoss::Accept;
    let queue = Step::Queue { number, bypass, queueing };
    let mut all = Vec::new();
    let mut addresses = rules.addresses.clone();
    addresses.sort_unstable();
    addresses.dedup();
    for address in addresses {
        // Towards the container goes the original direction of flows whose replies come from it,
        // and the reply direction of flows that it opened.
        for (direction, source_of) in [(ORIGINAL, REPLY), (REPLY, ORIGINAL)] {
            let from = Step::FlowSource(source_of, address);
            all.push(vec![Step::Direction(direction), from, queue.clone()]);
        }
    }
    for (protocol, first, last) in port_ranges(&rules.published) {
        let ports = Step::Ports(protocol, first, last);
        all.push(vec![Step::StateNew, ports, Step::ToThisHost, queue.clone()]);
    }
    if !(1..=MOST_HOLD_RULES).contains(&all.len()) {
        return Err(TableError::NumberOfRules { asked: all.len(), most: MOST_HOLD_RULES });
    }
    let chain = hold_chain(tag);
    Ok(all.into_iter().map(|steps| NewRule { chain: chain.clone(), steps }).collect())
}

/// Ports as ranges, in order.
fn port_ranges(ports: &[(Protocol, u16)]) -> Vec<(Protocol, u16, u16)> {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports.dedup();
    let mut ranges: Vec<(Protocol, u16, u16)> = Vec::new();
    for (protocol, port) in ports {
        match ranges.last_mut() {
            Some((of, _, last)) if *of == protocol && last.checked_add(1) == Some(port) => {
                *last = port;
            }
            _ => ranges.push((protocol, port, port)),
        }
    }
    ranges
}

/// Appends a rule to a batch.
pub(super) fn add(
    batch: &mut Batch,
    table: &nftnl::Table,
    rule: &NewRule,
    owner: &Owner,
) -> Result<(), TableError> {
    let chain = Chain::new(CString::new(rule.chain.as_str())?, table);
    let mut new = Rule::new(&chain);
    for step in &rule.steps {
        step.add_to(&mut new)?;
    }
    // Owners are shorter than a comment may be: tags hold 64 bytes, comments 128.
    let _ = new.set_comment(CString::new(owner.to_string())?);
    batch.add(&new, MsgType::Add);
    Ok(())
}

/// Appends a rule that does nothing but need a form of queueing.
pub(super) fn add_probe(
    batch: &mut Batch,
    table: &nftnl::Table,
    queueing: Queueing,
) -> Result<(), TableError> {
    let chain = Chain::new(CString::new(CHAIN_HOLD)?, table);
    let mut rule = Rule::new(&chain);
    Step::Queue { number: 0, bypass: true, queueing }.add_to(&mut rule)?;
    batch.add(&rule, MsgType::Add);
    Ok(())
}

/// Appends the removal of a rule to a batch.
pub(super) fn delete(
    batch: &mut Batch,
    table: &nftnl::Table,
    rule: &InstalledRule,
) -> Result<(), TableError> {
    let chain = Chain::new(CString::new(rule.chain.as_str())?, table);
    let mut old = Rule::new(&chain);
    old.set_handle(rule.handle);
    batch.add(&old, MsgType::Del);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steering_covers_both_directions_in_both_chains() {
        let rules = steering(PeerNumber::new(2).unwrap());
        assert_eq!(rules.len(), 4);
        for chain in [CHAIN_STEER, CHAIN_STEER_OUTPUT] {
            let connmarks: Vec<_> = rules
                .iter()
                .filter(|rule| rule.chain == chain)
                .map(|rule| rule.steps[..2].to_vec())
                .collect();
            assert_eq!(
                connmarks,
                [
                    vec![
                        Step::Direction(ORIGINAL),
                        Step::Connmark { mask: 0x00ff_0000, value: 0x0002_0000 }
                    ],
                    vec![
                        Step::Direction(REPLY),
                        Step::Connmark { mask: 0xff00_0000, value: 0x0200_0000 }
                    ],
                ]
            );
        }
        let set = Step::SetMark { mask: 0x00ff_0000, value: 0x0002_0000 };
        assert!(rules.iter().all(|rule| rule.steps[2] == set));
    }

    fn tag() -> HoldTag {
        "web".parse().unwrap()
    }

    fn hold(published: Vec<(Protocol, u16)>) -> HoldRules {
        HoldRules {
            addresses: vec!["10.88.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            published,
            on_loss: OnHolderLoss::Drop,
        }
    }

    #[test]
    fn a_hold_takes_packets_towards_the_container_only() {
        let rules = holding(&tag(), &hold(vec![]), 7, Queueing::Native).unwrap();
        assert_eq!(rules.len(), 4);
        for rule in rules {
            let [Step::Direction(packet), Step::FlowSource(source, _), Step::Queue { bypass, .. }] =
                rule.steps[..]
            else {
                panic!("{rule:?}")
            };
            assert_ne!(packet, source, "the container is the other direction's source");
            assert!(!bypass);
        }
    }

    #[test]
    fn neighbouring_ports_become_one_rule() {
        use Protocol::{Tcp, Udp};
        let ports = [(Udp, 53), (Tcp, 81), (Tcp, 80), (Tcp, 80), (Tcp, 82), (Udp, 65535)];
        assert_eq!(port_ranges(&ports), [(Tcp, 80, 82), (Udp, 53, 53), (Udp, 65535, 65535)]);
    }

    #[test]
    fn too_many_rules_are_refused() {
        let scattered = (0..300).map(|n| (Protocol::Tcp, n * 2)).collect();
        let refused = holding(&tag(), &hold(scattered), 7, Queueing::Compat);
        assert!(matches!(refused, Err(TableError::NumberOfRules { asked: 304, .. })));
    }
}
