//! The rules of a path trial ([`crate::path_trial`]).

use nftnl::Batch;

use super::rules::{self, NewRule};
use super::statement::{ORIGINAL, Statement};
use super::{
    CHAIN_POSTROUTING, CHAIN_RAW, Purpose, RuleTag, Table, TableError, Transaction, handle,
};
use crate::flow::{Flow, Tuple};
use crate::peer_number::PeerNumber;

/// Returns the rules that trace packets of the twins, and drop those that would leave this host
/// otherwise than to a peer.
fn catching(peer: PeerNumber, flows: &[Flow]) -> Vec<NewRule> {
    let mut rules = Vec::new();
    for flow in flows {
        for Tuple { source, destination, source_port, destination_port } in
            [flow.original, flow.reply]
        {
            let statements = vec![
                Statement::Source(source),
                Statement::Destination(destination),
                Statement::DestinationPorts(flow.protocol, destination_port, destination_port),
                Statement::SourcePort(source_port),
                Statement::NfTrace,
                // Before the rules that let packets pass untracked.
                Statement::Accept,
            ];
            rules.push(NewRule { chain: CHAIN_RAW.to_owned(), statements });
        }
        let statements = vec![
            Statement::NotOutputInterface(peer.interface()),
            Statement::CtSource(ORIGINAL, flow.original.source),
            Statement::CtDestination(ORIGINAL, flow.original.destination),
            Statement::CtPorts(
                flow.protocol,
                flow.original.source_port,
                flow.original.destination_port,
            ),
            Statement::Drop,
        ];
        rules.push(NewRule { chain: CHAIN_POSTROUTING.to_owned(), statements });
    }
    rules
}

impl Table {
    /// Traces packets of the twins, and lets none of them leave this host except to `peer`. This
    /// covers all packets of their conntrack entries, ICMP errors and resets included.
    ///
    /// # Errors
    /// [`TableError::Refused`] when the table is not installed, or nftables refuses;
    /// [`TableError::Read`].
    pub(crate) fn add_path_trial(
        &mut self,
        tag: &RuleTag,
        peer: PeerNumber,
        flows: &[Flow],
    ) -> Result<(), TableError> {
        self.remove_path_trial(tag)?;
        let table = handle()?;
        let purpose = Purpose::PathTrial(tag.clone());
        let mut batch = Batch::new();
        for rule in &catching(peer, flows) {
            rules::add(&mut batch, &table, rule, &purpose)?;
        }
        let transaction = Transaction::new(batch).inserting();
        self.apply(&transaction, "catch packets that try the ways of flows")
    }

    /// Removes these rules; absent rules are not an error.
    ///
    /// # Errors
    /// [`TableError::Read`], [`TableError::Refused`] when the table cannot be read or changed.
    pub fn remove_path_trial(&mut self, tag: &RuleTag) -> Result<(), TableError> {
        self.remove_rules(|purpose| matches!(purpose, Purpose::PathTrial(of) if of == tag))
    }
}
