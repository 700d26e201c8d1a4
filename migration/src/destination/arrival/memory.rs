//! Whether the memory of a copy is restored with the copy or follows while the copy runs.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use checkpoint::images::{self, ImageDir, MemoryStore, SharedStore};
use checkpoint::lazy_pages::{self, LazyPages, Listening, State, source_link_path};
use checkpoint::shared_memory::Content;
use protocol::message::{EmptyPages, LaterPages, MemoryPages};
use state::cause::{Cause, chain};
use state::directories::create_private;
use state::journal::Record;
use tokio::task::block_in_place;

use super::{Arrival, Incomplete};
use crate::convert::Wire;
use crate::destination::work_directory::MEMORY;
use crate::state_stream::StatePart;

/// From this size on memory follows, in bytes. Below it, an eager restore takes no longer than a lazy one.
const LAZY_FROM: u64 = 16 << 20;
/// The log of what puts memory in place, in the run directory.
const LOG: &str = "lazy-pages.log";

/// What puts memory in place was killed, or failed.
#[derive(Debug, thiserror::Error)]
#[error(
    "what puts the container's memory in place ended; lazy-pages.log in the run directory tells why"
)]
pub struct MemoryGone;

/// Memory that is needed at once does not come.
#[derive(Debug, thiserror::Error)]
#[error("pages of memory that the container needs at once have not come in time")]
pub(super) struct MemoryLate;

/// Memory that came while the container ran.
#[derive(Debug)]
pub(super) struct ReceivedMemory {
    /// Has all of it. Unmounted when the migration's directory is removed.
    _directory: ImageDir,
    /// That of each process.
    private: MemoryStore,
    /// What processes share.
    shared: SharedStore,
}

impl Arrival {
    /// Takes pages of memory, before the container is staged or after that.
    pub(super) fn take_memory(&mut self, pages: &MemoryPages) -> Result<(), Cause> {
        let store = &mut self.received_memory()?.private;
        for run in &pages.runs {
            store.write(pages.process, run.start, &run.bytes)?;
        }
        Ok(())
    }

    /// Takes the word that pages of memory are empty, as [`Arrival::take_memory`].
    pub(super) fn empty_memory(&mut self, pages: &EmptyPages) -> Result<(), Cause> {
        let store = &mut self.received_memory()?.private;
        for run in &pages.runs {
            store.empty(pages.process, run.start, run.length)?;
        }
        Ok(())
    }

    /// Takes a part that is about memory which processes share.
    pub(super) fn take_shared_memory(&mut self, part: StatePart) -> Result<(), Cause> {
        let store = &mut self.received_memory()?.shared;
        match part {
            StatePart::SharedMemory(pages) => {
                for run in &pages.runs {
                    store.write(pages.segment, run.start, &run.bytes)?;
                }
            }
            StatePart::EmptySharedMemory(pages) => {
                for run in &pages.runs {
                    store.empty(pages.segment, run.start, run.length)?;
                }
            }
            StatePart::SharedMemoryEnd(segments) => store.end(Vec::<Content>::from_wire(segments)?),
            _ => {}
        }
        Ok(())
    }

    /// Notes pages of memory that come after the decision.
    pub(super) fn expect_later(&mut self, pages: &LaterPages) -> Result<(), Cause> {
        let store = &mut self.received_memory()?.private;
        for (start, end) in &pages.ranges {
            store.expect_later(pages.process, *start, *end)?;
        }
        Ok(())
    }

    /// Returns whether memory comes after the decision that the copy needs.
    pub fn is_post_copy(&self) -> bool {
        self.is_post_copy
    }

    /// Returns where memory is kept until the restore.
    fn received_memory(&mut self) -> Result<&mut ReceivedMemory, Cause> {
        let made = match self.memory.take() {
            Some(made) => made,
            None => {
                create_private(&self.work)?;
                let limit = self.offer.image_room();
                let directory = ImageDir::create(&self.work.join(MEMORY), limit)?;
                let private = MemoryStore::create(directory.path(), limit)?;
                let shared = SharedStore::new(directory.path(), limit);
                ReceivedMemory { _directory: directory, private, shared }
            }
        };
        Ok(self.memory.insert(made))
    }

    /// Completes images that lack the pages which came before, and decides whether memory is to follow the copy. What would
    /// put it in place ends otherwise.
    pub(super) async fn complete_memory(&mut self, images: &ImageDir) -> Result<(), Cause> {
        let has_later = self.memory.as_ref().is_some_and(|memory| memory.private.later_bytes() > 0);
        if has_later && self.lazy_pages.is_none() {
            self.start_lazy_pages(images).await?;
        }
        let can_follow = self.lazy_pages.as_ref().is_some_and(LazyPages::is_well);
        let (follows, bytes) = match &self.memory {
            Some(ReceivedMemory { private: store, shared, .. }) => {
                if has_later && !can_follow {
                    return Err(MemoryGone.into());
                }
                let follows = can_follow && (has_later || store.bytes() >= LAZY_FROM);
                self.is_post_copy = block_in_place(|| {
                    let needs_more = store.complete(images.path(), follows)?;
                    shared.complete(images.path())?;
                    Ok::<_, Cause>(needs_more)
                })?;
                (follows, if follows { images::lazy_bytes(images.path())? } else { 0 })
            }
            None if can_follow => {
                let bytes = block_in_place(|| images::lazy_bytes(images.path()))?;
                (bytes >= LAZY_FROM, bytes)
            }
            None => (false, 0),
        };
        if self.is_post_copy {
            let journal = self.journal.as_mut().ok_or(Incomplete("journal"))?;
            block_in_place(|| journal.append(&Record::PostCopy))?;
        }
        if !follows {
            self.lazy_pages = None;
            return Ok(());
        }
        images::keep_huge_pages_out(images.path())?;
        tracing::info!("{}: {} MiB of memory follow", self.offer.migration, bytes >> 20);
        Ok(())
    }

    /// Removes what tells that memory of a copy is missing, which was removed.
    pub(super) fn forget_memory(&self) -> Result<(), Cause> {
        let run = &self.host.directories.run;
        match lazy_pages::state(&lazy_pages::lock_path(run, &self.offer.id))? {
            State::Lost => Ok(lazy_pages::forget_lost(run, &self.offer.id)?),
            State::Whole | State::UnderWay => Ok(()),
        }
    }

    /// Starts what will put memory in place, while the container still runs at its source. A restore can do without.
    pub(super) async fn expect_memory(&mut self, images: &ImageDir) -> Result<(), Cause> {
        if self.offer.memory < LAZY_FROM {
            return Ok(());
        }
        self.start_lazy_pages(images).await
    }

    async fn start_lazy_pages(&mut self, images: &ImageDir) -> Result<(), Cause> {
        let staged = self.staged.as_ref().ok_or(Incomplete("itself"))?;
        let socket = staged.criu_directory().join(lazy_pages::SOCKET);
        let run = &self.host.directories.run;
        let lock = lazy_pages::lock_path(run, &self.offer.id);
        let log = OpenOptions::new().append(true).create(true).mode(0o600).open(run.join(LOG))?;
        let source_link = source_link_path(run, &self.offer.migration.to_string());
        let listening = Listening {
            socket: &socket,
            lock: &lock,
            source_link: &source_link,
            patience: self.host.memory_patience,
        };
        let started = LazyPages::start(&self.host.shim, images.path(), listening, log).await;
        self.lazy_pages = started.unwrap_or_else(|e| {
            tracing::warn!("{}: memory is restored at once: {}", self.offer.migration, chain(&e));
            None
        });
        Ok(())
    }
}
