//! Packets of the container's UDP flows, counted for its source until their conversation ends.

use netmig::flow::Flow;
use netmig::table::{FlowCounter, PacketCount};
use protocol::message::MigrationId;
use state::cause::{Cause, chain};
use state::directories::Directories;
use state::migration_lock::MigrationLock;

use crate::convert::FlowCount;

/// Flows whose packets are counted. Dropping it removes the rules.
#[derive(Debug)]
pub struct CountedFlows {
    counter: FlowCounter,
    /// Tells others that the rules are this process's. Given back after their removal.
    _lock: MigrationLock,
}

impl CountedFlows {
    /// Begins to count packets of these entries of this host, whether they are there already or not.
    ///
    /// # Errors
    /// The migration's lock cannot be taken, or nftables refuses the rules.
    pub fn begin(
        directories: &Directories,
        migration: MigrationId,
        entries: &[Flow],
    ) -> Result<Self, Cause> {
        let lock = MigrationLock::take(&directories.run, migration)?;
        let counter = FlowCounter::begin(&migration.to_string().parse()?, entries)?;
        Ok(Self { counter, _lock: lock })
    }

    /// Returns what has passed since then; `None` if that is not known.
    pub fn read(&mut self) -> Option<Vec<FlowCount>> {
        let counts = self.counter.read().unwrap_or_else(|e| {
            tracing::debug!("{}", chain(&e));
            None
        });
        let both = |[original, reply]: [PacketCount; 2]| FlowCount { original, reply };
        counts.map(|counts| counts.into_iter().map(both).collect())
    }
}
