//! What this host has for every conversation.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use checkpoint::cgroup::Cgroup;
use engine::Engine;
use netmig::sockets::receive_buffers;
use protocol::message::{Finished, MigrationId};
use protocol::trust::{Peers, Trust};
use state::cause::Cause;
use state::directories::Directories;
use state::id::HostId;
use state::journal::{self, Record};

use crate::context::Background;
use crate::destination::streams::Streams;

/// This host, as every conversation sees it.
#[derive(Debug)]
pub struct ServerContext {
    /// Where state is kept.
    pub directories: Directories,
    /// Its identity.
    pub id: HostId,
    /// Its name, for people.
    pub name: String,
    /// Whom it is paired with.
    pub peers: Peers,
    /// The engine, with its configuration as it was when this agent started.
    pub engine: Arc<dyn Engine>,
    /// How this program is started in the background.
    pub background: Background,
    /// How long a container waits for pages of its memory while its source cannot be asked, before it is ended.
    pub memory_patience: Duration,
    /// The program that stands in for the OCI runtime while a container is staged.
    pub shim: PathBuf,
    /// Conversations that may have further connections.
    pub(super) streams: Streams,
    stopping: AtomicBool,
}

impl ServerContext {
    /// Makes the directories and asks the engine for its configuration.
    ///
    /// # Errors
    /// The directories cannot be made, or the engine or the shim is not there.
    pub async fn open(
        directories: Directories,
        trust: Trust,
        engine: Arc<dyn Engine>,
        background: Background,
        memory_patience: Duration,
    ) -> Result<Self, Cause> {
        directories.create()?;
        engine.keep_configuration().await?;
        Ok(Self {
            directories,
            id: trust.identity.fingerprint().host(),
            peers: trust.peers,
            name: state::host::name(),
            engine,
            background,
            memory_patience,
            shim: state::host::find_shim()?,
            streams: Streams::default(),
            stopping: AtomicBool::new(false),
        })
    }

    /// Returns what the end of an arrival was, if the engine runs its container.
    ///
    /// # Errors
    /// The archived journal cannot be read.
    pub fn handed_over(&self, migration: MigrationId) -> Result<Option<Finished>, journal::Error> {
        let records = journal::archived(&self.directories.state, migration)?.unwrap_or_default();
        Ok(records.iter().rev().find_map(|record| match record {
            Record::HandedOver { pid, local } => {
                let full_buffers = receive_buffers::dropped_datagrams(*pid).unwrap_or(0);
                Some(Finished { pid: *pid, full_buffers, local: local.clone() })
            }
            _ => None,
        }))
    }

    /// Returns the first process of the container of an arrival, if the engine runs it now.
    ///
    /// # Errors
    /// The archived journal cannot be read, or the engine does not answer.
    pub async fn first_process(&self, migration: MigrationId) -> Result<Option<i32>, Cause> {
        let records = journal::archived(&self.directories.state, migration)?.unwrap_or_default();
        let Some(Record::Arrival { container, .. }) = records.first() else { return Ok(None) };
        if !self.engine.exists(container).await? {
            return Ok(None);
        }
        let pid = self.engine.inspect(container).await?.pid;
        // Where the engine's monitor was killed, the engine goes on telling that the container runs.
        Ok(Cgroup::of_pid(pid, container).is_ok().then_some(pid))
    }

    /// Stops accepting new migrations.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Returns whether the server is shutting down.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}
