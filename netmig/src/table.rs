//! The one nftables table of netmig: `inet netmig`.
//!
//! | chain | hook | priority | its rules |
//! | --- | --- | --- | --- |
//! | `hold` | prerouting | mangle − 1 (−151) | queue the packets towards a container ([`crate::hold`]) |
//! | `hold-output` | output | mangle − 1 (−151) | the same for this host's own packets |
//! | `late` | prerouting | raw (−300) | packets of flows that have become local, and come by way of a tunnel still, pass untracked; [`StandIn`](crate::flow::StandIn)s become again what they stand for; what comes by a direct way from others than its peer is dropped |
//! | `stand-in` | postrouting | srcnat + 100 (200) | addresses become their stand-ins on the way into a tunnel |
//! | `steer` | prerouting | mangle (−150) | connmark → skb mark, per peer |
//! | `steer-output` | output, type route | mangle (−150) | the same for this host's own packets |
//! | `forward` | prerouting, type nat | dstnat − 1 (−101) | new connections to a moved container's ports go on to its host ([`Forward`]) |
//! | `forward-output` | output, type nat | dstnat − 1 (−101) | the same for this host's own processes |
//! | `forward-source` | postrouting, type nat | srcnat − 1 (99) | another source for those that its new host could not answer |
//!
//! `hold` and `steer` come after conntrack (−200) and before destination translation
//! (−100). A packet that was held is therefore steered by the mark that its flow has when it is
//! released, not when it arrived.
//!
//! The chains are fixed: [`Table::install`] makes those that are missing and never touches one
//! that is there, because the kernel drops *every* queued packet of the network namespace when a
//! base chain is registered or unregistered (`nf_queue_nf_hook_drop`). For the same reason
//! [`Table::remove`] must not be called while anything in the namespace is held. Rules come and
//! go without harm.
//!
//! A hold has its rules in a regular chain of its own, `hold-TAG`, which is made beforehand; a
//! rule in `hold` that jumps there puts it in force.
//!
//! Every rule carries its [`Owner`] as a comment, so that any later process can tell whose it is:
//! `nft -a list table inet netmig` shows them. Tables of others are neither read nor changed. If
//! someone flushes the whole ruleset, [`Table::install`] and [`Table::steer`] put everything
//! back, also in place of rules that others have changed; they change nothing where nothing is missing. One process at a time may change the
//! table.

mod chains;
mod contents;
mod count;
mod error;
mod expression;
mod expressions;
mod forward;
mod guard;
mod open;
mod owner;
mod present;
mod rules;
mod stand_in;
mod step;
mod transaction;

use std::ffi::CString;
use std::net::IpAddr;
use std::sync::OnceLock;

use nftnl::{Batch, MsgType, Policy, ProtoFamily};
use nix::errno::Errno;

use chains::CHAINS;
pub use chains::{
    CHAIN_FORWARD, CHAIN_FORWARD_OUTPUT, CHAIN_FORWARD_SOURCE, CHAIN_HOLD, CHAIN_HOLD_OUTPUT,
    CHAIN_LATE, CHAIN_STAND_IN, CHAIN_STEER, CHAIN_STEER_OUTPUT,
};
pub use contents::{Contents, InstalledRule};
pub use count::Passed;
pub use error::TableError;
pub use forward::{Forward, ForwardedPort};
pub use guard::{GUARD, Guard};
pub use owner::{HoldTag, InvalidTag, Owner};
pub use rules::{HoldRules, LateEnd, OnHolderLoss, Queueing};
pub(crate) use transaction::{HoldTransactions, Transaction};

use crate::flow::Flow;
use crate::netlink::{Connection, Protocol, SocketError};
use crate::peer::PeerNumber;
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
    /// Without CAP_NET_ADMIN, or on a kernel without nfnetlink.
    pub fn open() -> Result<Self, TableError> {
        let connection = Connection::open(Protocol::Netfilter).map_err(TableError::Open)?;
        Ok(Self { connection })
    }

    /// Makes the table and those of its chains that are missing.
    ///
    /// # Errors
    /// [`TableError::ForeignChain`] when a chain of our name is hooked in otherwise.
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

    /// Makes the rules that send packets of flows marked for `peer` to its routing table.
    ///
    /// # Errors
    /// When the table is not installed, or nftables refuses.
    pub fn steer(&mut self, peer: PeerNumber) -> Result<(), TableError> {
        let act = format!("steer flows to peer {peer}");
        self.put(&Owner::Peer(peer), &rules::steering(peer), |_| false, &act)
    }

    /// Lets nothing come by the direct way to `peer` but frames of this sender.
    ///
    /// # Errors
    /// When the table is not installed, or nftables refuses.
    pub fn admit(&mut self, peer: PeerNumber, sender: HardwareAddress) -> Result<(), TableError> {
        let act = format!("admit frames of peer {peer} alone");
        let replaced = |owner: &Owner| matches!(owner, Owner::Segment(of, _) if *of == peer);
        let rule = rules::admitting(peer, sender);
        self.put(&Owner::Segment(peer, sender), &[rule], replaced, &act)
    }

    /// Makes `wanted` the rules of `owner`, in place of those of other owners that are `replaced`;
    /// changes nothing where they are there and do what they should.
    fn put(
        &mut self,
        owner: &Owner,
        wanted: &[rules::NewRule],
        replaced: impl Fn(&Owner) -> bool,
        act: &str,
    ) -> Result<(), TableError> {
        let contents = self.read()?;
        let others = contents
            .rules
            .iter()
            .filter(|rule| rule.owner.as_ref().is_some_and(|of| of != owner && replaced(of)));
        let others: Vec<_> = others.collect();
        if others.is_empty() && present::are(&contents, owner, wanted)? {
            return Ok(());
        }
        let table = handle()?;
        let mut batch = Batch::new();
        for rule in contents.owned_by(owner).chain(others) {
            rules::delete(&mut batch, &table, rule)?;
        }
        for rule in wanted {
            rules::add(&mut batch, &table, rule, owner)?;
        }
        self.commit(batch, act)?;
        let contents = self.read()?;
        present::confirm(&contents, owner, wanted)
    }

    /// Lets packets that come from `peer` for the first address of a pair past conntrack, and gives
    /// them the second.
    ///
    /// For a container that returns to its anchor: its flows' packets went from here to the peer, and
    /// those that were held there, or still on their way, come back. They have been translated here
    /// already, so that to conntrack they would be a new flow whose replies are those of the old one,
    /// which it refuses. To be removed by [`Table::remove_late`] when no more can come.
    ///
    /// # Errors
    /// When the table is not installed, or nftables refuses.
    pub fn pass_late(
        &mut self,
        tag: &HoldTag,
        peer: PeerNumber,
        addresses: &[(IpAddr, IpAddr)],
    ) -> Result<(), TableError> {
        self.remove_late(tag)?;
        let table = handle()?;
        let owner = Owner::Late(tag.clone());
        let mut batch = Batch::new();
        for rule in &rules::late(peer, addresses) {
            rules::add(&mut batch, &table, rule, &owner)?;
        }
        self.commit(batch, &format!("let late packets of peer {peer} pass"))
    }

    /// Lets packets of far ends of this host pass as well, which went to the peer before their container
    /// came here. To be removed by [`Table::remove_late`], too.
    ///
    /// # Errors
    /// When the table is not installed, or nftables refuses.
    pub fn pass_late_from(
        &mut self,
        tag: &HoldTag,
        peer: PeerNumber,
        ends: &[LateEnd],
    ) -> Result<(), TableError> {
        let table = handle()?;
        let owner = Owner::Late(tag.clone());
        let mut batch = Batch::new();
        for rule in &rules::late_from(peer, ends) {
            rules::add(&mut batch, &table, rule, &owner)?;
        }
        self.commit(batch, &format!("let late packets of peer {peer} pass"))
    }

    /// Ends what [`Table::pass_late`] began; absent means done.
    ///
    /// # Errors
    /// When the table cannot be read or changed.
    pub fn remove_late(&mut self, tag: &HoldTag) -> Result<(), TableError> {
        self.remove_rules(|owner| matches!(owner, Owner::Late(of) if of == tag))
    }

    /// Removes the rules of a peer; absent means done.
    ///
    /// # Errors
    /// When the table cannot be read or changed.
    pub fn unsteer(&mut self, peer: PeerNumber) -> Result<(), TableError> {
        self.remove_rules(|owner| match owner {
            Owner::Peer(of) | Owner::Segment(of, _) => *of == peer,
            _ => false,
        })
    }

    /// Traces packets of flows that try a way, and lets none of them leave this host but to `peer`: of the
    /// entry that a packet belongs to, an ICMP error or a reset included.
    ///
    /// # Errors
    /// When the table is not installed, or nftables refuses.
    pub(crate) fn catch(
        &mut self,
        tag: &HoldTag,
        peer: PeerNumber,
        flows: &[Flow],
    ) -> Result<(), TableError> {
        self.end_catch(tag)?;
        let table = handle()?;
        let owner = Owner::Path(tag.clone());
        let mut batch = Batch::new();
        for rule in &rules::catching(peer, flows) {
            rules::add(&mut batch, &table, rule, &owner)?;
        }
        let transaction = Transaction::new(batch).inserting();
        self.apply(&transaction, "catch packets that try the ways of flows")
    }

    /// Ends that; absent means done.
    ///
    /// # Errors
    /// When the table cannot be read or changed.
    pub fn end_catch(&mut self, tag: &HoldTag) -> Result<(), TableError> {
        self.remove_rules(|owner| matches!(owner, Owner::Path(of) if of == tag))
    }

    /// Removes the rules of one hold; absent means done.
    ///
    /// # Errors
    /// When the table cannot be read or changed.
    pub fn remove_hold(&mut self, tag: &HoldTag) -> Result<(), TableError> {
        self.remove_rules(|owner| matches!(owner, Owner::Hold(of) if of == tag))
    }

    /// Removes the rules of all holds but those in `keep`: to be called by whoever finds the
    /// table after a crash, before the first new hold, since a queue number may be given anew.
    ///
    /// # Errors
    /// When the table cannot be read or changed.
    pub fn sweep_holds(&mut self, keep: &[HoldTag]) -> Result<(), TableError> {
        self.remove_rules(|owner| matches!(owner, Owner::Hold(tag) if !keep.contains(tag)))
    }

    fn remove_rules(&mut self, which: impl Fn(&Owner) -> bool) -> Result<(), TableError> {
        let contents = self.read()?;
        let table = handle()?;
        let mut batch = Batch::new();
        let owned: Vec<_> =
            contents.rules.iter().filter(|rule| rule.owner.as_ref().is_some_and(&which)).collect();
        if owned.is_empty() {
            return Ok(());
        }
        // A hold's own chain goes with its rules, once no rule leads to it.
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

    /// Removes the table with everything in it; absent means done.
    ///
    /// Not while packets are held by anyone in this network namespace: they would all be dropped.
    ///
    /// # Errors
    /// When nftables refuses.
    pub fn remove(&mut self) -> Result<(), TableError> {
        let table = handle()?;
        let mut batch = Batch::new();
        // Adding first makes the removal of an absent table succeed.
        batch.add(&table, MsgType::Add);
        batch.add(&table, MsgType::Del);
        self.commit(batch, "remove its table")
    }

    /// What the table holds now; empty if there is no table.
    ///
    /// # Errors
    /// When nftables cannot be read.
    pub fn read(&mut self) -> Result<Contents, TableError> {
        contents::read(&mut self.connection)
    }

    /// Which form of queueing this kernel has; found out once in the life of a process.
    ///
    /// It is tried by transactions that are bound to be refused as a whole, so that nothing
    /// changes; each takes some 20 ms, since the kernel waits for its processors when it takes a
    /// transaction back.
    ///
    /// # Errors
    /// [`TableError::NoQueueing`] when it has none, [`TableError::NotInstalled`].
    pub fn queueing(&mut self) -> Result<Queueing, TableError> {
        static FOUND: OnceLock<Queueing> = OnceLock::new();
        if let Some(queueing) = FOUND.get() {
            return Ok(*queueing);
        }
        if contents::read_chain(&mut self.connection, CHAIN_HOLD)?.is_none() {
            return Err(TableError::NotInstalled);
        }
        let mut refusal = None;
        for queueing in [Queueing::Native, Queueing::Compat] {
            let table = handle()?;
            let absent = nftnl::Table::new(c"netmig-absent", ProtoFamily::Inet);
            let mut batch = Batch::new();
            rules::add_probe(&mut batch, &table, queueing)?;
            batch.add(&absent, MsgType::Del);
            let transaction = Transaction::new(batch);
            let refusals = transaction.refusals(&mut self.connection)?;
            // The first message of the batch is the rule, the second the deliberate failure.
            let rule = transaction.message(0);
            match refusals.into_iter().find(|(sequence, _)| *sequence == rule) {
                None => return Ok(*FOUND.get_or_init(|| queueing)),
                Some((_, refused)) => refusal = Some(refused),
            }
        }
        let refused = refusal.map_or(SocketError::Overrun, SocketError::from);
        Err(TableError::NoQueueing(refused))
    }

    /// Makes a hold's rules, in a chain of its own to which nothing leads, and returns the
    /// transactions that put them in force, for new TCP connections and for everything: two rules more
    /// each, to be committed by [`Table::apply`].
    ///
    /// The rules themselves are not left to that moment because the kernel may take 20 ms to add
    /// one with an xtables target: it first waits until all that was removed lately is destroyed
    /// (`nft_compat_wait_for_destructors`).
    pub(crate) fn prepare_hold(
        &mut self,
        rules: &HoldRules,
        tag: &HoldTag,
        queue: u16,
        queueing: Queueing,
    ) -> Result<HoldTransactions, TableError> {
        let rules = rules::holding(tag, rules, queue, queueing)?;
        self.remove_hold(tag)?;
        let table = handle()?;
        let owner = Owner::Hold(tag.clone());
        let mut batch = Batch::new();
        let chain = nftnl::Chain::new(CString::new(rules::hold_chain(tag))?, &table);
        batch.add(&chain, MsgType::Add);
        for rule in &rules {
            rules::add(&mut batch, &table, rule, &owner)?;
        }
        self.commit(batch, &format!("prepare hold {tag}"))?;
        let engage = |rules: [rules::NewRule; 2]| {
            let mut batch = Batch::new();
            for rule in &rules {
                rules::add(&mut batch, &table, rule, &owner)?;
            }
            Ok::<_, TableError>(Transaction::new(batch))
        };
        Ok(HoldTransactions {
            new_connections: engage(rules::engaging_new(tag))?,
            everything: engage(rules::engaging(tag))?,
        })
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

/// Whether a refusal says that the object is not there.
fn is_absent(error: &SocketError) -> bool {
    error.refusal() == Some(Errno::ENOENT)
}

#[cfg(test)]
mod tests;
