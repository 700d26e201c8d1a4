//! The volumes that come with the container.

use protocol::message::Message;
use protocol::wire::Connection;
use state::cause::Cause;
use tokio::task::block_in_place;

use super::{Arrival, Incomplete};
use crate::destination::volumes::{Room, Volumes};
use crate::state_stream::StatePart;

/// The source sent what it has not offered.
#[derive(Debug, thiserror::Error)]
#[error("the source sent files of a volume, and has offered none")]
struct NoVolumes;

impl Arrival {
    /// Makes room for their files.
    pub(super) async fn begin_volumes(&mut self) -> Result<(), Cause> {
        let offered = std::mem::take(&mut self.offered_volumes);
        if offered.is_empty() {
            return Ok(());
        }
        let room = Room { disk: self.limits.disk, devices: self.may_have_devices };
        let (engine, migration) = (&*self.host.engine, self.offer.migration);
        let journal = self.journal.as_mut().ok_or(Incomplete("a journal"))?;
        self.volumes = Some(Volumes::begin(engine, journal, migration, offered, room).await?);
        Ok(())
    }

    /// Takes a part of a volume's files.
    pub(super) fn take_of_volume(&mut self, part: StatePart) -> Result<(), Cause> {
        let volumes = self.volumes.as_mut().ok_or(NoVolumes)?;
        match part {
            StatePart::VolumeChange(change) => block_in_place(|| volumes.change(change)),
            StatePart::VolumeEnd(end) => block_in_place(|| volumes.end_pass(&end)),
            _ => Ok(()),
        }
    }

    /// Does the same while nothing is staged, and tells the source when a pass is on the disk.
    pub(super) async fn take_first_of_volume(
        &mut self,
        connection: &mut Connection,
        part: StatePart,
    ) -> Result<(), Cause> {
        let ended = match &part {
            StatePart::VolumeEnd(end) => Some(end.volume),
            _ => None,
        };
        self.take_of_volume(part)?;
        let (Some(volume), Some(volumes)) = (ended, &mut self.volumes) else { return Ok(()) };
        block_in_place(|| volumes.settle_pass(volume))?;
        Ok(connection.send(&Message::VolumeApplied(volume)).await?)
    }

    /// Has the engine make them, before the container is staged.
    pub(super) async fn prepare_volumes(&mut self) -> Result<(), Cause> {
        let (engine, directories) = (&*self.host.engine, &self.host.directories);
        let (Some(volumes), Some(journal)) = (&mut self.volumes, &mut self.journal) else {
            return Ok(());
        };
        volumes.prepare(engine, directories, journal, &self.offer.id).await
    }

    /// Looks at what the engine has made of them.
    pub(super) async fn check_volumes(&mut self) -> Result<(), Cause> {
        let engine = &*self.host.engine;
        let (Some(volumes), Some(journal)) = (&mut self.volumes, &mut self.journal) else {
            return Ok(());
        };
        volumes.check(engine, journal).await
    }

    /// Puts their files in place, right before the restore.
    pub(super) fn put_volumes_in_place(&mut self) -> Result<(), Cause> {
        let engine = &*self.host.engine;
        let Some(volumes) = &mut self.volumes else { return Ok(()) };
        block_in_place(|| volumes.put_in_place(engine))
    }

    /// Writes their files to the disk, before the source gives the original up.
    pub fn sync_volumes(&self) -> Result<(), Cause> {
        self.volumes.as_ref().map_or(Ok(()), Volumes::sync)
    }

    /// Removes what is left of their arrival: they are the container's now.
    pub async fn settle_volumes(&mut self) -> Result<(), Cause> {
        match self.volumes.take() {
            Some(volumes) => volumes.settle(&self.host.directories).await,
            None => Ok(()),
        }
    }

    /// Leaves them as they are, although the copy goes: it was heard.
    pub async fn leave_volumes(&mut self) -> Result<(), Cause> {
        match self.volumes.take() {
            Some(volumes) => volumes.leave().await,
            None => Ok(()),
        }
    }

    /// Removes them, once the container is gone.
    pub(super) async fn undo_volumes(&mut self) -> Result<(), Cause> {
        match &self.volumes {
            Some(volumes) => volumes.undo(&*self.host.engine).await,
            None => Ok(()),
        }
    }
}
