//! Prepared copies that wait for their source's decision.
//!
//! A copy is put here before its source hears of it, so that any later conversation can decide about
//! it. Presumed abort: a copy whose lease runs out without a decision is removed, and a source that
//! asks afterwards hears that no copy exists — but only once it really is gone.
//!
//! ```text
//!            insert                take                activated             ended
//!  (unknown) ─────▶ Waiting ──────────────▶ Deciding ───────────▶ Activated ──────▶ (archive)
//!      ▲                                        │
//!      └────────────────────────────────────────┘ removed
//! ```
//!
//! A migration that is not in the table may still have a journal: see [`Copies::decision`].

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use agent_core::journal;
use agent_core::message::MigrationId;

use crate::arrival::Copy;
use crate::host::Host;

/// Copies by migration, and the host that has them.
#[derive(Debug)]
pub struct Copies {
    host: &'static Host,
    table: Mutex<HashMap<MigrationId, Entry>>,
}

#[derive(Debug)]
enum Entry {
    Waiting(Box<Copy>, Instant),
    Deciding,
    Activated,
}

/// What is known of a migration.
#[derive(Debug)]
pub enum Decision {
    /// Its copy, taken out of the table: the caller decides its fate and says so.
    Take(Box<Copy>),
    /// Another conversation is deciding at this moment: ask again.
    Busy,
    /// It was activated before.
    Activated,
    /// No copy exists.
    Unknown,
}

impl Copies {
    /// None yet.
    pub fn new(host: &'static Host) -> Self {
        Self { host, table: Mutex::default() }
    }

    /// The host.
    pub fn host(&self) -> &'static Host {
        self.host
    }

    /// Keeps a copy until `expires`.
    pub fn insert(&self, migration: MigrationId, copy: Copy, expires: Instant) {
        self.table().insert(migration, Entry::Waiting(Box::new(copy), expires));
    }

    /// Whether anything is known of a migration.
    pub fn know(&self, migration: MigrationId) -> Result<bool, journal::Error> {
        Ok(self.table().contains_key(&migration)
            || journal::path(&self.host.directories.state, migration).exists()
            || self.host.handed_over(migration)?.is_some())
    }

    /// What is known of a migration, its copy taken out if one waits. No copy is denied as long as
    /// there is a journal: another process may be settling it, or nobody could.
    pub fn decision(&self, migration: MigrationId) -> Result<Decision, journal::Error> {
        let state = &self.host.directories.state;
        Ok(match self.take(migration) {
            Decision::Unknown if journal::path(state, migration).exists() => Decision::Busy,
            // In this order: a journal goes to the archive in one step.
            Decision::Unknown if self.host.handed_over(migration)?.is_some() => Decision::Activated,
            known => known,
        })
    }

    /// Takes a copy out to activate or to remove it.
    fn take(&self, migration: MigrationId) -> Decision {
        let mut table = self.table();
        match table.get_mut(&migration) {
            None => Decision::Unknown,
            Some(Entry::Activated) => Decision::Activated,
            Some(entry) => match std::mem::replace(entry, Entry::Deciding) {
                Entry::Waiting(copy, _) => Decision::Take(copy),
                _ => Decision::Busy,
            },
        }
    }

    /// A copy that was taken out is the container now, and podman has yet to take it over.
    pub fn activated(&self, migration: MigrationId) {
        self.table().insert(migration, Entry::Activated);
    }

    /// A copy that was taken out no longer exists, or is an engine's container that the archive
    /// remembers.
    pub fn ended(&self, migration: MigrationId) {
        self.table().remove(&migration);
    }

    /// Removes a copy that was taken out.
    pub async fn dispose(&self, migration: MigrationId, copy: Copy) {
        copy.remove().await;
        self.ended(migration);
    }

    /// Removes the copy of a migration whose lease has run out; a copy that was decided about in
    /// the meantime is left alone.
    pub async fn expire(&self, migration: MigrationId) {
        let due = match self.table().get(&migration) {
            Some(Entry::Waiting(_, expires)) => *expires <= Instant::now(),
            _ => false,
        };
        if due {
            self.remove(migration, "the source did not decide").await;
        }
    }

    /// Removes every copy: the agent is stopping.
    pub async fn drop_all(&self) {
        let all: Vec<MigrationId> = self.table().keys().copied().collect();
        for migration in all {
            self.remove(migration, "undecided while the agent stops").await;
        }
    }

    async fn remove(&self, migration: MigrationId, why: &str) {
        if let Decision::Take(copy) = self.take(migration) {
            tracing::warn!("migration {migration}: {why}; removing the copy");
            self.dispose(migration, *copy).await;
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<MigrationId, Entry>> {
        // The table is whole between any two statements of this file.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
