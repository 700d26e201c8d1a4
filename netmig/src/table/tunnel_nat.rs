//! Stateless NAT at the tunnels: addresses of the container's own network that mean something else
//! on its new host.
//!
//! A container that talks to its host, or to which its host talks by 127.0.0.1 or on behalf of a
//! sibling, sees the gateway's address as the other end. On its new host that is the address of
//! another gateway, so packets for it would go no further. In the tunnel each gateway therefore has
//! an *alias* ([`Alias`]), which conntrack on the new host translates to the gateway's address and
//! back. These rules translate packet by packet: the conntrack entry stays as it is.
//!
//! The same is done for the addresses of siblings that talk to the container by them, which may be
//! other containers' on its new host.
//!
//! It is also done for the container's own address if that differs on its new host: two containers
//! that had the same address on two hosts may meet there, with flows of equal tuples. Packets of
//! flows whose anchor is a third host are sent on with the address by which they came.
//!
//! Packets whose source is 127.0.0.1 have another source when they enter the tunnel, but they can
//! be routed there only with [`crate::tunnel::carry_loopback`]. Packets from the tunnel with such
//! an address are dropped.

use std::net::{IpAddr, Ipv4Addr};

use super::rules::NewRule;
use super::statement::{ORIGINAL, REPLY, Statement};
use super::{CHAIN_POSTROUTING, CHAIN_RAW, Purpose, RuleTag, Table, TableError};
use crate::flow::{Alias, TunnelNat};
use crate::peer_number::{ORIGINAL_MASK, REPLY_MASK};

/// 127.0.0.0/8.
pub(super) const LOOPBACK: (IpAddr, u8) = (IpAddr::V4(Ipv4Addr::LOCALHOST), 8);

fn translating(nat: &TunnelNat) -> Vec<NewRule> {
    let TunnelNat { gateways, siblings, container, passing, passing_ends } = nat;
    let rule = |chain: &str, statements: &[Statement]| NewRule {
        chain: chain.to_owned(),
        statements: statements.into(),
    };
    let mut rules = Vec::new();
    for Alias { here, address } in gateways {
        let source = [Statement::Source(*here), Statement::SetSource(*address)];
        rules.push(rule(CHAIN_POSTROUTING, &[&[Statement::OutputTunnel], &source[..]].concat()));
        let destination = [Statement::Destination(*address), Statement::SetDestination(*here)];
        rules.push(rule(CHAIN_RAW, &[&[Statement::InputTunnel], &destination[..]].concat()));
    }
    // Flows of theirs that have nothing to do with the container may use the same tunnel.
    for (Alias { here, address }, of) in siblings {
        let between =
            [Statement::OutputTunnel, Statement::Source(*here), Statement::Destination(*of)];
        let write = Statement::SetSource(*address);
        rules.push(rule(CHAIN_POSTROUTING, &[&between[..], &[write]].concat()));
        let destination = [Statement::Destination(*address), Statement::SetDestination(*here)];
        rules.push(rule(CHAIN_RAW, &[&[Statement::InputTunnel], &destination[..]].concat()));
    }
    if !rules.is_empty() {
        let claimed = Statement::SourceNetwork(LOOPBACK.0, LOOPBACK.1);
        let wanted = Statement::DestinationNetwork(LOOPBACK.0, LOOPBACK.1);
        let dropping = |step| rule(CHAIN_RAW, &[Statement::InputTunnel, step, Statement::Drop]);
        rules.extend([claimed, wanted].map(dropping));
    }
    for (anchor, Alias { here, address }, of) in passing_ends {
        let between =
            [Statement::Source(*here), Statement::Destination(*of), Statement::SetSource(*address)];
        for towards in towards_container(anchor.reply_mark(), anchor.original_mark()) {
            rules.push(rule(CHAIN_POSTROUTING, &[&towards[..], &between].concat()));
        }
    }
    let own = container.iter().map(|alias| (0, 0, alias));
    let passing =
        passing.iter().map(|(anchor, alias)| (anchor.reply_mark(), anchor.original_mark(), alias));
    for (of_reply, of_original, Alias { here, address }) in own.chain(passing) {
        let destination = [Statement::Destination(*here), Statement::SetDestination(*address)];
        for towards in towards_container(of_reply, of_original) {
            rules.push(rule(CHAIN_POSTROUTING, &[&towards[..], &destination].concat()));
        }
        let source = [Statement::Source(*address), Statement::SetSource(*here)];
        rules.push(rule(CHAIN_RAW, &[&[Statement::InputTunnel], &source[..]].concat()));
    }
    // By now the container has the address that it had here.
    for (_, Alias { here, address }, of) in passing_ends {
        let from =
            [Statement::InputTunnel, Statement::Source(*of), Statement::Destination(*address)];
        rules.push(rule(CHAIN_RAW, &[&from[..], &[Statement::SetDestination(*here)]].concat()));
    }
    rules
}

/// Returns the statements that match packets which enter a tunnel on their way to the container: of
/// flows that others opened, and of those that it opened itself. Where the anchor is another host,
/// the direction from the container is steered to a peer too, by these connmarks.
fn towards_container(of_reply: u32, of_original: u32) -> [[Statement; 3]; 2] {
    [(ORIGINAL, REPLY_MASK, of_reply), (REPLY, ORIGINAL_MASK, of_original)].map(
        |(direction, mask, value)| {
            [
                Statement::OutputTunnel,
                Statement::CtDirection(direction),
                Statement::Connmark { mask, value },
            ]
        },
    )
}

impl Table {
    /// Translates addresses and their aliases at the tunnels. This replaces what the same tag said
    /// before, and changes nothing where nothing is missing.
    ///
    /// # Errors
    /// [`TableError::Refused`] when the table is not installed, or nftables refuses;
    /// [`TableError::Read`].
    pub fn set_tunnel_nat(&mut self, tag: &RuleTag, nat: &TunnelNat) -> Result<(), TableError> {
        let purpose = Purpose::TunnelNat(tag.clone());
        self.put(&purpose, &translating(nat), |_| false, "exchange addresses at the tunnels")
    }

    /// Removes these rules; absent rules are not an error.
    ///
    /// # Errors
    /// [`TableError::Read`], [`TableError::Refused`] when the table cannot be read or changed.
    pub fn remove_tunnel_nat(&mut self, tag: &RuleTag) -> Result<(), TableError> {
        let purpose = Purpose::TunnelNat(tag.clone());
        self.remove_rules(|other| *other == purpose)
    }
}
