//! The nftables table of netmig: `inet netmig`.
//!
//! | chain | hook | priority | its rules |
//! | --- | --- | --- | --- |
//! | `hold` | prerouting | mangle − 1 (−151) | queue the packets towards a container ([`crate::hold`]) |
//! | `hold-output` | output | mangle − 1 (−151) | the same for this host's own packets |
//! | `late` ([`CHAIN_RAW`]) | prerouting | raw (−300) | let packets pass untracked that still come by a tunnel though their flow has become local; translate aliases ([`Alias`](crate::flow::Alias)) back; drop frames of a direct tunnel that are not the peer's |
//! | `stand-in` ([`CHAIN_POSTROUTING`]) | postrouting | srcnat + 100 (200) | translate addresses to their aliases on the way into a tunnel |
//! | `steer` | prerouting | mangle (−150) | connmark → packet mark, per peer |
//! | `steer-output` | output, type route | mangle (−150) | the same for this host's own packets |
//! | `forward` | prerouting, type nat | dstnat − 1 (−101) | DNAT new connections to a moved container's ports to its host ([`Forward`]) |
//! | `forward-output` | output, type nat | dstnat − 1 (−101) | the same for this host's own processes |
//! | `forward-source` | postrouting, type nat | srcnat − 1 (99) | SNAT those whose source the container's new host could not answer |
//!
//! `hold` and `steer` come after conntrack (−200) and before destination NAT (−100). So a held
//! packet is steered by the connmark that its flow has when the packet is released, not when it
//! arrived.
//!
//! The chains are fixed: [`Table::install`] adds missing ones and never changes existing ones,
//! because the kernel drops *every* queued packet of the network namespace when a base chain is
//! registered or unregistered (`nf_queue_nf_hook_drop`). For the same reason [`Table::remove`] must
//! not be called while any packet in the namespace is held. Rules can be added and removed at any
//! time. Two chains keep the names that earlier versions gave them.
//!
//! A hold has its rules in a regular chain of its own, `hold-TAG`, which is created in advance; a
//! jump rule in `hold` puts it in force.
//!
//! Every rule carries its [`Purpose`] in its comment, so that any later process recognises it: `nft
//! -a list table inet netmig` shows them. Tables of others are neither read nor changed
//! ([`Table::open_chain`] excepted). If the whole ruleset is flushed, [`Table::install`] and
//! [`Table::steer`] restore everything, and replace rules that others have changed; they change
//! nothing where nothing is missing. One process at a time may change the table.

mod chains;
mod compare;
mod contents;
mod counted_flows;
mod error;
mod forward;
mod hold;
mod notrack;
mod open_firewall;
mod owner_table;
mod path_trial;
mod purpose;
mod raw_expression;
mod rules;
mod statement;
mod transaction;
mod tunnel_nat;

use std::ffi::CString;

use nftnl::{Batch, MsgType, Policy, ProtoFamily};
use nix::errno::Errno;

use chains::CHAINS;
pub use chains::{
    CHAIN_FORWARD, CHAIN_FORWARD_OUTPUT, CHAIN_FORWARD_SOURCE, CHAIN_HOLD, CHAIN_HOLD_OUTPUT,
    CHAIN_POSTROUTING, CHAIN_RAW, CHAIN_STEER, CHAIN_STEER_OUTPUT,
};
pub use contents::{Contents, InstalledRule};
pub use counted_flows::{FlowCounter, PacketCount, Passage};
pub use error::TableError;
pub use forward::{Forward, ForwardedPort};
pub use hold::{HoldRules, OnHolderLoss, Queueing};
pub use notrack::LocalFarEnd;
pub use owner_table::{GUARD, Guard};
pub use purpose::{InvalidTag, Purpose, RuleTag};
pub(crate) use transaction::{HoldTransactions, Transaction};

use crate::netlink::{Connection, Protocol, SocketError};
use crate::peer_number::PeerNumber;
use crate::tunnel::HardwareAddress;

/// Name of the table, in family `inet`.
pub const TABLE: &str = "netmig";
/// The table in the network namespace in which this was opened.
///
/// All calls block for a fraction of a millisecond each, and are transactions: all or nothing.
pub struct Table {
    connection: Connection,
}

impl Table {
    /// Opens a connection to nftables; changes nothing.
    ///
    /// # Errors
    /// [`TableError::Open`] without CAP_NET_ADMIN, or on a kernel without nfnetlink.
    pub fn open() -> Result<Self, TableError> {
        let connection = Connection::open(Protocol::Netfilter).map_err(TableError::Open)?;
        Ok(Self { connection })
    }

    /// Adds the table and those of its chains that are missing.
    ///
    /// # Errors
    /// [`TableError::ForeignChain`] when a chain of netmig's name has another hook;
    /// [`TableError::Refused`], [`TableError::Read`].
    pub fn install(&mut self) -> Result<(), TableError> {
        let mut missing = Vec::new();
        for chain in &CHAINS {
            match contents::read_chain(&mut self.connection, chain.name)? {
                None => missing.push(chain),
                Some(found) if found.is(chain) => {}
                Some(_) => return Err(TableError::ForeignChain { chain: chain.name }),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let table = handle()?;
        let mut batch = Batch::new();
        batch.add(&table, MsgType::Add);
        for chain in missing {
            let mut new = nftnl::Chain::new(CString::new(chain.name)?, &table);
            new.set_hook(chain.hook, chain.priority);
            new.set_type(chain.kind);
            new.set_policy(Policy::Accept);
            batch.add(&new, MsgType::Add);
        }
        self.commit(batch, "create its table and chains")
    }

    /// Adds the rules that send packets of flows with the connmark of `peer` to its routing table.
    ///
    /// # Errors
    /// [`TableError::Refused`] when the table is not installed, or nftables refuses;
    /// [`TableError::Read`].
    pub fn steer(&mut self, peer: PeerNumber) -> Result<(), TableError> {
        let act = format!("steer flows to peer {peer}");
        self.put(&Purpose::Peer(peer), &rules::steering(peer), |_| false, &act)
    }

    /// Drops all frames that come by the direct tunnel to `peer`, except those of this sender.
    ///
    /// # Errors
    /// As [`Table::steer`].
    pub fn admit_sender(
        &mut self,
        peer: PeerNumber,
        sender: HardwareAddress,
    ) -> Result<(), TableError> {
        let act = format!("admit frames of peer {peer} alone");
        let replaced =
            |purpose: &Purpose| matches!(purpose, Purpose::Segment(of, _) if *of == peer);
        let rule = rules::admitting(peer, sender);
        self.put(&Purpose::Segment(peer, sender), &[rule], replaced, &act)
    }

    /// Makes `wanted` the rules of `purpose`. They replace that purpose's rules and those of other
    /// purposes for which `replaced` is true. Changes nothing if they are there unchanged.
    fn put(
        &mut self,
        purpose: &Purpose,
        wanted: &[rules::NewRule],
        replaced: impl Fn(&Purpose) -> bool,
        act: &str,
    ) -> Result<(), TableError> {
        let contents = self.read()?;
        let others = contents
            .rules
            .iter()
            .filter(|rule| rule.purpose.as_ref().is_some_and(|of| of != purpose && replaced(of)));
        let others: Vec<_> = others.collect();
        if others.is_empty() && compare::are(&contents, purpose, wanted)? {
            return Ok(());
        }
        let table = handle()?;
        let mut batch = Batch::new();
        for rule in contents.with_purpose(purpose).chain(others) {
            rules::delete(&mut batch, &table, rule)?;
        }
        for rule in wanted {
            rules::add(&mut batch, &table, rule, purpose)?;
        }
        self.commit(batch, act)?;
        let contents = self.read()?;
        compare::confirm(&contents, purpose, wanted)
    }

    /// Removes the rules of a peer; absent rules are not an error.
    ///
    /// # Errors
    /// [`TableError::Read`], [`TableError::Refused`] when the table cannot be read or changed.
    pub fn unsteer(&mut self, peer: PeerNumber) -> Result<(), TableError> {
        let traced = RuleTag::of_output(peer);
        self.remove_rules(|purpose| match purpose {
            Purpose::Peer(of) | Purpose::Segment(of, _) => *of == peer,
            Purpose::PathTrial(of) => *of == traced,
            _ => false,
        })
    }

    fn remove_rules(&mut self, which: impl Fn(&Purpose) -> bool) -> Result<(), TableError> {
        let contents = self.read()?;
        let table = handle()?;
        let mut batch = Batch::new();
        let owned: Vec<_> = contents
            .rules
            .iter()
            .filter(|rule| rule.purpose.as_ref().is_some_and(&which))
            .collect();
        if owned.is_empty() {
            return Ok(());
        }
        // A hold's own chain goes with its rules, once no rule jumps to it.
        let mut chains: Vec<&str> = owned.iter().map(|rule| rule.chain.as_str()).collect();
        chains.retain(|chain| CHAINS.iter().all(|base| base.name != *chain));
        chains.sort_unstable();
        chains.dedup();
        for rule in owned {
            rules::delete(&mut batch, &table, rule)?;
        }
        for chain in chains {
            batch.add(&nftnl::Chain::new(CString::new(chain)?, &table), MsgType::Del);
        }
        self.commit(batch, "remove rules of its table")
    }

    /// Removes the table with everything in it; an absent table is not an error.
    ///
    /// No packet may be held in this network namespace: all would be dropped.
    ///
    /// # Errors
    /// [`TableError::Refused`] when nftables refuses.
    pub fn remove(&mut self) -> Result<(), TableError> {
        let table = handle()?;
        let mut batch = Batch::new();
        // Adding first makes the removal of an absent table succeed.
        batch.add(&table, MsgType::Add);
        batch.add(&table, MsgType::Del);
        self.commit(batch, "remove its table")
    }

    /// Returns the rules of the table; none if there is no table.
    ///
    /// # Errors
    /// [`TableError::Read`] when nftables cannot be read.
    pub fn read(&mut self) -> Result<Contents, TableError> {
        contents::read(&mut self.connection)
    }

    /// Commits a prepared transaction.
    pub(crate) fn apply(&mut self, transaction: &Transaction, act: &str) -> Result<(), TableError> {
        let refusals = transaction.refusals(&mut self.connection)?;
        // Where one message fails, the others may be refused in its wake: the first tells why.
        match refusals.into_iter().next() {
            None => Ok(()),
            Some((_, refused)) => {
                Err(TableError::Refused { act: act.to_owned(), source: refused.into() })
            }
        }
    }

    fn commit(&mut self, batch: Batch, act: &str) -> Result<(), TableError> {
        self.apply(&Transaction::new(batch), act)
    }
}

fn handle() -> Result<nftnl::Table, TableError> {
    Ok(nftnl::Table::new(CString::new(TABLE)?, ProtoFamily::Inet))
}

/// Returns whether a refusal says that the object does not exist.
fn is_absent(error: &SocketError) -> bool {
    error.refusal() == Some(Errno::ENOENT)
}

#[cfg(test)]
mod tests;
