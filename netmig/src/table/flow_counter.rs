//! Rules that count packets of flows: as they come to this host, and as they leave it.

use nftnl::Batch;

use super::statement::{ORIGINAL, REPLY, Statement};
use super::{
    CHAIN_POSTROUTING, CHAIN_STEER, Purpose, RuleTag, Table, TableError, compare, handle, rules,
};
use crate::flow::Flow;

/// How many packets of one direction of a flow have come to this host, and how many have left it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCount {
    /// Seen before routing, once they were released.
    pub came: u64,
    /// Seen after everything that may drop them.
    pub left: u64,
}

/// The rules for these flows: in each chain two for each flow, of the original and of the reply direction.
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
    /// Begins to count, until [`Table::remove_flow_counter`].
    ///
    /// # Errors
    /// When the table is not installed, or nftables refuses.
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

    /// Ends that; absent means done.
    ///
    /// # Errors
    /// When the table cannot be read or changed.
    pub fn remove_flow_counter(&mut self, tag: &RuleTag) -> Result<(), TableError> {
        self.remove_rules(|purpose| matches!(purpose, Purpose::FlowCounter(of) if of == tag))
    }

    /// What has been counted of so many flows, of the original and of the reply direction; `None` if
    /// somebody has removed the rules.
    ///
    /// # Errors
    /// When the table cannot be read.
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

/// Most flows that are watched at a time: each costs every packet of this host a comparison or two.
pub const MOST_COUNTED: usize = 8;

/// Flows whose packets are counted. What it has made goes with it.
pub struct FlowCounter {
    tag: RuleTag,
    table: Table,
    flows: usize,
}

impl FlowCounter {
    /// Begins to count the packets of these flows.
    ///
    /// # Errors
    /// When the table is not installed, or nftables refuses.
    pub fn begin(tag: &RuleTag, flows: &[Flow]) -> Result<Self, TableError> {
        let mut table = Table::open()?;
        let flows = &flows[..flows.len().min(MOST_COUNTED)];
        table.add_flow_counter(tag, flows)?;
        Ok(Self { tag: tag.clone(), table, flows: flows.len() })
    }

    /// What has passed since, of the original and of the reply direction of each flow; `None` if somebody has
    /// removed the rules.
    ///
    /// # Errors
    /// When the table cannot be read.
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
            // They go with the migration.
            tracing::warn!("counting packets of flows: {error}");
        }
    }
}
