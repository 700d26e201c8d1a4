//! What is looked at before the interruption, to tell afterwards what it has cost.

use protocol::message::{DATAGRAMS, Message};
use state::cause::{Cause, chain};

use super::super::datagrams::Datagrams;
use super::super::dead_connections::InUse;
use super::super::migration::Migration;
use super::super::plan::Plan;
use super::super::siblings_left_behind;
use super::Preparation;
use super::tools::Ready;
use crate::convert::Wire;

impl Preparation<'_> {
    /// Begins to watch what is in use. Nothing depends on it.
    pub(super) async fn watch(&self) -> InUse {
        let (plan, left_out) = (&self.migration.plan, self.migration.plan.far_ends.addresses());
        let datagrams = match self.migration.hold_tag() {
            Ok(tag) => Datagrams::watch(&tag, &plan.addresses, &left_out).await,
            Err(e) => Err(e),
        };
        InUse::watch(datagrams.unwrap_or_else(|e| {
            tracing::debug!("UDP flows are not watched: {}", chain(e.as_ref()));
            None
        }))
    }

    /// Has the destination count packets of them, too, if it knows how to. It does not answer.
    pub(super) async fn have_counted(&mut self) -> Result<(), Cause> {
        let Migration { plan, in_use, .. } = &mut self.migration;
        let connection = &mut plan.link.connection;
        if !connection.has(DATAGRAMS) {
            return Ok(());
        }
        if let Some(flows) = in_use.flows_to_count() {
            connection.send(&Message::CountFlows(flows.into_wire())).await?;
        }
        Ok(())
    }

    /// Returns what the container leaves behind in its networks.
    pub(super) fn tell_of_siblings(&mut self) -> Result<(), Cause> {
        let Plan { siblings, addresses, container, warnings, .. } = &mut self.migration.plan;
        let default = self.migration.context.engine.default_network();
        let Ready { besides, conntrack, sockets, .. } = &mut self.ready;
        if let (Some(besides), Some(conntrack), Some(sockets)) = (besides, conntrack, sockets)
            && !siblings.is_empty()
        {
            let known = conntrack.dump(addresses)?;
            let talking = besides.talking(&sockets.list()?, known, addresses)?;
            warnings.extend(siblings_left_behind::warnings(
                &container.name,
                siblings,
                &talking,
                default,
            ));
        }
        Ok(())
    }
}
