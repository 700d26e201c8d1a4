//! Whether the memory of a copy is restored with the copy or follows while the copy runs.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use checkpoint::images::{self, ImageDir, MemoryStore};
use checkpoint::lazy_pages::{self, LazyPages};
use protocol::message::MemoryPages;
use state::cause::{Cause, chain};
use state::directories::create_private;

use super::{Arrival, Incomplete};
use crate::destination::work_directory::MEMORY;

/// From this size on memory follows, in bytes. Below it, an eager restore takes no longer than a lazy one.
const LAZY_FROM: u64 = 16 << 20;
/// The log of what puts memory in place, in the run directory.
const LOG: &str = "lazy-pages.log";

impl Arrival {
    /// Takes pages of memory, before the container is staged or after that.
    pub(super) fn take_memory(&mut self, pages: MemoryPages) -> Result<(), Cause> {
        if self.memory.is_none() {
            create_private(&self.work)?;
            let limit = self.offer.image_room();
            let directory = ImageDir::create(&self.work.join(MEMORY), limit)?;
            let store = MemoryStore::create(directory.path(), limit)?;
            self.memory = Some((directory, store));
        }
        let Some((_, store)) = &mut self.memory else { return Ok(()) };
        for run in &pages.runs {
            store.write(pages.process, run.start, &run.bytes)?;
        }
        Ok(())
    }

    /// Completes images that lack the pages which came before, and decides whether memory is to follow the copy. What would
    /// put it in place ends otherwise.
    pub(super) fn complete_memory(&mut self, images: &ImageDir) -> Result<(), Cause> {
        let can_follow = self.lazy_pages.as_mut().is_some_and(LazyPages::is_well);
        let bytes = match &self.memory {
            Some((_, store)) => {
                let follows = can_follow && store.bytes() >= LAZY_FROM;
                store.complete(images.path(), follows)?;
                if follows { images::lazy_bytes(images.path())? } else { 0 }
            }
            None if can_follow => images::lazy_bytes(images.path())?,
            None => 0,
        };
        let is_apart = self.memory.is_some();
        if !can_follow || bytes == 0 || bytes < LAZY_FROM && !is_apart {
            self.lazy_pages = None;
            return Ok(());
        }
        images::keep_huge_pages_out(images.path())?;
        tracing::info!("{}: {} MiB of memory follow", self.offer.migration, bytes >> 20);
        Ok(())
    }

    /// Starts what will put memory in place, while the container still runs at its source. A restore can do without.
    pub(super) async fn expect_memory(&mut self, images: &ImageDir) -> Result<(), Cause> {
        if self.offer.memory < LAZY_FROM {
            return Ok(());
        }
        let staged = self.staged.as_ref().ok_or(Incomplete("itself"))?;
        let socket = staged.criu_directory().join(lazy_pages::SOCKET);
        let run = &self.host.directories.run;
        let lock = lazy_pages::lock_path(run, &self.offer.id);
        let log = OpenOptions::new().append(true).create(true).mode(0o600).open(run.join(LOG))?;
        let started = LazyPages::start(&self.host.shim, images.path(), &socket, &lock, log).await;
        self.lazy_pages = started.unwrap_or_else(|e| {
            tracing::warn!("{}: memory is restored at once: {}", self.offer.migration, chain(&e));
            None
        });
        Ok(())
    }
}
