//! Rules that count packets of flows: as they come to this host, and as they leave it.

use nftnl::Batch;

use super::step::{ORIGINAL, REPLY, Step};
use super::{
    CHAIN_STAND_IN, CHAIN_STEER, HoldTag, Owner, Table, TableError, expressions, handle, rules,
};
use crate::flow::Flow;

/// How many packets of one direction of a flow have come to this host, and how many have left it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
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
        for chain in [CHAIN_STEER, CHAIN_STAND_IN] {
            for direction in [ORIGINAL, REPLY] {
                let steps = vec![
                    Step::FlowSource(ORIGINAL, original.source),
                    Step::FlowDestination(ORIGINAL, original.destination),
                    Step::FlowPorts(flow.protocol, original.source_port, original.destination_port),
                    Step::Direction(direction),
                    Step::Count,
                ];
                all.push(rules::NewRule { chain: chain.to_owned(), steps });
            }
        }
    }
    all
}

impl Table {
    /// Begins to count, until [`Table::end_count`].
    ///
    /// # Errors
    /// When the table is not installed, or nftables refuses.
    pub(crate) fn count(&mut self, tag: &HoldTag, flows: &[Flow]) -> Result<(), TableError> {
        self.end_count(tag)?;
        let (table, owner) = (handle()?, Owner::Count(tag.clone()));
        let mut batch = Batch::new();
        for rule in &counting(flows) {
            rules::add(&mut batch, &table, rule, &owner)?;
        }
        self.commit(batch, "count packets of flows")
    }

    /// Ends that; absent means done.
    ///
    /// # Errors
    /// When the table cannot be read or changed.
    pub fn end_count(&mut self, tag: &HoldTag) -> Result<(), TableError> {
        self.remove_rules(|owner| matches!(owner, Owner::Count(of) if of == tag))
    }

    /// What has been counted of so many flows, of the original and of the reply direction; `None` if
    /// somebody has removed the rules.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub(crate) fn counted(
        &mut self,
        tag: &HoldTag,
        flows: usize,
    ) -> Result<Option<Vec<[Passed; 2]>>, TableError> {
        let (contents, owner) = (self.read()?, Owner::Count(tag.clone()));
        let of = |chain: &str| {
            let rules = contents.owned_by(&owner).filter(|rule| rule.chain == chain);
            rules.filter_map(|rule| expressions::packets(&rule.expressions)).collect::<Vec<u64>>()
        };
        let (came, left) = (of(CHAIN_STEER), of(CHAIN_STAND_IN));
        if [came.len(), left.len()] != [flows * 2; 2] {
            return Ok(None);
        }
        let passed = came
            .chunks_exact(2)
            .zip(left.chunks_exact(2))
            .map(|(came, left)| [0, 1].map(|way| Passed { came: came[way], left: left[way] }));
        Ok(Some(passed.collect()))
    }
}
