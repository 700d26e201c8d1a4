//! The wait for memory that goes over after the decision. Until all of it has arrived the frozen original is the only one that has
//! the rest.

use std::time::Duration;

use ownership::source::{Departure, handed_over};
use state::journal::Record;
use tokio::task::block_in_place;

use super::Completion;
use crate::event::{Steps, milliseconds};
use crate::source::destination_rpc::Error;
use crate::source::failure::Failure;
use crate::source::memory_service::is_lost;

/// From so long on the engine is told that the original is paused, so that nobody stops it meanwhile.
const SHORT: Duration = Duration::from_secs(2);

impl Completion<'_> {
    /// Waits until the destination has all memory, if some of it goes over after the decision. The container is its engine's.
    pub(super) async fn await_memory(&mut self, steps: &mut Steps<'_>) -> Result<(), Failure> {
        let Some(mut service) = self.migration.memory_service.take() else { return Ok(()) };
        if handed_over(true) != Departure::Outstanding {
            return Ok(());
        }
        if let Err(e) = block_in_place(|| self.migration.journal.append(&Record::PagesOutstanding))
        {
            return Err(self.doubt(Error::Own(e.into()), true).await);
        }
        steps.begin("memory, while it runs there");
        let context = self.migration.context;
        let destination = self.migration.plan.link.destination.clone();
        let served =
            match tokio::time::timeout(SHORT, service.finished(context, &destination)).await {
                Ok(served) => served,
                Err(_) => {
                    self.migration.pause_original();
                    service.finished(context, &destination).await
                }
            };
        let served = match served {
            Ok(served) => served,
            Err(error) => return Err(self.doubt(error, service.has_original()).await),
        };
        steps.add_bytes(served.all);
        let memory = &mut self.progress.memory;
        memory.waited_for = served.urgent;
        memory.arrived_after_ms = milliseconds(self.audible.elapsed());
        if !served.is_whole {
            self.lost.push(format!(
                "the container ended at {} before all of its memory had arrived",
                self.migration.plan.link.destination.host
            ));
        }
        Ok(())
    }

    /// Keeps the original: what the destination lacks is here alone. `has_original`: it has stood still all the time.
    async fn doubt(&mut self, error: Error, has_original: bool) -> Failure {
        self.migration.pause_original();
        self.migration.original_paused().await;
        Failure::PagesOutstanding {
            container: self.migration.plan.container.name.clone(),
            destination: self.migration.plan.link.destination.host.clone(),
            is_lost: is_lost(&error),
            has_original,
            cause: error.into(),
        }
    }
}
