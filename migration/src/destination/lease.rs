//! Prepared copies that wait for their source's decision.
//!
//! A copy is put here before its source hears of it, so that any later conversation can decide about
//! it. Presumed abort: a copy whose lease runs out without a decision is removed, and a source that
//! asks afterwards hears that no copy exists, but only once it really is gone. What an order does is
//! decided by [`ownership::destination::reply`].
//!
//! ```text
//!            insert                take                activated             ended
//!  (nothing) ─────▶ Waiting ──────────────▶ Unsettled ──────────▶ Activated ──────▶ (archive)
//!      ▲                                        │
//!      └────────────────────────────────────────┘ removed
//! ```
//!
//! A migration that is not in the table may still have a journal, or be remembered in the archive.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ownership::destination::{Holding, Order, Reply, reply};
use state::id::HostId;
use state::id::MigrationId;
use state::journal::{self, Record};

use crate::destination::copy::Copy;
use crate::destination::counted_flows::CountedFlows;
use crate::destination::server_context::ServerContext;

/// Copies by migration, and the host that has them.
#[derive(Debug)]
pub struct Copies {
    host: &'static ServerContext,
    table: Mutex<HashMap<MigrationId, Entry>>,
    /// What is counted for sources that may still ask. A source whose conversation breaks picks it up in another one.
    counted: Mutex<HashMap<MigrationId, CountedFlows>>,
}

/// One migration whose copy was prepared.
#[derive(Debug)]
struct Entry {
    source: HostId,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Waiting(Box<Copy>, Instant),
    Deciding,
    Activated,
}

impl Stage {
    fn holding(&self) -> Holding {
        match self {
            Self::Waiting(..) => Holding::Waiting,
            Self::Deciding => Holding::Unsettled,
            Self::Activated => Holding::Activated,
        }
    }
}

/// What an order does, with the copy that it is about.
#[derive(Debug)]
pub enum Decision {
    /// The copy, taken out of the table: the caller activates or removes it, as the order says.
    Take(Box<Copy>),
    /// No copy is to be touched.
    Answer(Reply),
}

impl Copies {
    /// Makes an empty list.
    pub fn new(host: &'static ServerContext) -> Self {
        Self { host, table: Mutex::default(), counted: Mutex::default() }
    }

    /// Returns the host.
    pub fn host(&self) -> &'static ServerContext {
        self.host
    }

    /// Returns what is counted of the flows of containers that have come.
    pub fn counted(&self) -> MutexGuard<'_, HashMap<MigrationId, CountedFlows>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a copy that came from `source` until `expires`.
    pub fn insert(&self, migration: MigrationId, source: HostId, copy: Copy, expires: Instant) {
        let stage = Stage::Waiting(Box::new(copy), expires);
        self.table().insert(migration, Entry { source, stage });
    }

    /// Decides what an order of the host `from` does, and takes the copy out if it is to be activated or
    /// removed.
    ///
    /// # Errors
    /// [`journal::Error`] when this host cannot tell: the peer must not take that for an answer.
    pub fn decide(
        &self,
        migration: MigrationId,
        from: HostId,
        order: Order,
    ) -> Result<Decision, journal::Error> {
        if let Some(decision) = self.decide_by_table(migration, from, order) {
            return Ok(decision);
        }
        let (holding, owner) = self.noted(migration)?;
        Ok(Decision::Answer(reply(holding, owner, from, order)))
    }

    fn decide_by_table(
        &self,
        migration: MigrationId,
        from: HostId,
        order: Order,
    ) -> Option<Decision> {
        let mut table = self.table();
        let entry = table.get_mut(&migration)?;
        let reply = reply(entry.stage.holding(), Some(entry.source), from, order);
        if !matches!(reply, Reply::Activate | Reply::Remove) {
            return Some(Decision::Answer(reply));
        }
        match std::mem::replace(&mut entry.stage, Stage::Deciding) {
            Stage::Waiting(copy, _) => Some(Decision::Take(copy)),
            other => {
                entry.stage = other;
                Some(Decision::Answer(Reply::Undecided))
            }
        }
    }

    /// Returns what journals and archive say of a migration, and whose it is.
    fn noted(&self, migration: MigrationId) -> Result<(Holding, Option<HostId>), journal::Error> {
        let state = &self.host.directories.state;
        // In this order: a journal goes to the archive in one step.
        if journal::exists(state, migration)? {
            let records = journal::read(&journal::path(state, migration))?;
            return Ok((Holding::Unsettled, source(&records)));
        }
        let Some(records) = journal::archived(state, migration)? else {
            return Ok((Holding::Nothing, None));
        };
        Ok((journal::remembered(&records), source(&records)))
    }

    /// Notes that a copy that was taken out is the container now, and podman has yet to take it over.
    pub fn activated(&self, migration: MigrationId) {
        if let Some(entry) = self.table().get_mut(&migration) {
            entry.stage = Stage::Activated;
        }
    }

    /// Notes that a copy that was taken out no longer exists, or is an engine's container that the archive
    /// remembers, or is left to the journal's guardian.
    pub fn ended(&self, migration: MigrationId) {
        self.table().remove(&migration);
    }

    /// Removes a copy that was taken out; what this host holds of it then.
    pub async fn dispose(&self, migration: MigrationId, copy: Copy) -> Holding {
        let holding = copy.remove().await;
        self.ended(migration);
        holding
    }

    /// Removes the copy of a migration whose lease has run out; a copy that was decided about in
    /// the meantime is left alone.
    pub async fn expire(&self, migration: MigrationId) {
        let due = match self.table().get(&migration) {
            Some(Entry { stage: Stage::Waiting(_, expires), .. }) => *expires <= Instant::now(),
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
        let taken = match self.table().get_mut(&migration) {
            Some(entry) if matches!(entry.stage, Stage::Waiting(..)) => {
                std::mem::replace(&mut entry.stage, Stage::Deciding)
            }
            _ => return,
        };
        if let Stage::Waiting(copy, _) = taken {
            tracing::warn!("migration {migration}: {why}; removing the copy");
            self.dispose(migration, *copy).await;
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<MigrationId, Entry>> {
        // The table is whole between any two statements of this file.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the source of the arrival of these records.
fn source(records: &[Record]) -> Option<HostId> {
    match records.first() {
        Some(Record::Arrival { peer, .. }) => Some(*peer),
        _ => None,
    }
}
