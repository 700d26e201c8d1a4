//! Directory trees that are carried beside the checkpoint.

use agent_core::message::{Message, Tree, TreeChange};
use checkpoint::tree::{Error, Record, Snapshot, Source};

use super::outbox::{Outbox, post};

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

/// Where a pass over a tree puts what it finds. Only for blocking code.
pub fn sink(tree: Tree, outbox: &Outbox) -> impl FnMut(Record) -> Result<(), Error> {
    move |record| {
        post(outbox, Message::TreeChange(TreeChange { tree, record })).map_err(|_| Error::Closed)
    }
}
