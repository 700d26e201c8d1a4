//! The removal of the original, and what goes with it: orders, processes and changes that came too late for the copy.

use state::cause::Cause;
use state::deadline;
use state::interrupt_slot::give_way;
use state::journal::Record;
use tokio::task::block_in_place;

use super::Completion;
use crate::source::{engine_orders, exec_sessions, late_files};

impl Completion<'_> {
    /// Removes the original, and notes what of it the destination does not have.
    ///
    /// # Errors
    /// Something is left for recovery.
    pub(super) async fn remove_original(&mut self) -> Result<(), Cause> {
        let migration = &mut self.migration;
        let is_paused_by_us = migration.original_paused().await;
        migration.journal.append(&Record::Acknowledged)?;
        give_way(&migration.context.directories.run, deadline::GIVE_WAY).await;
        let plan = &migration.plan;
        // It must not be heard when it is killed, whoever has rebuilt its network meanwhile.
        if plan.port.check_blocked().is_err()
            && let Ok(port) = plan.present_port()
        {
            port.block()?;
        }
        let engine = &migration.context.engine;
        let mut order = if is_paused_by_us {
            None
        } else {
            let (container, is_plain) = (&plan.container, plan.is_plain);
            engine_orders::find_late(
                engine,
                container,
                is_plain,
                &plan.cgroup,
                &self.progress.signals,
            )
            .await
        };
        let (id, first) = (&plan.container.id, plan.process.pid);
        let entered = exec_sessions::find_late(id, &plan.cgroup, first).await;
        let late = block_in_place(|| late_files::find(&plan.container, self.progress.files_read));
        migration.kill_original().await?;
        // The engine removes a container whose tasks are dead without a word.
        let container = &migration.plan.container;
        if order.is_none() && !migration.context.engine.exists(&container.id).await? {
            order = Some("removed".to_owned());
        }
        let destination = &migration.plan.link.destination.host;
        self.lost.extend(late.map(|path| {
            format!(
                "files of {} were changed on this host after they had gone over to {destination}, such as {}; the changes are \
                 lost there",
                container.name,
                path.display()
            )
        }));
        self.lost.extend(entered.map(|by| {
            format!(
                "{} was entered on this host, by {by}, after the last look for that; what had entered was ended with the \
                 original, and does not run on {destination}",
                container.name
            )
        }));
        self.lost.extend(order.map(|what| {
            format!(
                "{} was {what} on this host after its move to {destination} was decided; it runs there without \
                 that order",
                container.name
            )
        }));
        migration.remove_original().await?;
        migration.tidy()
    }
}
