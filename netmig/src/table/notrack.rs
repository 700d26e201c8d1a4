//! Packets that still come by a tunnel though their flow has become local: they pass untracked.

use std::net::IpAddr;

use nftnl::Batch;

use super::rules::{self, NewRule};
use super::statement::Statement;
use super::{CHAIN_POSTROUTING, CHAIN_RAW, Purpose, RuleTag, Table, TableError, handle};
use crate::flow::Alias;
use crate::peer_number::PeerNumber;

/// A far end on this host whose packets may still come from a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalFarEnd {
    /// Its address, with its alias.
    pub far: Alias,
    /// The container's address as the packets have it, and its address on this host.
    pub container: (IpAddr, IpAddr),
}

/// Returns the rules that let packets from a peer pass untracked, each to the second address of a
/// pair if it came for the first.
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

/// Returns the rules that let packets from a peer pass untracked whose source is the alias of an
/// address of this host. They get that address after routing: before it, the kernel drops packets
/// that come from another host with an address of this one (`fib_validate_source`,
/// `net/ipv4/fib_frontend.c`).
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
    /// Lets packets that come from `peer` for the first address of a pair pass untracked, and gives
    /// them the second.
    ///
    /// This is for a container that returns to its anchor. Its flows' packets went from here to the
    /// peer; those that were held there, or are still in flight, come back. They have had their NAT
    /// here already. To conntrack they would be a new flow whose replies clash with those of the
    /// old one, so it would drop them. [`Table::remove_notrack`] removes the rules when no more can
    /// come.
    ///
    /// # Errors
    /// [`TableError::Refused`] when the table is not installed, or nftables refuses;
    /// [`TableError::Read`].
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

    /// Does the same for packets of far ends on this host, which went to the peer before their
    /// container came here. [`Table::remove_notrack`] removes these rules too.
    ///
    /// # Errors
    /// As [`Table::add_notrack`].
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

    /// Removes these rules; absent rules are not an error.
    ///
    /// # Errors
    /// [`TableError::Read`], [`TableError::Refused`] when the table cannot be read or changed.
    pub fn remove_notrack(&mut self, tag: &RuleTag) -> Result<(), TableError> {
        self.remove_rules(|purpose| matches!(purpose, Purpose::NoTrack(of) if of == tag))
    }
}
