//! Packets that come by a tunnel though their flow has become local: they pass conntrack untracked.

use std::net::IpAddr;

use nftnl::Batch;

use super::rules::{self, NewRule};
use super::statement::Statement;
use super::{CHAIN_POSTROUTING, CHAIN_RAW, Purpose, RuleTag, Table, TableError, handle};
use crate::flow::Alias;
use crate::peer_number::PeerNumber;

/// A far end of this host whose packets may still come from a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalFarEnd {
    /// Its address, with what stands for it.
    pub far: Alias,
    /// The container's address as they come for it, and as it is here.
    pub container: (IpAddr, IpAddr),
}

/// The rules that let packets from a peer past conntrack, each to the second address of a pair if it
/// came for the first.
fn notrack(peer: PeerNumber, addresses: &[(IpAddr, IpAddr)]) -> Vec<NewRule> {
    let rule = |(there, here): &(IpAddr, IpAddr)| {
        let mut statements =
            vec![Statement::InputInterface(peer.interface()), Statement::Destination(*there)];
        if there != here {
            statements.push(Statement::SetDestination(*here));
        }
        statements.push(Statement::NoTrack);
        NewRule { chain: CHAIN_RAW.to_owned(), statements }
    };
    addresses.iter().map(rule).collect()
}

/// The rules that let packets from a peer past conntrack that come from an address which stands for one of
/// this host, and give them that one when they have been routed: the kernel drops what comes from elsewhere
/// with an address of its own (`fib_validate_source`, `net/ipv4/fib_frontend.c`).
fn notrack_from(peer: PeerNumber, ends: &[LocalFarEnd]) -> Vec<NewRule> {
    let rules = |end: &LocalFarEnd| {
        let LocalFarEnd { far, container: (there, here) } = *end;
        let mut statements = vec![
            Statement::InputInterface(peer.interface()),
            Statement::Source(far.address),
            Statement::Destination(there),
        ];
        if there != here {
            statements.push(Statement::SetDestination(here));
        }
        statements.push(Statement::NoTrack);
        let leave = vec![
            Statement::Source(far.address),
            Statement::Destination(here),
            Statement::SetSource(far.here),
        ];
        [(CHAIN_RAW, statements), (CHAIN_POSTROUTING, leave)]
            .map(|(chain, statements)| NewRule { chain: chain.to_owned(), statements })
    };
    ends.iter().flat_map(rules).collect()
}

impl Table {
    /// Lets packets that come from `peer` for the first address of a pair past conntrack, and gives
    /// them the second.
    ///
    /// For a container that returns to its anchor: its flows' packets went from here to the peer, and
    /// those that were held there, or still on their way, come back. They have been translated here
    /// already, so that to conntrack they would be a new flow whose replies are those of the old one,
    /// which it refuses. To be removed by [`Table::remove_notrack`] when no more can come.
    ///
    /// # Errors
    /// When the table is not installed, or nftables refuses.
    pub fn add_notrack(
        &mut self,
        tag: &RuleTag,
        peer: PeerNumber,
        addresses: &[(IpAddr, IpAddr)],
    ) -> Result<(), TableError> {
        self.remove_notrack(tag)?;
        let table = handle()?;
        let purpose = Purpose::NoTrack(tag.clone());
        let mut batch = Batch::new();
        for rule in &notrack(peer, addresses) {
            rules::add(&mut batch, &table, rule, &purpose)?;
        }
        self.commit(batch, &format!("let late packets of peer {peer} pass"))
    }

    /// Lets packets of far ends of this host pass as well, which went to the peer before their container
    /// came here. To be removed by [`Table::remove_notrack`], too.
    ///
    /// # Errors
    /// When the table is not installed, or nftables refuses.
    pub fn add_notrack_from(
        &mut self,
        tag: &RuleTag,
        peer: PeerNumber,
        ends: &[LocalFarEnd],
    ) -> Result<(), TableError> {
        let table = handle()?;
        let purpose = Purpose::NoTrack(tag.clone());
        let mut batch = Batch::new();
        for rule in &notrack_from(peer, ends) {
            rules::add(&mut batch, &table, rule, &purpose)?;
        }
        self.commit(batch, &format!("let late packets of peer {peer} pass"))
    }

    /// Ends what [`Table::add_notrack`] began; absent means done.
    ///
    /// # Errors
    /// When the table cannot be read or changed.
    pub fn remove_notrack(&mut self, tag: &RuleTag) -> Result<(), TableError> {
        self.remove_rules(|purpose| matches!(purpose, Purpose::NoTrack(of) if of == tag))
    }
}
