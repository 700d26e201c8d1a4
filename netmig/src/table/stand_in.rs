//! Flows whose other end is this host's side of the container's own network.
//!
//! To a container that talks to its host, or to which its host talks by 127.0.0.1 or on behalf of a
//! container of the same network, the other end has the gateway's address. At its new host that is
//! the address of another gateway: packets for it would go no further. So in the tunnel each gateway
//! has a *stand-in* ([`StandIn`]), which its new host's conntrack translates into the gateway's
//! address, and back. Here the two are exchanged packet by packet: the entry of conntrack stays as it is.
//!
//! Packets whose source is 127.0.0.1 have left it behind when they enter the tunnel, but to be routed
//! there they need [`crate::tunnel::carry_loopback`]; what comes from there with such an address is
//! dropped.

use std::net::{IpAddr, Ipv4Addr};

use super::rules::NewRule;
use super::step::Step;
use super::{CHAIN_LATE, CHAIN_STAND_IN, HoldTag, Owner, Table, TableError};
use crate::flow::StandIn;

/// 127.0.0.0/8.
pub(super) const LOOPBACK: (IpAddr, u8) = (IpAddr::V4(Ipv4Addr::LOCALHOST), 8);

fn exchanging(stand_ins: &[StandIn]) -> Vec<NewRule> {
    let rule = |chain: &str, steps| NewRule { chain: chain.to_owned(), steps };
    let mut rules = Vec::new();
    for StandIn { gateway, address } in stand_ins {
        let steps = vec![Step::TowardsTunnel, Step::FromAddress(*gateway)];
        rules.push(rule(CHAIN_STAND_IN, [steps, vec![Step::WriteSource(*address)]].concat()));
        let steps = vec![Step::FromTunnel, Step::To(*address)];
        rules.push(rule(CHAIN_LATE, [steps, vec![Step::WriteDestination(*gateway)]].concat()));
    }
    if !rules.is_empty() {
        let claimed = Step::FromNetwork(LOOPBACK.0, LOOPBACK.1);
        let wanted = Step::ToNetwork(LOOPBACK.0, LOOPBACK.1);
        let dropping = |step| rule(CHAIN_LATE, vec![Step::FromTunnel, step, Step::Drop]);
        rules.extend([claimed, wanted].map(dropping));
    }
    rules
}

impl Table {
    /// Exchanges gateways and their stand-ins at the tunnels, in place of what the same tag said
    /// before; changes nothing where nothing is missing.
    ///
    /// # Errors
    /// When the table is not installed, or nftables refuses.
    pub fn stand_in(&mut self, tag: &HoldTag, stand_ins: &[StandIn]) -> Result<(), TableError> {
        let owner = Owner::StandIn(tag.clone());
        self.put(&owner, &exchanging(stand_ins), |_| false, "exchange addresses at the tunnels")
    }

    /// Ends what [`Table::stand_in`] began; absent means done.
    ///
    /// # Errors
    /// When the table cannot be read or changed.
    pub fn remove_stand_ins(&mut self, tag: &HoldTag) -> Result<(), TableError> {
        let owner = Owner::StandIn(tag.clone());
        self.remove_rules(|other| *other == owner)
    }
}
