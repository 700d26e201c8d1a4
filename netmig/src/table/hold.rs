//! The rules of a hold, in a regular chain of its own.

use std::ffi::CString;
use std::net::IpAddr;
use std::sync::OnceLock;

use nftnl::{Batch, Chain, MsgType, ProtoFamily, Rule};
use serde::{Deserialize, Serialize};

use super::rules::{self, NewRule};
use super::statement::{ORIGINAL, REPLY, Statement};
use super::transaction::HoldTransactions;
use super::{
    CHAIN_HOLD, CHAIN_HOLD_OUTPUT, Purpose, RuleTag, Table, TableError, Transaction, contents,
    handle,
};
use crate::flow::Protocol;
use crate::netlink::SocketError;

/// Most rules of one hold: each costs every packet of the host a comparison.
const MOST_HOLD_RULES: usize = 256;

/// The expression that queues packets on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Queueing {
    /// nftables' own `queue` (`nft_queue`).
    Native,
    /// The xtables target NFQUEUE through `nft_compat`, where `nft_queue` is missing.
    Compat,
}

impl Queueing {
    /// Returns its name, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Compat => "compat",
        }
    }
}

/// What happens to packets that arrive while a hold's rules exist but the process that reads its
/// queue has died. The kernel drops the packets that were held in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OnHolderLoss {
    /// They pass as if there were no hold (the queue's bypass flag).
    Accept,
    /// They are dropped; TCP sends them again.
    Drop,
}

/// The packets that a hold takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRules {
    /// The container's addresses: packets *towards* them of any flow, whichever side opened it.
    pub addresses: Vec<IpAddr>,
    /// Ports of this host that the container publishes: packets of new flows to them, which have no
    /// DNAT yet and so do not show the container's address.
    pub published: Vec<(Protocol, u16)>,
    /// What the kernel does when the process that reads the queue has died.
    pub on_loss: OnHolderLoss,
}

/// Returns the name of the chain that has a hold's rules.
fn hold_chain(tag: &RuleTag) -> String {
    format!("{CHAIN_HOLD}-{tag}")
}

/// Returns the rules that put a hold in force.
fn engaging(tag: &RuleTag) -> [NewRule; 2] {
    leading_to(tag, &[])
}

/// Returns the rules that put a hold in force for new TCP connections only: their first packet
/// waits.
fn engaging_new(tag: &RuleTag) -> [NewRule; 2] {
    leading_to(
        tag,
        &[Statement::CtStateNew, Statement::DestinationPorts(Protocol::Tcp, 0, u16::MAX)],
    )
}

/// Returns the rules that send what these statements match to the hold's own chain.
fn leading_to(tag: &RuleTag, which: &[Statement]) -> [NewRule; 2] {
    [CHAIN_HOLD, CHAIN_HOLD_OUTPUT].map(|chain| NewRule {
        chain: chain.to_owned(),
        statements: [which, &[Statement::Jump { chain: hold_chain(tag) }]].concat(),
    })
}

/// Returns the rules of a hold, for its own chain.
///
/// Only packets towards the container are held: what it sent before it was frozen reaches its peers
/// at once.
fn holding(
    tag: &RuleTag,
    rules: &HoldRules,
    number: u16,
    queueing: Queueing,
) -> Result<Vec<NewRule>, TableError> {
    let bypass = rules.on_loss == OnHolderLoss::Accept;
    let queue = Statement::Queue { number, bypass, queueing };
    let mut all = Vec::new();
    let mut addresses = rules.addresses.clone();
    addresses.sort_unstable();
    addresses.dedup();
    for address in addresses {
        // Towards the container goes the original direction of flows whose replies come from it,
        // and the reply direction of flows that it opened.
        for (direction, source_of) in [(ORIGINAL, REPLY), (REPLY, ORIGINAL)] {
            let from = Statement::CtSource(source_of, address);
            all.push(vec![Statement::CtDirection(direction), from, queue.clone()]);
        }
    }
    for (protocol, first, last) in port_ranges(&rules.published) {
        let ports = Statement::DestinationPorts(protocol, first, last);
        all.push(vec![Statement::CtStateNew, ports, Statement::DestinationIsLocal, queue.clone()]);
    }
    if !(1..=MOST_HOLD_RULES).contains(&all.len()) {
        return Err(TableError::NumberOfRules { asked: all.len(), most: MOST_HOLD_RULES });
    }
    let chain = hold_chain(tag);
    Ok(all.into_iter().map(|statements| NewRule { chain: chain.clone(), statements }).collect())
}

/// Returns ports as ranges, in order.
fn port_ranges(ports: &[(Protocol, u16)]) -> Vec<(Protocol, u16, u16)> {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports.dedup();
    let mut ranges: Vec<(Protocol, u16, u16)> = Vec::new();
    for (protocol, port) in ports {
        match ranges.last_mut() {
            Some((of, _, last)) if *of == protocol && last.checked_add(1) == Some(port) => {
                *last = port;
            }
            _ => ranges.push((protocol, port, port)),
        }
    }
    ranges
}

/// Appends a rule that does nothing but require a form of queueing.
fn add_probe(
    batch: &mut Batch,
    table: &nftnl::Table,
    queueing: Queueing,
) -> Result<(), TableError> {
    let chain = Chain::new(CString::new(CHAIN_HOLD)?, table);
    let mut rule = Rule::new(&chain);
    Statement::Queue { number: 0, bypass: true, queueing }.add_to(&mut rule)?;
    batch.add(&rule, MsgType::Add);
    Ok(())
}

impl Table {
    /// Removes the rules of one hold; absent rules are not an error.
    ///
    /// # Errors
    /// [`TableError::Read`], [`TableError::Refused`] when the table cannot be read or changed.
    pub fn remove_hold(&mut self, tag: &RuleTag) -> Result<(), TableError> {
        self.remove_rules(|purpose| matches!(purpose, Purpose::Hold(of) if of == tag))
    }

    /// Removes the rules of all holds except those in `keep`. A process that finds the table after
    /// a crash calls this before the first new hold, since a queue number may be reused.
    ///
    /// # Errors
    /// As [`Table::remove_hold`].
    pub fn sweep_holds(&mut self, keep: &[RuleTag]) -> Result<(), TableError> {
        self.remove_rules(|purpose| matches!(purpose, Purpose::Hold(tag) if !keep.contains(tag)))
    }

    /// Returns the form of queueing that this kernel supports; determined once per process.
    ///
    /// Each form is tried by a transaction that is bound to be refused as a whole, so that nothing
    /// changes. A trial takes some 20 ms, since the kernel waits for all processors when it rolls a
    /// transaction back.
    ///
    /// # Errors
    /// [`TableError::NoQueueing`] when the kernel supports none, [`TableError::NotInstalled`].
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
            add_probe(&mut batch, &table, queueing)?;
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

    /// Adds a hold's rules in a chain to which no rule jumps, and returns the transactions that put
    /// them in force, for new TCP connections and for everything: two more rules each, to be
    /// committed by [`Table::apply`].
    ///
    /// The rules are added in advance because the kernel may take 20 ms to add one with an xtables
    /// target: it first waits until all recently removed ones are destroyed
    /// (`nft_compat_wait_for_destructors`).
    pub(crate) fn prepare_hold(
        &mut self,
        rules: &HoldRules,
        tag: &RuleTag,
        queue: u16,
        queueing: Queueing,
    ) -> Result<HoldTransactions, TableError> {
        let rules = holding(tag, rules, queue, queueing)?;
        self.remove_hold(tag)?;
        let table = handle()?;
        let purpose = Purpose::Hold(tag.clone());
        let mut batch = Batch::new();
        let chain = nftnl::Chain::new(CString::new(hold_chain(tag))?, &table);
        batch.add(&chain, MsgType::Add);
        for rule in &rules {
            rules::add(&mut batch, &table, rule, &purpose)?;
        }
        self.commit(batch, &format!("prepare hold {tag}"))?;
        let engage = |rules: [NewRule; 2]| {
            let mut batch = Batch::new();
            for rule in &rules {
                rules::add(&mut batch, &table, rule, &purpose)?;
            }
            Ok::<_, TableError>(Transaction::new(batch))
        };
        Ok(HoldTransactions {
            new_connections: engage(engaging_new(tag))?,
            everything: engage(engaging(tag))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag() -> RuleTag {
        "web".parse().unwrap()
    }

    fn hold(published: Vec<(Protocol, u16)>) -> HoldRules {
        HoldRules {
            addresses: vec!["10.88.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            published,
            on_loss: OnHolderLoss::Drop,
        }
    }

    #[test]
    fn a_hold_takes_packets_towards_the_container_only() {
        let rules = holding(&tag(), &hold(vec![]), 7, Queueing::Native).unwrap();
        assert_eq!(rules.len(), 4);
        for rule in rules {
            let [
                Statement::CtDirection(packet),
                Statement::CtSource(source, _),
                Statement::Queue { bypass, .. },
            ] = rule.statements[..]
            else {
                panic!("{rule:?}")
            };
            assert_ne!(packet, source, "the container is the other direction's source");
            assert!(!bypass);
        }
    }

    #[test]
    fn neighbouring_ports_become_one_rule() {
        use Protocol::{Tcp, Udp};
        let ports = [(Udp, 53), (Tcp, 81), (Tcp, 80), (Tcp, 80), (Tcp, 82), (Udp, 65535)];
        assert_eq!(port_ranges(&ports), [(Tcp, 80, 82), (Udp, 53, 53), (Udp, 65535, 65535)]);
    }

    #[test]
    fn too_many_rules_are_refused() {
        let scattered = (0..300).map(|n| (Protocol::Tcp, n * 2)).collect();
        let refused = holding(&tag(), &hold(scattered), 7, Queueing::Compat);
        assert!(matches!(refused, Err(TableError::NumberOfRules { asked: 304, .. })));
    }
}
