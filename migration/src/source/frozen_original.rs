//! The frozen original of a decided move, while its destination lacks pages of its memory.
//!
//! It is the copy's memory as long as it stands still. If somebody sets it going, even for a moment, or ends a process of it, no
//! page of it is read any more.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use checkpoint::cgroup::{Cgroup, FreezeWatch};
use checkpoint::{procfs, write_tracking};
use protocol::message::WantedPages;
use state::cause::{Cause, chain};

/// A frozen original.
#[derive(Debug)]
pub struct Original {
    /// `None` if it is gone.
    cgroup: Option<Arc<Cgroup>>,
    /// Tells whether it has stood still since the decision. `None` if it did not when it was looked at.
    watch: OnceLock<Option<FreezeWatch>>,
    /// The memory of its processes, by the numbers that they have in the container. An opened file means the same process even if
    /// that ends and its ID becomes another one's.
    memory: Mutex<BTreeMap<i32, Arc<File>>>,
    all: AtomicU64,
    urgent: AtomicU64,
}

impl Original {
    /// The container of a cgroup; `None` if it is gone, so that the destination has to be told.
    #[must_use]
    pub fn new(cgroup: Option<Arc<Cgroup>>) -> Arc<Self> {
        let (watch, memory) = (OnceLock::new(), Mutex::default());
        let (all, urgent) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { cgroup, watch, memory, all, urgent })
    }

    /// Notices from now on if it runs for a moment. Before the decision the agent itself stops its tasks in other ways meanwhile,
    /// which looks the same.
    pub fn watch(&self) {
        let watch = self.cgroup.as_ref().map_or(Ok(None), |cgroup| cgroup.watch_freeze());
        match watch {
            Ok(watch) => {
                self.watch.get_or_init(|| watch);
            }
            // It is looked at each time all the same.
            Err(e) => tracing::warn!("{}", chain(&e)),
        }
    }

    /// Returns how many bytes were sent, and how many of them because a process waited.
    #[must_use]
    pub fn sent(&self) -> (u64, u64) {
        (self.all.load(Ordering::Relaxed), self.urgent.load(Ordering::Relaxed))
    }

    /// Counts bytes that are about to be sent.
    pub fn count(&self, bytes: u64, is_urgent: bool) {
        self.all.fetch_add(bytes, Ordering::Relaxed);
        if is_urgent {
            self.urgent.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Reads some pages; `None` if they cannot be had. Blocks.
    ///
    /// # Errors
    /// The kernel does not tell whether it stands still, or does not let its memory be read.
    pub fn read(
        &self,
        WantedPages { process, start, end }: WantedPages,
    ) -> Result<Option<Bytes>, Cause> {
        let Some(memory) = self.memory(process)? else { return Ok(None) };
        let mut bytes = vec![0; (end - start) as usize];
        let read = write_tracking::read_opened(&memory, start, &mut bytes)?;
        // It may have been set going meanwhile.
        let is_sound = read == bytes.len() && self.stands_still()?;
        Ok(is_sound.then(|| Bytes::from(bytes)))
    }

    /// Returns the memory of the process with a number in the container; `None` unless the container stands still.
    fn memory(&self, inner: i32) -> Result<Option<Arc<File>>, Cause> {
        let Some(cgroup) = &self.cgroup else { return Ok(None) };
        if !self.stands_still()? {
            return Ok(None);
        }
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.is_empty() {
            let mut opened = Vec::new();
            for pid in cgroup.pids()? {
                let (inner, file) = (procfs::inner_pid(pid), write_tracking::open_memory(pid)?);
                opened.extend(inner.zip(file).map(|(inner, file)| (pid, inner, file)));
            }
            // What is there still was there all the time: the ID is no other process's.
            let present = cgroup.pids()?;
            let present = opened.into_iter().filter(|(pid, ..)| present.contains(pid));
            memory.extend(present.map(|(_, inner, file)| (inner, Arc::new(file))));
        }
        Ok(memory.get(&inner).cloned())
    }

    /// Returns whether it stands still, and has since it is watched.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn stands_still(&self) -> Result<bool, Cause> {
        let Some(cgroup) = &self.cgroup else { return Ok(false) };
        if let Some(watch) = self.watch.get() {
            return Ok(watch.as_ref().is_some_and(FreezeWatch::is_unbroken));
        }
        Ok(cgroup.watch_freeze()?.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_what_is_gone_is_not_read() {
        let original = Original::new(None);
        let pages = WantedPages { process: 7, start: 0, end: checkpoint::images::PAGE };
        assert!(original.read(pages).unwrap().is_none());
        original.watch();
        assert!(original.read(pages).unwrap().is_none());
    }
}
