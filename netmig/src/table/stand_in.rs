//! Addresses of the container's own network that mean something else on its new host.
//!
//! To a container that talks to its host, or to which its host talks by 127.0.0.1 or on behalf of a
//! container of the same network, the other end has the gateway's address. At its new host that is
//! the address of another gateway: packets for it would go no further. So in the tunnel each gateway
//! has a *stand-in* ([`StandIn`]), which its new host's conntrack translates into the gateway's
//! address, and back. Here the two are exchanged packet by packet: the entry of conntrack stays as it is.
//!
//! The same is done with the addresses of other containers of its network that talk to it by them, which
//! may be other containers' on its new host.
//!
//! And it is done with the container's own address if it has another one on its new host: two
//! containers that had the same address on two hosts may meet there, with flows of equal ends. Packets
//! of flows whose anchor is a third host are sent on with the address by which they came.
//!
//! Packets whose source is 127.0.0.1 have left it behind when they enter the tunnel, but to be routed
//! there they need [`crate::tunnel::carry_loopback`]; what comes from there with such an address is
//! dropped.

use std::net::{IpAddr, Ipv4Addr};

use super::rules::NewRule;
use super::step::{ORIGINAL, REPLY, Step};
use super::{CHAIN_LATE, CHAIN_STAND_IN, HoldTag, Owner, Table, TableError};
use crate::flow::{Exchange, StandIn};
use crate::peer::{ORIGINAL_MASK, REPLY_MASK};

/// 127.0.0.0/8.
pub(super) const LOOPBACK: (IpAddr, u8) = (IpAddr::V4(Ipv4Addr::LOCALHOST), 8);

fn exchanging(exchange: &Exchange) -> Vec<NewRule> {
    let Exchange { gateways, beside, container, passing, passing_ends } = exchange;
    let rule =
        |chain: &str, steps: &[Step]| NewRule { chain: chain.to_owned(), steps: steps.into() };
    let mut rules = Vec::new();
    for StandIn { here, address } in gateways {
        let source = [Step::FromAddress(*here), Step::WriteSource(*address)];
        rules.push(rule(CHAIN_STAND_IN, &[&[Step::TowardsTunnel], &source[..]].concat()));
        let destination = [Step::To(*address), Step::WriteDestination(*here)];
        rules.push(rule(CHAIN_LATE, &[&[Step::FromTunnel], &destination[..]].concat()));
    }
    // Flows of theirs that have nothing to do with the container may use the same tunnel.
    for (StandIn { here, address }, of) in beside {
        let between = [Step::TowardsTunnel, Step::FromAddress(*here), Step::To(*of)];
        let write = Step::WriteSource(*address);
        rules.push(rule(CHAIN_STAND_IN, &[&between[..], &[write]].concat()));
        let destination = [Step::To(*address), Step::WriteDestination(*here)];
        rules.push(rule(CHAIN_LATE, &[&[Step::FromTunnel], &destination[..]].concat()));
    }
    if !rules.is_empty() {
        let claimed = Step::FromNetwork(LOOPBACK.0, LOOPBACK.1);
        let wanted = Step::ToNetwork(LOOPBACK.0, LOOPBACK.1);
        let dropping = |step| rule(CHAIN_LATE, &[Step::FromTunnel, step, Step::Drop]);
        rules.extend([claimed, wanted].map(dropping));
    }
    for (anchor, StandIn { here, address }, of) in passing_ends {
        let between = [Step::FromAddress(*here), Step::To(*of), Step::WriteSource(*address)];
        for towards in towards_container(anchor.reply_mark(), anchor.original_mark()) {
            rules.push(rule(CHAIN_STAND_IN, &[&towards[..], &between].concat()));
        }
    }
    let own = container.iter().map(|stand_in| (0, 0, stand_in));
    let passing = passing
        .iter()
        .map(|(anchor, stand_in)| (anchor.reply_mark(), anchor.original_mark(), stand_in));
    for (of_reply, of_original, StandIn { here, address }) in own.chain(passing) {
        let destination = [Step::To(*here), Step::WriteDestination(*address)];
        for towards in towards_container(of_reply, of_original) {
            rules.push(rule(CHAIN_STAND_IN, &[&towards[..], &destination].concat()));
        }
        let source = [Step::FromAddress(*address), Step::WriteSource(*here)];
        rules.push(rule(CHAIN_LATE, &[&[Step::FromTunnel], &source[..]].concat()));
    }
    // By now the container has the address that it had here.
    for (_, StandIn { here, address }, of) in passing_ends {
        let from = [Step::FromTunnel, Step::FromAddress(*of), Step::To(*address)];
        rules.push(rule(CHAIN_LATE, &[&from[..], &[Step::WriteDestination(*here)]].concat()));
    }
    rules
}

/// What is true of packets that enter a tunnel on their way to the container: of flows that others have
/// opened, and of those that it has opened itself. Where the anchor is another host, the direction from the
/// container leads to a peer, too, by these marks.
fn towards_container(of_reply: u32, of_original: u32) -> [[Step; 3]; 2] {
    [(ORIGINAL, REPLY_MASK, of_reply), (REPLY, ORIGINAL_MASK, of_original)].map(
        |(direction, mask, value)| {
            [Step::TowardsTunnel, Step::Direction(direction), Step::Connmark { mask, value }]
        },
    )
}

impl Table {
    /// Exchanges addresses and their stand-ins at the tunnels, in place of what the same tag said
    /// before; changes nothing where nothing is missing.
    ///
    /// # Errors
    /// When the table is not installed, or nftables refuses.
    pub fn exchange(&mut self, tag: &HoldTag, exchange: &Exchange) -> Result<(), TableError> {
        let owner = Owner::StandIn(tag.clone());
        self.put(&owner, &exchanging(exchange), |_| false, "exchange addresses at the tunnels")
    }

    /// Ends what [`Table::exchange`] began; absent means done.
    ///
    /// # Errors
    /// When the table cannot be read or changed.
    pub fn end_exchange(&mut self, tag: &HoldTag) -> Result<(), TableError> {
        let owner = Owner::StandIn(tag.clone());
        self.remove_rules(|other| *other == owner)
    }
}
