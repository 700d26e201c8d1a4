//! Rules as data, and their translation into a batch.

use std::ffi::CString;

use nftnl::{Batch, Chain, MsgType, Rule};

use super::statement::{ORIGINAL, REPLY, Statement};
use super::{CHAIN_RAW, CHAIN_STEER, CHAIN_STEER_OUTPUT, InstalledRule, Purpose, TableError};
use crate::fwmark::MarkBits;
use crate::peer_number::{ORIGINAL_MASK, PeerNumber, REPLY_MASK};
use crate::tunnel::HardwareAddress;

/// A rule to be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewRule {
    pub(super) chain: String,
    pub(super) statements: Vec<Statement>,
}

/// Returns the statement that gives a packet the mark of a peer's routing table.
pub(super) fn set_mark(peer: PeerNumber) -> Statement {
    let bits = MarkBits::in_use();
    Statement::SetMark { mask: bits.mask(), value: bits.mark(peer) }
}

/// Returns the rules that turn the connmark's byte of a packet's direction into the packet mark.
pub(super) fn steering(peer: PeerNumber) -> Vec<NewRule> {
    let set = set_mark(peer);
    let directions =
        [(ORIGINAL, ORIGINAL_MASK, peer.original_mark()), (REPLY, REPLY_MASK, peer.reply_mark())];
    let mut rules = Vec::new();
    for chain in [CHAIN_STEER, CHAIN_STEER_OUTPUT] {
        for (direction, mask, value) in directions {
            let connmark = Statement::Connmark { mask, value };
            let statements = vec![Statement::CtDirection(direction), connmark, set.clone()];
            rules.push(NewRule { chain: chain.to_owned(), statements });
        }
    }
    rules
}

/// Returns the rule that drops frames of others than the peer on a direct tunnel, before conntrack
/// sees them.
pub(super) fn admitting(peer: PeerNumber, sender: HardwareAddress) -> NewRule {
    let statements = vec![
        Statement::InputInterface(peer.interface()),
        Statement::NotEtherSource(sender),
        Statement::Drop,
    ];
    NewRule { chain: CHAIN_RAW.to_owned(), statements }
}

/// Appends a rule to a batch.
pub(super) fn add(
    batch: &mut Batch,
    table: &nftnl::Table,
    rule: &NewRule,
    purpose: &Purpose,
) -> Result<(), TableError> {
    let chain = Chain::new(CString::new(rule.chain.as_str())?, table);
    let mut new = Rule::new(&chain);
    for step in &rule.statements {
        step.add_to(&mut new)?;
    }
    // The text is shorter than a comment may be: tags have at most 64 bytes, comments 128.
    let _ = new.set_comment(CString::new(purpose.to_string())?);
    batch.add(&new, MsgType::Add);
    Ok(())
}

/// Appends the removal of a rule to a batch.
pub(super) fn delete(
    batch: &mut Batch,
    table: &nftnl::Table,
    rule: &InstalledRule,
) -> Result<(), TableError> {
    let chain = Chain::new(CString::new(rule.chain.as_str())?, table);
    let mut old = Rule::new(&chain);
    old.set_handle(rule.handle);
    batch.add(&old, MsgType::Del);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steering_covers_both_directions_in_both_chains() {
        let rules = steering(PeerNumber::new(2).unwrap());
        assert_eq!(rules.len(), 4);
        for chain in [CHAIN_STEER, CHAIN_STEER_OUTPUT] {
            let connmarks: Vec<_> = rules
                .iter()
                .filter(|rule| rule.chain == chain)
                .map(|rule| rule.statements[..2].to_vec())
                .collect();
            assert_eq!(
                connmarks,
                [
                    vec![
                        Statement::CtDirection(ORIGINAL),
                        Statement::Connmark { mask: 0x00ff_0000, value: 0x0002_0000 }
                    ],
                    vec![
                        Statement::CtDirection(REPLY),
                        Statement::Connmark { mask: 0xff00_0000, value: 0x0200_0000 }
                    ],
                ]
            );
        }
        let set = Statement::SetMark { mask: 0x00ff_0000, value: 0x0002_0000 };
        assert!(rules.iter().all(|rule| rule.statements[2] == set));
    }
}
