//! Counting packets of flows: as they come to this host, and as they leave it.

use nftnl::Batch;

use super::statement::{ORIGINAL, REPLY, Statement};
use super::{
    CHAIN_POSTROUTING, CHAIN_STEER, Purpose, RuleTag, Table, TableError, compare, handle, rules,
};
use crate::flow::Flow;

/// Packets of one direction of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCount {
    /// Packets that came, counted before routing, once they were released.
    pub came: u64,
    /// Packets that left, counted after everything that may drop them.
    pub left: u64,
}

/// Returns the rules for these flows: in each chain two for each flow, for the original and the
/// reply direction.
fn counting(flows: &[Flow]) -> Vec<rules::NewRule> {
    let mut all = Vec::new();
    for flow in flows {
        let original = flow.original;
        for chain in [CHAIN_STEER, CHAIN_POSTROUTING] {
            for direction in [ORIGINAL, REPLY] {
                let statements = vec![
                    Statement::CtSource(ORIGINAL, original.source),
                    Statement::CtDestination(ORIGINAL, original.destination),
                    Statement::CtPorts(
                        flow.protocol,
                        original.source_port,
                        original.destination_port,
                    ),
                    Statement::CtDirection(direction),
                    Statement::Counter,
                ];
                all.push(rules::NewRule { chain: chain.to_owned(), statements });
            }
        }
    }
    all
}

impl Table {
    /// Starts counting, until [`Table::remove_flow_counter`].
    ///
    /// # Errors
    /// [`TableError::Refused`] when the table is not installed, or nftables refuses;
    /// [`TableError::Read`].
    pub(crate) fn add_flow_counter(
        &mut self,
        tag: &RuleTag,
        flows: &[Flow],
    ) -> Result<(), TableError> {
        self.remove_flow_counter(tag)?;
        let (table, purpose) = (handle()?, Purpose::FlowCounter(tag.clone()));
        let mut batch = Batch::new();
        for rule in &counting(flows) {
            rules::add(&mut batch, &table, rule, &purpose)?;
        }
        self.commit(batch, "count packets of flows")
    }

    /// Removes the counting rules; absent rules are not an error.
    ///
    /// # Errors
    /// [`TableError::Read`], [`TableError::Refused`] when the table cannot be read or changed.
    pub fn remove_flow_counter(&mut self, tag: &RuleTag) -> Result<(), TableError> {
        self.remove_rules(|purpose| matches!(purpose, Purpose::FlowCounter(of) if of == tag))
    }

    /// Returns the counts of this number of flows, for the original and the reply direction of
    /// each; `None` if others have removed the rules.
    ///
    /// # Errors
    /// [`TableError::Read`] when the table cannot be read.
    pub(crate) fn flow_counts(
        &mut self,
        tag: &RuleTag,
        flows: usize,
    ) -> Result<Option<Vec<[PacketCount; 2]>>, TableError> {
        let (contents, purpose) = (self.read()?, Purpose::FlowCounter(tag.clone()));
        let of = |chain: &str| {
            let rules = contents.with_purpose(&purpose).filter(|rule| rule.chain == chain);
            rules.filter_map(|rule| compare::packets(&rule.expressions)).collect::<Vec<u64>>()
        };
        let (came, left) = (of(CHAIN_STEER), of(CHAIN_POSTROUTING));
        if [came.len(), left.len()] != [flows * 2; 2] {
            return Ok(None);
        }
        let passed = came
            .chunks_exact(2)
            .zip(left.chunks_exact(2))
            .map(|(came, left)| [0, 1].map(|way| PacketCount { came: came[way], left: left[way] }));
        Ok(Some(passed.collect()))
    }
}

/// Most flows that are counted at a time: each costs every packet of this host a comparison or two.
pub const MOST_COUNTED: usize = 8;

/// Flows whose packets are counted. Dropping it removes its rules.
pub struct FlowCounter {
    tag: RuleTag,
    table: Table,
    flows: usize,
}

impl FlowCounter {
    /// Starts counting the packets of these flows, of at most [`MOST_COUNTED`].
    ///
    /// # Errors
    /// [`TableError::Refused`] when the table is not installed, or nftables refuses;
    /// [`TableError::Open`], [`TableError::Read`].
    pub fn begin(tag: &RuleTag, flows: &[Flow]) -> Result<Self, TableError> {
        let mut table = Table::open()?;
        let flows = &flows[..flows.len().min(MOST_COUNTED)];
        table.add_flow_counter(tag, flows)?;
        Ok(Self { tag: tag.clone(), table, flows: flows.len() })
    }

    /// Returns the packets since then, of the original and of the reply direction of each flow;
    /// `None` if others have removed the rules.
    ///
    /// # Errors
    /// [`TableError::Read`] when the table cannot be read.
    pub fn read(&mut self) -> Result<Option<Vec<[PacketCount; 2]>>, TableError> {
        self.table.flow_counts(&self.tag, self.flows)
    }
}

impl std::fmt::Debug for FlowCounter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowCounter").field("tag", &self.tag).finish_non_exhaustive()
    }
}

impl Drop for FlowCounter {
    fn drop(&mut self) {
        if let Err(error) = self.table.remove_flow_counter(&self.tag) {
            // The rules are removed with the migration.
            tracing::warn!("cannot remove rules that count packets: {error}");
        }
    }
}
