//! The rules of a path trial ([`crate::path_trial`]).

use nftnl::Batch;

use super::rules::{self, NewRule};
use super::statement::{ORIGINAL, Statement};
use super::{
    CHAIN_HOLD_OUTPUT, CHAIN_POSTROUTING, CHAIN_RAW, Purpose, RuleTag, Table, TableError,
    Transaction, handle,
};
use crate::flow::{Flow, Protocol, Tuple};
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

/// Returns the statements of rules that trace this host's own packets to the other end of a tunnel.
fn tracing_output(peer: PeerNumber, to: u16, from: u16) -> Vec<Vec<Statement>> {
    let mut all = vec![vec![
        Statement::OutputInterface(peer.interface()),
        Statement::DestinationPorts(Protocol::Udp, to, to),
        Statement::NfTrace,
    ]];
    if from != 0 {
        all.push(vec![
            Statement::DestinationPorts(Protocol::Udp, 1, u16::MAX),
            Statement::SourcePort(from),
            Statement::NfTrace,
        ]);
    }
    all
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

    /// Traces this host's own UDP packets that go into the tunnel to a peer for this port, and all from
    /// a port of this host's, if that is not 0. Returns the tag of the rules.
    ///
    /// # Errors
    /// As [`Table::add_path_trial`].
    pub(crate) fn trace_output(
        &mut self,
        peer: PeerNumber,
        to: u16,
        from: u16,
    ) -> Result<RuleTag, TableError> {
        let tag = RuleTag::of_output(peer);
        self.remove_path_trial(&tag)?;
        let (table, purpose) = (handle()?, Purpose::PathTrial(tag.clone()));
        let mut batch = Batch::new();
        for statements in tracing_output(peer, to, from) {
            let rule = NewRule { chain: CHAIN_HOLD_OUTPUT.to_owned(), statements };
            rules::add(&mut batch, &table, &rule, &purpose)?;
        }
        let transaction = Transaction::new(batch).inserting();
        self.apply(&transaction, "trace what this host sends to the other end of a tunnel")?;
        Ok(tag)
    }

    /// Removes these rules; absent rules are not an error.
    ///
    /// # Errors
    /// [`TableError::Read`], [`TableError::Refused`] when the table cannot be read or changed.
    pub fn remove_path_trial(&mut self, tag: &RuleTag) -> Result<(), TableError> {
        self.remove_rules(|purpose| matches!(purpose, Purpose::PathTrial(of) if of == tag))
    }
}
