//! What comes of files, log, memory and volumes before the container is staged.

use protocol::message::Message;
use protocol::wire::Connection;
use state::cause::Cause;
use tokio::task::block_in_place;

use super::Arrival;
use crate::destination::spool::Spool;
use crate::state_stream::StatePart;

impl Arrival {
    /// Keeps what comes of files and log until there is a container to put it into.
    pub(super) async fn keep_first_pass(
        &mut self,
        connection: &mut Connection,
        message: Message,
    ) -> Result<(), Cause> {
        let part = match StatePart::try_from(message) {
            Ok(
                part @ (StatePart::Chunks(_)
                | StatePart::Flows(_)
                | StatePart::Settings(_)
                | StatePart::MemoryLater(_)
                | StatePart::SharedMemoryEnd(_)),
            ) => {
                return Err(connection.unexpected(&part.into(), "Stage").into());
            }
            Err(other) => return Err(connection.unexpected(&other, "Stage").into()),
            Ok(StatePart::Memory(pages)) => return block_in_place(|| self.take_memory(&pages)),
            Ok(StatePart::EmptyMemory(pages)) => {
                return block_in_place(|| self.empty_memory(&pages));
            }
            Ok(part @ (StatePart::SharedMemory(_) | StatePart::EmptySharedMemory(_))) => {
                return block_in_place(|| self.take_shared_memory(part));
            }
            Ok(part @ (StatePart::VolumeChange(_) | StatePart::VolumeEnd(_))) => {
                return self.take_first_of_volume(connection, part).await;
            }
            Ok(part) => part,
        };
        let ended = match &part {
            StatePart::TreeEnd(end) => Some(end.tree),
            _ => None,
        };
        if self.spool.is_none() {
            let (directories, limit) = (&self.host.directories, self.limits.disk);
            self.spool = Some(Spool::create(directories, self.offer.migration, limit)?);
        }
        if let Some(spool) = &self.spool {
            block_in_place(|| spool.keep(part))?;
        }
        if let Some(tree) = ended {
            connection.send(&Message::TreeApplied(tree)).await?;
        }
        Ok(())
    }
}
