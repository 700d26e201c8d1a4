//! Further connections for the bulk data of a migration ([`protocol::wire`]).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use protocol::message::{Message, MigrationId};
use protocol::wire::{Connection, MAX_STREAMS};
use state::cause::Cause;
use state::id::HostId;
use tokio::sync::mpsc;

/// A further connection belongs to no conversation of its host.
#[derive(Debug, thiserror::Error)]
#[error("a connection for bulk data belongs to no conversation about migration {0}")]
struct NoConversation(MigrationId);

/// The conversations that further connections may be attached to.
#[derive(Debug, Default)]
pub struct Streams(Mutex<HashMap<Conversation, mpsc::Sender<Connection>>>);

/// A conversation, by its host and its migration: no host takes the connections of another one.
type Conversation = (HostId, MigrationId);

/// While this lives, connections may be attached to a conversation.
#[derive(Debug)]
pub struct Attachable<'a> {
    streams: &'a Streams,
    conversation: Conversation,
}

impl Streams {
    /// Lets a conversation have further connections: those that its own host attaches to its migration.
    #[must_use]
    pub fn accept<'a>(
        &'a self,
        migration: MigrationId,
        connection: &mut Connection,
    ) -> Attachable<'a> {
        let (streams, offered) = mpsc::channel(MAX_STREAMS);
        connection.accept_streams(offered);
        let conversation = (connection.host(), migration);
        self.all().insert(conversation, streams);
        Attachable { streams: self, conversation }
    }

    /// Attaches a connection to the conversation about this migration.
    ///
    /// # Errors
    /// The connection's host has no such conversation, or it has too many connections, or the connection fails.
    pub async fn attach(
        &self,
        migration: MigrationId,
        mut connection: Connection,
    ) -> Result<(), Cause> {
        let streams = self.all().get(&(connection.host(), migration)).cloned();
        let streams = streams.ok_or(NoConversation(migration))?;
        connection.send(&Message::Attached(())).await?;
        Ok(streams.try_send(connection).map_err(|_| NoConversation(migration))?)
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Conversation, mpsc::Sender<Connection>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Attachable<'_> {
    fn drop(&mut self) {
        self.streams.all().remove(&self.conversation);
    }
}
