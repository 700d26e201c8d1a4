//! The systemd unit that is to run the container.

use state::cause::Cause;

use super::{Arrival, Incomplete};

impl Arrival {
    /// Starts it without its own command, if there is one. Returns a process of it, beside which the container is to be staged.
    pub(super) async fn begin_service(&mut self) -> Result<Option<i32>, Cause> {
        let Some(service) = &mut self.service else { return Ok(None) };
        let journal = self.journal.as_mut().ok_or(Incomplete("a journal"))?;
        let holder =
            self.host.background.unit_holder.ok_or(Incomplete("a program for its unit"))?;
        service.begin(journal, holder, &self.source_name).await.map(Some)
    }

    /// Has systemd take the container's monitor for its main process.
    pub async fn hand_service_over(&self) -> Result<(), Cause> {
        match self.service.as_ref().and_then(|service| service.note()) {
            Some(note) => note.hand_over(&*self.host.engine, &self.offer.id).await,
            None => Ok(()),
        }
    }

    /// Stops it, once the container is gone. It stays kept from starting if the copy was heard.
    pub(super) async fn end_service(&self, is_heard: bool) -> Result<(), Cause> {
        match self.service.as_ref().and_then(|service| service.note()) {
            Some(note) => note.undo(is_heard).await,
            None => Ok(()),
        }
    }
}
