//! Rules in chains of others that let moved flows pass: only where the user has requested it
//! (`--open-firewall`).
//!
//! They accept packets that come from the tunnel to a peer, or go there, and belong to a flow that
//! its connmark steers to this peer; nothing else. Each carries its [`Purpose`] as a comment, so
//! that any process can find and remove it.

use std::ffi::CString;

use nftnl::{Batch, Chain, MsgType, ProtoFamily, Rule};

use super::contents::parts;
use super::statement::{ORIGINAL, REPLY, Statement};
use super::{
    InstalledRule, Purpose, RuleTag, TABLE, Table, TableError, Transaction, is_absent, rules,
};
use crate::netlink::Malformed;
use crate::netlink::message::{DUMP, request};
use crate::netlink::nfnetlink::{Subsystem, nfgenmsg};
use crate::path_trial::DropRule;
use crate::peer_number::{ORIGINAL_MASK, PeerNumber, REPLY_MASK};

/// A rule of netmig in a table of others.
struct Found {
    family: ProtoFamily,
    table: String,
    rule: InstalledRule,
}

/// Returns the family of this number, if its chains see forwarded packets.
fn family(number: u8) -> Option<ProtoFamily> {
    [ProtoFamily::Inet, ProtoFamily::Ipv4, ProtoFamily::Ipv6]
        .into_iter()
        .find(|family| *family as u16 == u16::from(number))
}

/// Returns the statements that accept packets of flows that are steered to a peer, in both
/// directions.
fn accepting(peer: PeerNumber) -> Vec<Vec<Statement>> {
    let (interface, mut all) = (peer.interface(), Vec::new());
    // Of a flow whose original direction is led there the replies come from there, and the other way round.
    let marks = [
        (ORIGINAL, REPLY, ORIGINAL_MASK, peer.original_mark()),
        (REPLY, ORIGINAL, REPLY_MASK, peer.reply_mark()),
    ];
    for (there, back, mask, value) in marks {
        for (way, direction) in [
            (Statement::OutputInterface(interface.clone()), there),
            (Statement::InputInterface(interface.clone()), back),
        ] {
            all.push(vec![
                way,
                Statement::CtDirection(direction),
                Statement::Connmark { mask, value },
                Statement::Accept,
            ]);
        }
    }
    all
}

impl Found {
    fn is_in(&self, chain: &DropRule) -> bool {
        family(chain.family) == Some(self.family)
            && self.table == chain.table
            && self.rule.chain == chain.chain
    }
}

impl Table {
    /// Adds rules at the beginning of a chain of others that let flows pass which are steered to
    /// `peer`. They replace earlier ones there. `name` is the peer's name, for people.
    ///
    /// # Errors
    /// [`TableError::Refused`] when nftables refuses, or the chain does not exist; nothing has
    /// changed then. [`TableError::Read`].
    pub fn open_chain(
        &mut self,
        chain: &DropRule,
        peer: PeerNumber,
        name: &RuleTag,
    ) -> Result<(), TableError> {
        let earlier = self.find_open(peer)?;
        self.put_rules(chain, peer, name, earlier.iter().filter(|found| found.is_in(chain)))
    }

    /// Adds such rules again where they are missing, as after a reload of the host's firewall.
    /// Skips chains that do not exist. Returns how many were opened again.
    ///
    /// # Errors
    /// [`TableError::Read`] when nftables cannot be read, [`TableError::Refused`] when it refuses
    /// for another reason.
    pub fn reopen_chains(
        &mut self,
        chains: &[DropRule],
        peer: PeerNumber,
        name: &RuleTag,
    ) -> Result<usize, TableError> {
        let found = self.find_open(peer)?;
        let mut opened = 0;
        for chain in chains {
            let here: Vec<&Found> = found.iter().filter(|found| found.is_in(chain)).collect();
            if here.len() == accepting(peer).len() {
                continue;
            }
            match self.put_rules(chain, peer, name, here.into_iter()) {
                Ok(()) => opened += 1,
                Err(TableError::Refused { source, .. }) if is_absent(&source) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(opened)
    }

    fn put_rules<'a>(
        &mut self,
        chain: &DropRule,
        peer: PeerNumber,
        name: &RuleTag,
        earlier: impl Iterator<Item = &'a Found>,
    ) -> Result<(), TableError> {
        let family = family(chain.family).ok_or(TableError::NotInstalled)?;
        let table = nftnl::Table::new(CString::new(chain.table.as_str())?, family);
        let into = Chain::new(CString::new(chain.chain.as_str())?, &table);
        let comment = CString::new(Purpose::OpenFirewall(peer, name.clone()).to_string())?;
        let mut batch = Batch::new();
        for found in earlier {
            rules::delete(&mut batch, &table, &found.rule)?;
        }
        for statements in accepting(peer) {
            let mut rule = Rule::new(&into);
            for step in statements {
                step.add_to(&mut rule)?;
            }
            let _ = rule.set_comment(comment.clone());
            batch.add(&rule, MsgType::Add);
        }
        let act = format!("open chain {} of table {}", chain.chain, chain.table);
        self.apply(&Transaction::new(batch).inserting(), &act)
    }

    /// Removes such rules of a peer from all chains; absent rules are not an error.
    ///
    /// # Errors
    /// [`TableError::Read`], [`TableError::Refused`] when nftables cannot be read or changed.
    pub fn close_chains(&mut self, peer: PeerNumber) -> Result<(), TableError> {
        let found = self.find_open(peer)?;
        self.remove_found(&found)
    }

    /// Removes such rules of a peer from these chains; absent rules are not an error.
    ///
    /// # Errors
    /// As [`Table::close_chains`].
    pub fn close_chains_of(
        &mut self,
        chains: &[DropRule],
        peer: PeerNumber,
    ) -> Result<(), TableError> {
        let mut found = self.find_open(peer)?;
        found.retain(|found| chains.iter().any(|chain| found.is_in(chain)));
        self.remove_found(&found)
    }

    fn remove_found(&mut self, found: &[Found]) -> Result<(), TableError> {
        if found.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for Found { family, table, rule } in found {
            let table = nftnl::Table::new(CString::new(table.as_str())?, *family);
            rules::delete(&mut batch, &table, rule)?;
        }
        self.commit(batch, "close chains of others that were opened")
    }

    fn find_open(&mut self, peer: PeerNumber) -> Result<Vec<Found>, TableError> {
        let kind = Subsystem::NfTables.kind(libc::NFT_MSG_GETRULE);
        let mut asked = request(kind, DUMP, &nfgenmsg(0, 0), |_| ());
        let open = |payload: &[u8]| open_rule(payload, peer);
        match self.connection.dump_consistent(&mut asked, open) {
            Err(error) if is_absent(&error) => Ok(Vec::new()),
            other => other.map_err(TableError::Read),
        }
    }
}

/// Parses a rule of a dump; `None` unless it opens a chain for this peer.
fn open_rule(payload: &[u8], peer: PeerNumber) -> Result<Option<Found>, Malformed> {
    let of = payload.first().copied().and_then(family);
    let parts = parts(payload)?;
    let (Some(family), Some(table), Some(chain), Some(handle), Some(purpose)) =
        (of, parts.table, parts.chain, parts.handle, parts.purpose)
    else {
        return Ok(None);
    };
    let is_ours = matches!(&purpose, Purpose::OpenFirewall(of, _) if *of == peer) && table != TABLE;
    let rule = InstalledRule { chain, handle, purpose: Some(purpose), expressions: Vec::new() };
    Ok(is_ours.then(|| Found { family, table: table.to_owned(), rule }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute::{put, put_text};

    #[test]
    fn rules_of_one_peer_are_found_in_tables_of_others() {
        let peer = PeerNumber::new(3).unwrap();
        let rule = |family: u8, table: &str, comment: &str| {
            let mut bytes = vec![family, 0, 0, 0];
            put_text(&mut bytes, 1, table);
            put_text(&mut bytes, 2, "guard");
            put(&mut bytes, 3, &9u64.to_be_bytes());
            let text = [comment.as_bytes(), &[0]].concat();
            put(&mut bytes, 7, &[&[0, text.len() as u8], &text[..]].concat());
            open_rule(&bytes, peer).unwrap().map(|found| found.table)
        };
        assert_eq!(rule(1, "fw", "netmig open 3 b"), Some("fw".to_owned()));
        assert_eq!(rule(1, "fw", "netmig open 4 b"), None);
        assert_eq!(rule(1, "fw", "open"), None);
        assert_eq!(rule(1, TABLE, "netmig open 3 b"), None);
        assert_eq!(rule(7, "fw", "netmig open 3 b"), None, "bridges see no flows");
    }
}
