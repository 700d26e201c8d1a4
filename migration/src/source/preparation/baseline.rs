//! What is looked at before the interruption, to tell afterwards what it has cost.

use protocol::message::{Message, PASSAGE};
use state::cause::Cause;

use super::super::dead_connections::InUse;
use super::super::flow_passage::{FlowPassage, there};
use super::super::migration::Migration;
use super::super::plan::Plan;
use super::super::siblings_left_behind;
use super::Preparation;
use super::tools::Ready;

impl Preparation<'_> {
    /// Begins to watch what is in use. A move does not fail of it.
    pub(super) fn watch(&self) -> InUse {
        let tag = self.migration.hold_tag();
        InUse::watch(tag.and_then(|tag| FlowPassage::watch(&tag, &self.migration.plan.addresses)))
    }

    /// Has the destination count packets, too, if it knows how to. It does not answer.
    pub(super) async fn have_counted(&mut self) -> Result<(), Cause> {
        let Migration { plan, in_use, .. } = &mut self.migration;
        if plan.link.connection.has(PASSAGE) && in_use.is_counted() {
            let addresses = there(&plan.addresses, &plan.readdressed);
            plan.link.connection.send(&Message::CountPackets(addresses)).await?;
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
