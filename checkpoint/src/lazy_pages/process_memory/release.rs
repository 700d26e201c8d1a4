//! Gives the memory of images back while pages are put in place.

use std::fs::File;
use std::io;
use std::rc::Rc;

use nix::fcntl::{FallocateFlags, fallocate};

use super::{Memories, ProcessMemory};

/// Bytes that are given back at a time where it has to be looked who else needs them.
const RELEASED: u64 = 16 << 20;

impl Memories {
    /// Gives the memory of pages back that a process does not need any more, as far as no relative of it does: at once if it has
    /// none, for relatives may lack many pages in many places.
    pub(super) fn release(&mut self, process: usize, places: &[(u64, u64)]) -> io::Result<()> {
        let pages = Rc::clone(&self.all[process].pages);
        let is_alone = Rc::strong_count(&pages) == 2;
        let released = places.iter().map(|place| (Rc::clone(&pages), *place));
        self.released.extend(released);
        self.released_bytes += places.iter().map(|(start, end)| end - start).sum::<u64>();
        match is_alone || self.released_bytes >= RELEASED {
            true => self.release_all(),
            false => Ok(()),
        }
    }

    /// Gives back what was released and nobody lacks.
    pub(super) fn release_all(&mut self) -> io::Result<()> {
        self.released_bytes = 0;
        let mut released = std::mem::take(&mut self.released);
        while let Some((pages, _)) = released.first() {
            let pages = Rc::clone(pages);
            let (of_this, others) =
                released.into_iter().partition(|(other, _)| Rc::ptr_eq(other, &pages));
            released = others;
            let of_this: Vec<(Rc<File>, (u64, u64))> = of_this;
            let mut free: Vec<(u64, u64)> = of_this.into_iter().map(|(_, place)| place).collect();
            let needs = |of: &&ProcessMemory| !of.is_gone && Rc::ptr_eq(&of.pages, &pages);
            for relative in self.all.iter().filter(needs) {
                free = relative.pending.without_offsets(&free);
            }
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            for (start, end) in free {
                fallocate(&*pages, flags, start as i64, (end - start) as i64)?;
            }
        }
        Ok(())
    }
}
