//! Directory trees that are carried beside the checkpoint.

use checkpoint::tree::{Error, Record, Snapshot, Source};
use protocol::message::{Tree, TreeChange, TreeDigest, TreeEnd};
use state::cause::Cause;

use crate::convert::Wire;
use crate::state_stream::{StatePart, StateSink};

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
    sink: &dyn StateSink,
    walk: impl FnOnce(&mut dyn FnMut(Record) -> Result<(), Error>) -> Result<T, Error>,
) -> Result<T, Cause> {
    let mut digest = TreeDigest::default();
    let found = walk(&mut |record| {
        let record = record.into_wire();
        digest.add(&record);
        sink.put(StatePart::TreeChange(TreeChange { tree, record })).map_err(|_| Error::Closed)
    })?;
    sink.put(StatePart::TreeEnd(TreeEnd { tree, digest: digest.value() }))?;
    Ok(found)
}
