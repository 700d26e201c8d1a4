//! Addresses of the container's own network that mean something else on its new host.
//!
//! To a container that talks to its host, or to which its host talks by 127.0.0.1 or on behalf of a
//! container of the same network, the other end has the gateway's address. At its new host that is
//! the address of another gateway: packets for it would go no further. So in the tunnel each gateway
//! has a *stand-in* ([`Alias`]), which its new host's conntrack translates into the gateway's
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

/// What is true of packets that enter a tunnel on their way to the container: of flows that others have
/// opened, and of those that it has opened itself. Where the anchor is another host, the direction from the
/// container leads to a peer, too, by these marks.
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
    /// Exchanges addresses and their stand-ins at the tunnels, in place of what the same tag said
    /// before; changes nothing where nothing is missing.
    ///
    /// # Errors
    /// When the table is not installed, or nftables refuses.
    pub fn set_tunnel_nat(&mut self, tag: &RuleTag, nat: &TunnelNat) -> Result<(), TableError> {
        let purpose = Purpose::TunnelNat(tag.clone());
        self.put(&purpose, &translating(nat), |_| false, "exchange addresses at the tunnels")
    }

    /// Ends what [`Table::set_tunnel_nat`] began; absent means done.
    ///
    /// # Errors
    /// When the table cannot be read or changed.
    pub fn remove_tunnel_nat(&mut self, tag: &RuleTag) -> Result<(), TableError> {
        let purpose = Purpose::TunnelNat(tag.clone());
        self.remove_rules(|other| *other == purpose)
    }
}
