//! An engine that is started while the source still looks at its container, when nothing else needs the
//! processors. It can do nothing but wait, and is ended with the conversation in which nothing comes of it.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::Engine;
use engine::stage::PreparedStage;
use state::cause::{Cause, chain};
use state::directories::Directories;
use state::id::MigrationId;
use state::interrupt_slot::{Place, Turn};
use state::journal;

use super::work_directory::{STAGE, tidy};
use crate::destination::server_context::ServerContext;

/// A migration that is about to be offered.
#[derive(Debug)]
#[must_use = "it must be used or abandoned"]
pub struct Expected {
    migration: MigrationId,
    work: PathBuf,
    stage: Box<dyn PreparedStage>,
    place: Place,
}

impl Expected {
    /// Starts the engine, unless this host has other containers to move. It saves time, so no failure
    /// matters.
    pub async fn begin(host: &ServerContext, migration: MigrationId) -> Option<Self> {
        let run = &host.directories.run;
        let place = Place::try_take(run)?;
        // Taken and given back: nobody is interrupted now.
        Turn::try_take(run).ok()??;
        let work = host.directories.migration(migration);
        // The number is the peer's word. A directory that is there belongs to somebody else.
        DirBuilder::new().mode(0o700).create(&work).ok()?;
        match host.engine.prepare_stage(&work.join(STAGE), &host.shim).await {
            Ok(Some(stage)) => return Some(Self { migration, work, stage, place }),
            Ok(None) => {}
            Err(e) => tracing::debug!("{migration}: {}", chain(&e)),
        }
        note(migration, tidy(&work));
        None
    }

    /// Returns whether it is this migration.
    pub fn is(&self, migration: MigrationId) -> bool {
        self.migration == migration
    }

    /// Returns the prepared stage, and its place among what is staged.
    pub fn into_parts(self) -> (Box<dyn PreparedStage>, Place) {
        (self.stage, self.place)
    }

    /// Ends it; nothing is left.
    pub async fn abandon(self) {
        self.stage.abandon().await;
        note(self.migration, tidy(&self.work));
    }
}

/// Ends an engine that may have been started, and for which there is nothing to do.
pub async fn abandon(expected: Option<Expected>) {
    if let Some(expected) = expected {
        expected.abandon().await;
    }
}

fn note(migration: MigrationId, result: Result<(), Cause>) {
    if let Err(e) = result {
        tracing::warn!("{migration}: {}", chain(e.as_ref()));
    }
}

/// Removes the directories of engines whose agent-server has died, once they have ended as well: their
/// pipes have, but a busy machine takes its time. For the start, when this one has none of its own yet.
pub fn sweep(directories: &Directories, engine: &Arc<dyn Engine>) {
    let Ok(entries) = std::fs::read_dir(&directories.run) else { return };
    for work in entries.flatten().map(|entry| entry.path()) {
        if !engine.is_unused_stage(&work.join(STAGE)) || has_journal(directories, &work) {
            continue;
        }
        let engine = Arc::clone(engine);
        tokio::spawn(async move {
            if engine.unused_stage_ended(&work.join(STAGE)).await
                && let Err(e) = tidy(&work)
            {
                tracing::warn!("{}", chain(e.as_ref()));
            }
        });
    }
}

/// Returns whether a migration's volatile directory is that of a journal.
fn has_journal(directories: &Directories, work: &Path) -> bool {
    let journals = journal::unfinished(&directories.state).unwrap_or_default();
    journals.iter().any(|path| path.file_name() == work.file_name())
}
