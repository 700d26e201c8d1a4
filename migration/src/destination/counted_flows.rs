//! Packets of the container's flows, counted for its source until the migration is settled.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netmig::flow::{Flow, FlowEnds};
use netmig::table::{FlowCounter, Passage};
use protocol::message::MigrationId;
use state::cause::{Cause, chain};
use state::directories::Directories;
use state::migration_lock::MigrationLock;

use crate::convert::FlowCount;

/// A container whose packets are counted. Dropping it removes the rules.
#[derive(Debug)]
pub struct CountedFlows {
    counter: FlowCounter,
    /// The flows that a source of an earlier version has named: each as the container has it, and whether somebody
    /// else has opened it.
    named: Vec<(FlowEnds, bool)>,
    /// Tells others that the rules are this process's. Given back after their removal.
    _lock: MigrationLock,
}

impl CountedFlows {
    /// Begins to count packets of a container with these addresses.
    ///
    /// # Errors
    /// The migration's lock cannot be taken, or nftables refuses the rules.
    pub fn begin(
        directories: &Directories,
        migration: MigrationId,
        addresses: &[IpAddr],
    ) -> Result<Self, Cause> {
        let lock = MigrationLock::take(&directories.run, migration)?;
        let counter = FlowCounter::begin(&migration.to_string().parse()?, addresses)?;
        Ok(Self { counter, named: Vec::new(), _lock: lock })
    }

    /// Notes the entries of this host about which a source of an earlier version will ask.
    #[must_use]
    pub fn naming(mut self, entries: &[Flow], addresses: &[IpAddr]) -> Self {
        let named = |entry: &Flow| {
            let is_inbound = addresses.contains(&entry.reply.source);
            entry.ends(addresses).map(|ends| (ends, is_inbound))
        };
        self.named = entries.iter().filter_map(named).collect();
        self
    }

    /// Returns what has passed since then of these flows; `None` if that is not known.
    pub fn read(&mut self, flows: &[FlowEnds]) -> Option<Vec<Passage>> {
        let all = self.read_all()?;
        Some(flows.iter().map(|ends| all.get(ends).copied().unwrap_or_default()).collect())
    }

    /// Returns the same for a source of an earlier version.
    pub fn read_named(&mut self) -> Option<Vec<FlowCount>> {
        let all = self.read_all()?;
        let count = |(ends, is_inbound): &(FlowEnds, bool)| {
            let Passage { towards, from } = all.get(ends).copied().unwrap_or_default();
            match is_inbound {
                true => FlowCount { original: towards, reply: from },
                false => FlowCount { original: from, reply: towards },
            }
        };
        Some(self.named.iter().map(count).collect())
    }

    fn read_all(&mut self) -> Option<BTreeMap<FlowEnds, Passage>> {
        self.counter.read().unwrap_or_else(|e| {
            tracing::debug!("{}", chain(&e));
            None
        })
    }
}
