//! Whether an owner's rules are in the table, in their order and unchanged.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use nftnl::Batch;

use super::contents::{WrittenRule, written};
use super::rules::{self, NewRule};
use super::{Contents, InstalledRule, Owner, TableError, Transaction, expressions, handle};
use crate::netlink::SocketError;

/// Owners of rules that this kernel gives back in another form than it got them, so that one cannot tell
/// whether they were changed. To make them anew each time would never end: the kernel tells of every change.
static UNTOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Whether the rules of `owner` are those that are `wanted`.
pub(super) fn are(
    contents: &Contents,
    owner: &Owner,
    wanted: &[NewRule],
) -> Result<bool, TableError> {
    if is_untold(owner) {
        return compare(contents, owner, wanted, |_, _| true);
    }
    compare(contents, owner, wanted, |found, wanted| {
        expressions::does(&found.expressions, &wanted.expressions)
    })
}

/// The same right after they were made: if they seem to be others, from now on only their number counts.
pub(super) fn confirm(
    contents: &Contents,
    owner: &Owner,
    wanted: &[NewRule],
) -> Result<(), TableError> {
    if !are(contents, owner, wanted)? {
        tracing::warn!("this kernel tells the rules {owner:?} in another form than it got them");
        UNTOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(owner.to_string());
    }
    Ok(())
}

/// Whether only the number of an owner's rules counts.
pub(super) fn is_untold(owner: &Owner) -> bool {
    UNTOLD.lock().unwrap_or_else(PoisonError::into_inner).contains(&owner.to_string())
}

fn compare(
    contents: &Contents,
    owner: &Owner,
    wanted: &[NewRule],
    is_same: impl Fn(&InstalledRule, &WrittenRule) -> bool,
) -> Result<bool, TableError> {
    let table = handle()?;
    let mut batch = Batch::new();
    for rule in wanted {
        rules::add(&mut batch, &table, rule, owner)?;
    }
    let wanted = written(Transaction::new(batch).bytes()).map_err(SocketError::from)?;
    let mut found: Vec<_> = contents.owned_by(owner).collect();
    let mut wanted: Vec<_> = wanted.iter().collect();
    // Order counts within a chain alone. Sorting keeps it there.
    found.sort_by(|a, b| a.chain.cmp(&b.chain));
    wanted.sort_by(|a, b| a.chain.cmp(&b.chain));
    let pairs = || found.iter().zip(&wanted);
    Ok(found.len() == wanted.len()
        && pairs().all(|(found, wanted)| found.chain == wanted.chain && is_same(found, wanted)))
}
