//! Directory trees that are carried beside the checkpoint.

use checkpoint::tree::{Error, Record, Snapshot, Source};
use protocol::message::{Message, Tree, TreeChange, TreeDigest, TreeEnd};
use state::cause::Cause;

use super::send_queue::{Outbox, post};
use crate::convert::Wire;

/// A tree whose first pass has been sent.
#[derive(Debug)]
pub struct CarriedTree {
    /// Which one.
    pub tree: Tree,
    /// Where it is.
    pub source: Source,
    /// What of it has been sent.
    pub snapshot: Snapshot,
}

/// Sends one pass over a tree: the changes that `walk` finds, and their end. Only for blocking code.
pub fn send<T>(
    tree: Tree,
    outbox: &Outbox,
    walk: impl FnOnce(&mut dyn FnMut(Record) -> Result<(), Error>) -> Result<T, Error>,
) -> Result<T, Cause> {
    let mut digest = TreeDigest::default();
    let found = walk(&mut |record| {
        let record = record.into_wire();
        digest.add(&record);
        post(outbox, Message::TreeChange(TreeChange { tree, record })).map_err(|_| Error::Closed)
    })?;
    post(outbox, Message::TreeEnd(TreeEnd { tree, digest: digest.value() }))?;
    Ok(found)
}
