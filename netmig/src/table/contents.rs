//! Reading the table back.

use nftnl::ProtoFamily;

use super::chains::BaseChain;
use super::{Purpose, TABLE, TableError, is_absent};
use crate::netlink::attribute::{Attribute, put_text};
use crate::netlink::message::{DUMP, Message, Messages, request};
use crate::netlink::nfnetlink::{Subsystem, attributes, nfgenmsg};
use crate::netlink::{Connection, Malformed, SocketError};

/// Attribute numbers (`include/uapi/linux/netfilter/nf_tables.h`).
mod nfta {
    pub(super) const RULE_TABLE: u16 = 1;
    pub(super) const RULE_CHAIN: u16 = 2;
    pub(super) const RULE_HANDLE: u16 = 3;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const RULE_USERDATA: u16 = 7;
    pub(super) const CHAIN_TABLE: u16 = 1;
    pub(super) const CHAIN_NAME: u16 = 3;
    pub(super) const CHAIN_HOOK: u16 = 4;
    pub(super) const CHAIN_TYPE: u16 = 7;
    pub(super) const HOOK_HOOKNUM: u16 = 1;
    pub(super) const HOOK_PRIORITY: u16 = 2;
}

/// `NFTNL_UDATA_RULE_COMMENT`: the first type of a rule's user data (libnftnl's `udata.h`).
const UDATA_COMMENT: u8 = 0;

/// The rules of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The rules, in the order in which they are evaluated within each chain.
    pub rules: Vec<InstalledRule>,
}

impl Contents {
    /// Returns the rules of one purpose.
    pub fn with_purpose(&self, purpose: &Purpose) -> impl Iterator<Item = &InstalledRule> {
        self.rules.iter().filter(move |rule| rule.purpose.as_ref() == Some(purpose))
    }
}

/// A rule as found in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledRule {
    /// The chain it is in.
    pub chain: String,
    /// The kernel's number for it.
    pub handle: u64,
    /// Its purpose; `None` for a rule that others added to the table.
    pub purpose: Option<Purpose>,
    /// Its expressions, as the kernel encodes them.
    pub(super) expressions: Vec<u8>,
}

/// A rule as it is sent to the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WrittenRule {
    pub(super) chain: String,
    pub(super) expressions: Vec<u8>,
}

/// A base chain as found in the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FoundChain {
    hook: u32,
    priority: i32,
    kind: String,
}

impl FoundChain {
    pub(super) fn is(&self, chain: &BaseChain) -> bool {
        let kind = match chain.kind {
            nftnl::ChainType::Filter => "filter",
            nftnl::ChainType::Route => "route",
            nftnl::ChainType::Nat => "nat",
        };
        self.hook == u32::from(chain.hook as u16)
            && self.priority == chain.priority
            && self.kind == kind
    }
}

pub(super) fn asking(message: i32, flags: u16, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let family = (ProtoFamily::Inet as u16).to_le_bytes()[0];
    request(Subsystem::NfTables.kind(message), flags, &nfgenmsg(family, 0), fill)
}

/// Reads the rules of the table; none if there is no table.
pub(super) fn read(connection: &mut Connection) -> Result<Contents, TableError> {
    let mut asked = asking(libc::NFT_MSG_GETRULE, DUMP, |body| {
        put_text(body, nfta::RULE_TABLE, TABLE);
    });
    match connection.dump_consistent(&mut asked, rule) {
        Ok(rules) => Ok(Contents { rules }),
        Err(error) if is_absent(&error) => Ok(Contents::default()),
        Err(error) => Err(TableError::Read(error)),
    }
}

/// Reads one chain of the table; `None` if there is none of that name.
pub(super) fn read_chain(
    connection: &mut Connection,
    name: &str,
) -> Result<Option<FoundChain>, TableError> {
    let mut asked = asking(libc::NFT_MSG_GETCHAIN, 0, |body| {
        put_text(body, nfta::CHAIN_TABLE, TABLE);
        put_text(body, nfta::CHAIN_NAME, name);
    });
    let mut found = Ok(None);
    match connection.answer(&mut asked, |payload| found = chain(payload).map(Some)) {
        Ok(()) => Ok(found.map_err(SocketError::from)?),
        Err(refused) if is_absent(&refused.source) => Ok(None),
        Err(refused) => Err(TableError::Read(refused.source)),
    }
}

/// Returns the rules that a batch of messages adds.
pub(super) fn written(batch: &[u8]) -> Result<Vec<WrittenRule>, Malformed> {
    let new_rule = Subsystem::NfTables.kind(libc::NFT_MSG_NEWRULE);
    let mut rules = Vec::new();
    for message in Messages::new(batch) {
        let Message::Data { kind, payload, .. } = message? else { continue };
        if kind != new_rule {
            continue;
        }
        let Parts { chain, expressions, .. } = parts(payload)?;
        let chain = chain.ok_or(Malformed("a rule without a chain"))?;
        rules.push(WrittenRule { chain, expressions });
    }
    Ok(rules)
}

/// The content of a message about a rule.
#[derive(Default)]
pub(super) struct Parts<'a> {
    pub(super) table: Option<&'a str>,
    pub(super) chain: Option<String>,
    pub(super) handle: Option<u64>,
    pub(super) purpose: Option<Purpose>,
    expressions: Vec<u8>,
}

pub(super) fn parts(payload: &[u8]) -> Result<Parts<'_>, Malformed> {
    let mut parts = Parts::default();
    for attribute in attributes(payload)? {
        let attribute = attribute?;
        match attribute.kind {
            nfta::RULE_TABLE => parts.table = Some(attribute.text()?),
            nfta::RULE_CHAIN => parts.chain = Some(attribute.text()?.to_owned()),
            nfta::RULE_HANDLE => parts.handle = Some(attribute.be64()?),
            nfta::RULE_EXPRESSIONS => parts.expressions = attribute.value.to_owned(),
            nfta::RULE_USERDATA => {
                parts.purpose = comment(attribute).and_then(Purpose::from_comment)
            }
            _ => {}
        }
    }
    Ok(parts)
}

/// Parses a rule of a dump; `None` if it is of another table, which kernels without a filter
/// include.
fn rule(payload: &[u8]) -> Result<Option<InstalledRule>, Malformed> {
    let Parts { table, chain, handle, purpose, expressions } = parts(payload)?;
    if table != Some(TABLE) {
        return Ok(None);
    }
    match (chain, handle) {
        (Some(chain), Some(handle)) => {
            Ok(Some(InstalledRule { chain, handle, purpose, expressions }))
        }
        _ => Err(Malformed("a rule without chain or handle")),
    }
}

/// Returns the comment in a rule's user data: a sequence of type, length and value, the first two
/// of one byte each. Others may put anything there, so user data that cannot be parsed has no
/// comment; this is not an error.
fn comment<'a>(attribute: Attribute<'a>) -> Option<&'a str> {
    let mut rest = attribute.value;
    while let [kind, length, tail @ ..] = rest {
        let (value, next) = tail.split_at_checked(usize::from(*length))?;
        if *kind == UDATA_COMMENT {
            return std::ffi::CStr::from_bytes_with_nul(value).ok()?.to_str().ok();
        }
        rest = next;
    }
    None
}

fn chain(payload: &[u8]) -> Result<FoundChain, Malformed> {
    // A chain without hook or type is not a base chain, and so not ours.
    let mut found = FoundChain { hook: u32::MAX, priority: 0, kind: String::new() };
    for attribute in attributes(payload)? {
        let attribute = attribute?;
        match attribute.kind {
            nfta::CHAIN_TYPE => attribute.text()?.clone_into(&mut found.kind),
            nfta::CHAIN_HOOK => {
                for part in attribute.nested() {
                    let part = part?;
                    match part.kind {
                        nfta::HOOK_HOOKNUM => found.hook = part.be32()?,
                        nfta::HOOK_PRIORITY => found.priority = part.be32()? as i32,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute::put;

    fn rule_bytes(table: &str, userdata: &[u8]) -> Vec<u8> {
        let mut bytes = vec![1, 0, 0, 0];
        put_text(&mut bytes, nfta::RULE_TABLE, table);
        put_text(&mut bytes, nfta::RULE_CHAIN, "hold");
        put(&mut bytes, nfta::RULE_HANDLE, &42u64.to_be_bytes());
        put(&mut bytes, nfta::RULE_USERDATA, userdata);
        bytes
    }

    fn comment_bytes(text: &str) -> Vec<u8> {
        [&[UDATA_COMMENT, text.len() as u8 + 1], text.as_bytes(), &[0]].concat()
    }

    #[test]
    fn a_rule_is_read_with_its_owner() {
        let read = rule(&rule_bytes("netmig", &comment_bytes("netmig hold web"))).unwrap();
        let purpose = Some(Purpose::Hold("web".parse().unwrap()));
        let (chain, expressions) = ("hold".into(), Vec::new());
        assert_eq!(read, Some(InstalledRule { chain, handle: 42, purpose, expressions }));
    }

    #[test]
    fn rules_of_other_tables_and_owners_are_not_ours() {
        assert_eq!(rule(&rule_bytes("filter", &comment_bytes("netmig peer 1"))), Ok(None));
        for userdata in [&b""[..], b"\x00", b"\x00\xff", b"\x07\x01x\x00\x03hi", b"\x00\x03abc"] {
            let read = rule(&rule_bytes("netmig", userdata)).unwrap().unwrap();
            assert_eq!(read.purpose, None, "{userdata:?}");
        }
    }

    #[test]
    fn another_first_record_does_not_hide_the_comment() {
        let userdata = [&[7, 2, 0xaa, 0xbb], &comment_bytes("netmig peer 3")[..]].concat();
        let read = rule(&rule_bytes("netmig", &userdata)).unwrap().unwrap();
        assert_eq!(read.purpose.unwrap().to_string(), "netmig peer 3");
    }

    #[test]
    fn cut_messages_are_refused_or_less_but_never_a_panic() {
        let whole = rule_bytes("netmig", &comment_bytes("netmig peer 3"));
        for end in 0..whole.len() {
            let _ = rule(&whole[..end]);
            let _ = chain(&whole[..end]);
        }
    }
}
