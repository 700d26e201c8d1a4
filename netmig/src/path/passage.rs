//! Whether packets of flows that come to this host leave it.

use crate::flow::Flow;
use crate::table::{HoldTag, Passed, Table, TableError};

/// Most flows that are watched at a time: each costs every packet of this host a comparison or two.
pub const MOST_WATCHED: usize = 8;

/// Flows whose packets are counted. What it has made goes with it.
pub struct Passage {
    tag: HoldTag,
    table: Table,
    flows: usize,
}

impl Passage {
    /// Begins to count the packets of these flows.
    ///
    /// # Errors
    /// When the table is not installed, or nftables refuses.
    pub fn begin(tag: &HoldTag, flows: &[Flow]) -> Result<Self, TableError> {
        let mut table = Table::open()?;
        let flows = &flows[..flows.len().min(MOST_WATCHED)];
        table.count(tag, flows)?;
        Ok(Self { tag: tag.clone(), table, flows: flows.len() })
    }

    /// What has passed since, of the original and of the reply direction of each flow; `None` if somebody has
    /// removed the rules.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn read(&mut self) -> Result<Option<Vec<[Passed; 2]>>, TableError> {
        self.table.counted(&self.tag, self.flows)
    }
}

impl std::fmt::Debug for Passage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passage").field("tag", &self.tag).finish_non_exhaustive()
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        if let Err(error) = self.table.end_count(&self.tag) {
            // They go with the migration.
            tracing::warn!("counting packets of flows: {error}");
        }
    }
}
