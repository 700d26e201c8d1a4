//! Directory trees that are carried beside the checkpoint: files of the container's own, and volumes.

use checkpoint::tree::{Error, Record, Snapshot, Source};
use protocol::message::{
    Tree, TreeChange, TreeDigest, TreeEnd, TreeRecord, VolumeChange, VolumeEnd,
};
use state::cause::Cause;

use crate::convert::Wire;
use crate::state_stream::{StatePart, StateSink};

/// Which tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// One of the container's own.
    Own(Tree),
    /// A volume, by its place among those that were offered.
    Volume(u16),
}

impl Which {
    fn change(self, record: TreeRecord) -> StatePart {
        match self {
            Self::Own(tree) => StatePart::TreeChange(TreeChange { tree, record }),
            Self::Volume(volume) => StatePart::VolumeChange(VolumeChange { volume, record }),
        }
    }

    fn end(self, digest: [u8; 16]) -> StatePart {
        match self {
            Self::Own(tree) => StatePart::TreeEnd(TreeEnd { tree, digest }),
            Self::Volume(volume) => StatePart::VolumeEnd(VolumeEnd { volume, digest }),
        }
    }
}

/// A tree whose first pass has been sent.
#[derive(Debug)]
pub struct CarriedTree {
    /// Which one.
    pub which: Which,
    /// Where it is.
    pub source: Source,
    /// What of it has been sent.
    pub snapshot: Snapshot,
}

/// Sends one pass over a tree: the changes that `walk` finds, and their end. Only for blocking code.
pub fn send<T>(
    which: Which,
    sink: &dyn StateSink,
    walk: impl FnOnce(&mut dyn FnMut(Record) -> Result<(), Error>) -> Result<T, Error>,
) -> Result<T, Cause> {
    let mut digest = TreeDigest::default();
    let found = walk(&mut |record| {
        let record = record.into_wire();
        digest.add(&record);
        sink.put(which.change(record)).map_err(|_| Error::Closed)
    })?;
    sink.put(which.end(digest.value()))?;
    Ok(found)
}
