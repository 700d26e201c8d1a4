//! Comparing a purpose's rules in the kernel with those that netmig would add: same chains, order
//! and expressions.
//!
//! The kernel returns every attribute that it was given, and some that it was not, with their
//! values. So an additional attribute is no difference if its value is the default.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use nftnl::Batch;

use super::contents::{WrittenRule, written};
use super::rules::{self, NewRule};
use super::{Contents, InstalledRule, Purpose, TableError, Transaction, handle};
use crate::netlink::attribute::{Attribute, Attributes};
use crate::netlink::{Malformed, SocketError};

/// Purposes whose rules this kernel returns in another form than it got them, so that a change by
/// others cannot be detected. Replacing them each time would never end: the kernel reports every
/// replacement as a change.
static UNTOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Returns whether the rules of `purpose` are those that are `wanted`.
pub(super) fn are(
    contents: &Contents,
    purpose: &Purpose,
    wanted: &[NewRule],
) -> Result<bool, TableError> {
    if is_untold(purpose) {
        return compare(contents, purpose, wanted, |_, _| true);
    }
    compare(contents, purpose, wanted, |found, wanted| {
        does_same(&found.expressions, &wanted.expressions)
    })
}

/// Compares rules right after they were added. If they differ, only their number is compared from
/// now on.
pub(super) fn confirm(
    contents: &Contents,
    purpose: &Purpose,
    wanted: &[NewRule],
) -> Result<(), TableError> {
    if !are(contents, purpose, wanted)? {
        tracing::warn!(
            "this kernel returns the rules {purpose:?} in another form than it got them; changes by others are not noticed"
        );
        UNTOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(purpose.to_string());
    }
    Ok(())
}

/// Returns whether only the number of a purpose's rules is compared.
pub(super) fn is_untold(purpose: &Purpose) -> bool {
    UNTOLD.lock().unwrap_or_else(PoisonError::into_inner).contains(&purpose.to_string())
}

fn compare(
    contents: &Contents,
    purpose: &Purpose,
    wanted: &[NewRule],
    is_same: impl Fn(&InstalledRule, &WrittenRule) -> bool,
) -> Result<bool, TableError> {
    let table = handle()?;
    let mut batch = Batch::new();
    for rule in wanted {
        rules::add(&mut batch, &table, rule, purpose)?;
    }
    let wanted = written(Transaction::new(batch).bytes()).map_err(SocketError::from)?;
    let mut found: Vec<_> = contents.with_purpose(purpose).collect();
    let mut wanted: Vec<_> = wanted.iter().collect();
    // Order matters within a chain only. A stable sort keeps it.
    found.sort_by(|a, b| a.chain.cmp(&b.chain));
    wanted.sort_by(|a, b| a.chain.cmp(&b.chain));
    let pairs = || found.iter().zip(&wanted);
    Ok(found.len() == wanted.len()
        && pairs().all(|(found, wanted)| found.chain == wanted.chain && is_same(found, wanted)))
}

/// Attribute numbers (`include/uapi/linux/netfilter/nf_tables.h`).
mod nfta {
    pub(super) const EXPR_NAME: u16 = 1;
    pub(super) const EXPR_DATA: u16 = 2;
    pub(super) const NAT_REG_ADDR_MIN: u16 = 3;
    pub(super) const NAT_REG_ADDR_MAX: u16 = 4;
    pub(super) const NAT_REG_PROTO_MIN: u16 = 5;
    pub(super) const NAT_REG_PROTO_MAX: u16 = 6;
    pub(super) const NAT_FLAGS: u16 = 7;
    pub(super) const COUNTER_PACKETS: u16 = 2;
    pub(super) const DYNSET_SET_NAME: u16 = 1;
}

/// `NF_NAT_RANGE_MAP_IPS` and `NF_NAT_RANGE_PROTO_SPECIFIED`: there is an address, and a port.
const NAT_FLAGS_IMPLIED: u32 = 3;
/// Data in an expression is nested two deep (a verdict in an immediate's data).
const DEPTH: usize = 3;

/// An expression: its name, and its attributes by number.
struct Expression<'a> {
    name: &'a str,
    attributes: Vec<Attribute<'a>>,
}

impl<'a> Expression<'a> {
    fn read(element: Attribute<'a>) -> Result<Self, Malformed> {
        let (mut name, mut attributes) = (None, Vec::new());
        for attribute in element.nested() {
            let attribute = attribute?;
            match attribute.kind {
                nfta::EXPR_NAME => name = Some(attribute.text()?),
                nfta::EXPR_DATA => attributes = attribute.nested().collect::<Result<_, _>>()?,
                _ => {}
            }
        }
        let name = name.ok_or(Malformed("an expression without a name"))?;
        Ok(Self { name, attributes })
    }

    fn find(&self, kind: u16) -> Option<Attribute<'a>> {
        self.attributes.iter().copied().find(|attribute| attribute.kind == kind)
    }

    fn does(&self, wanted: &Self) -> bool {
        let is_there = |wanted: &Attribute<'_>| {
            self.find(wanted.kind).is_some_and(|found| same(found.value, wanted.value, DEPTH))
        };
        let is_asked_for =
            |found: &Attribute<'_>| wanted.find(found.kind).is_some() || self.is_implied(found);
        self.name == wanted.name
            && wanted.attributes.iter().all(is_there)
            && self.attributes.iter().all(is_asked_for)
    }

    /// Returns whether an attribute follows from the others, or has the default value.
    fn is_implied(&self, attribute: &Attribute<'_>) -> bool {
        let as_in = |kind| self.find(kind).is_some_and(|other| other.value == attribute.value);
        let implied = match (self.name, attribute.kind) {
            // A range of one.
            ("nat", nfta::NAT_REG_ADDR_MAX) => as_in(nfta::NAT_REG_ADDR_MIN),
            ("nat", nfta::NAT_REG_PROTO_MAX) => as_in(nfta::NAT_REG_PROTO_MIN),
            ("nat", nfta::NAT_FLAGS) => {
                attribute.be32().is_ok_and(|flags| flags & !NAT_FLAGS_IMPLIED == 0)
            }
            _ => false,
        };
        implied || attribute.value.iter().all(|byte| *byte == 0)
    }
}

/// Returns whether two values are equal, except for the flags of attributes nested in them.
fn same(a: &[u8], b: &[u8], depth: usize) -> bool {
    if a == b {
        return true;
    }
    let nested = |value| Attributes::new(value).collect::<Result<Vec<_>, _>>();
    match (nested(a), nested(b)) {
        (Ok(a), Ok(b)) if depth > 0 && !a.is_empty() && a.len() == b.len() => {
            let pairs = a.iter().zip(&b);
            pairs.into_iter().all(|(a, b)| a.kind == b.kind && same(a.value, b.value, depth - 1))
        }
        _ => false,
    }
}

fn read(list: &[u8]) -> Result<Vec<Expression<'_>>, Malformed> {
    Attributes::new(list).map(|element| Expression::read(element?)).collect()
}

/// Returns whether a rule with the list of expressions `found`, as the kernel returns it, does what
/// one with the list `wanted`, as it is sent to the kernel, would do.
fn does_same(found: &[u8], wanted: &[u8]) -> bool {
    match (read(found), read(wanted)) {
        (Ok(found), Ok(wanted)) => {
            found.len() == wanted.len()
                && found.iter().zip(&wanted).all(|(found, wanted)| found.does(wanted))
        }
        _ => false,
    }
}

/// Returns the name of the set in which a rule with this list of expressions counts packets; `None` if it has none.
pub(super) fn counting_set(list: &[u8]) -> Option<&str> {
    let expressions = read(list).ok()?;
    let counting = expressions.iter().find(|expression| expression.name == "dynset")?;
    counting.find(nfta::DYNSET_SET_NAME)?.text().ok()
}

/// Returns how many packets a counter's expression has counted; `None` if it is none.
pub(super) fn packets(expression: Attribute<'_>) -> Option<u64> {
    let counter = Expression::read(expression).ok().filter(|found| found.name == "counter")?;
    counter.find(nfta::COUNTER_PACKETS)?.be64().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute::{nest, put, put_text};

    /// Returns a list of one expression.
    fn list(name: &str, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut list = Vec::new();
        nest(&mut list, 1, |element| {
            put_text(element, nfta::EXPR_NAME, name);
            nest(element, nfta::EXPR_DATA, |data| {
                for (kind, value) in attributes {
                    put(data, *kind, value);
                }
            });
        });
        list
    }

    #[test]
    fn a_counter_tells_its_packets_and_a_rule_its_set() {
        let (bytes, count) = (900u64.to_be_bytes(), 3u64.to_be_bytes());
        let told = |list: &[u8]| packets(Attribute { kind: 1, value: &list[4..] });
        assert_eq!(told(&list("counter", &[(1, &bytes), (2, &count)])), Some(3));
        assert_eq!(told(&list("ct", &[(2, &count)])), None);
        assert_eq!(told(&list("counter", &[(2, &[1])])), None);
        let counting = [list("ct", &[]), list("dynset", &[(1, b"count-web-0\0")])].concat();
        assert_eq!(counting_set(&counting), Some("count-web-0"));
        assert_eq!(counting_set(&list("ct", &[(1, b"x\0")])), None);
        assert_eq!(counting_set(&[9, 0, 1]), None);
    }

    #[test]
    fn what_the_kernel_adds_is_no_difference_and_what_others_change_is_one() {
        let number = |n: u32| n.to_be_bytes();
        let (one, two, none) = (number(1), number(2), number(0));
        let wanted = list("meta", &[(1, &one), (2, &two)]);
        assert!(does_same(&wanted, &wanted));
        assert!(does_same(&list("meta", &[(2, &two), (1, &one), (3, &none)]), &wanted));
        for other in [
            list("meta", &[(1, &one), (2, &one)]),
            list("meta", &[(1, &one)]),
            list("meta", &[(1, &one), (2, &two), (3, &one)]),
            list("ct", &[(1, &one), (2, &two)]),
            [wanted.clone(), wanted.clone()].concat(),
            Vec::new(),
            vec![9, 0, 1],
        ] {
            assert!(!does_same(&other, &wanted), "{other:?}");
        }
        let nat = list("nat", &[(3, &one)]);
        assert!(does_same(&list("nat", &[(3, &one), (4, &one), (7, &one)]), &nat));
        assert!(!does_same(&list("nat", &[(3, &one), (4, &two)]), &nat), "a range of addresses");
        assert!(!does_same(&list("nat", &[(3, &one), (7, &number(4))]), &nat), "random ports");
    }

    #[test]
    fn flags_of_nested_attributes_do_not_count() {
        let value = |make: fn(&mut Vec<u8>, u16)| {
            let mut value = Vec::new();
            make(&mut value, 2);
            value
        };
        let plain = value(|value, kind| {
            put(value, kind, &[1, 2, 3, 4, 5]);
        });
        let nested = value(|value, kind| nest(value, kind, |v| v.extend([1, 2, 3, 4, 5])));
        assert_ne!(plain, nested);
        assert!(does_same(&list("immediate", &[(2, &plain)]), &list("immediate", &[(2, &nested)])));
    }
}
