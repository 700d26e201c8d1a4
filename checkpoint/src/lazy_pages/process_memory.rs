//! The memory of processes that lack pages.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use nix::fcntl::{FallocateFlags, fallocate};

use super::event_log::{EventLog, Fact};
use crate::images::{LazyRange, PAGE};
use crate::page_ranges::PageRanges;
use crate::userfault::{Copied, Event, RawEvent, Userfault};

/// Bytes that are put in place for one page fault: what is beside a page is often needed next.
const AROUND: u64 = 64 << 10;
/// Bytes that are put in place at a time when nothing waits.
const CHUNK: u64 = 512 << 10;

/// A process that may lack pages.
#[derive(Debug)]
pub(super) struct ProcessMemory {
    /// Names it in the log.
    number: u64,
    pub(super) userfault: Userfault,
    pending: PageRanges,
    /// The file of pages of the images. Children have that of their parent.
    pages: Rc<File>,
    /// Addresses of pages that it waits for and that could not be put in place yet.
    faults: Vec<u64>,
    is_gone: bool,
}

/// The memory of all processes of a container.
#[derive(Debug)]
pub(super) struct Memories {
    all: Vec<ProcessMemory>,
    /// What the holder has to know. Nothing is kept in it as long as there is none.
    pub(super) log: EventLog,
    pub(super) is_held: bool,
    /// The number of the next process.
    next_number: u64,
    /// The process whose turn it is.
    turn: usize,
    buffer: Vec<u8>,
}

impl Memories {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            all: Vec::new(),
            log: EventLog::new()?,
            is_held: false,
            next_number: 0,
            turn: 0,
            buffer: vec![0; CHUNK as usize],
        })
    }

    pub(super) fn all(&self) -> &[ProcessMemory] {
        &self.all
    }

    /// Adds a process.
    pub(super) fn add(&mut self, userfault: Userfault, pending: PageRanges, pages: Rc<File>) {
        let number = self.next_number;
        self.next_number += 1;
        let faults = Vec::new();
        self.all.push(ProcessMemory { number, userfault, pending, pages, faults, is_gone: false });
    }

    /// Returns whether no process lacks a page.
    pub(super) fn is_whole(&self) -> bool {
        self.all.iter().all(|of| of.pending.is_empty() && of.faults.is_empty())
    }

    /// Returns whether there are pages that nothing waits for.
    pub(super) fn has_pending(&self) -> bool {
        self.all.iter().any(|of| !of.pending.is_empty())
    }

    /// Returns whether the kernel has refused something for now.
    pub(super) fn is_refused(&self) -> bool {
        self.all.iter().any(|of| !of.faults.is_empty())
    }

    /// Reads and follows the events of a process, as long as the log has room.
    pub(super) fn read_events(&mut self, process: usize) -> io::Result<()> {
        loop {
            let Some(of) = self.all.get(process) else { return Ok(()) };
            let Some(place) = self.log.place(of.number) else { return Ok(()) };
            if !of.userfault.read_event(place)? {
                return Ok(());
            }
            let event = *place;
            if self.is_held && !matches!(event.decode()?, Event::PageFault { .. }) {
                self.log.keep();
            }
            self.follow(process, &event)?;
        }
    }

    /// Follows what a process does with its memory.
    fn follow(&mut self, process: usize, event: &RawEvent) -> io::Result<()> {
        let of = &mut self.all[process];
        match event.decode()? {
            Event::PageFault { address } => of.faults.push(address),
            Event::Remap { from, to, length } => of.pending.remap(from, to, length),
            Event::Remove { start, end } => of.pending.forget(start, end),
            Event::Fork { child } => {
                let (pending, pages) = (of.pending.clone(), Rc::clone(&of.pages));
                // SAFETY: the kernel has opened it for the process that has read the event, whose descriptors are ours.
                let child = unsafe { Userfault::of_number(child) };
                self.add(child, pending, pages);
            }
        }
        Ok(())
    }

    /// Puts the pages in place that processes wait for.
    pub(super) fn serve_faults(&mut self) -> io::Result<()> {
        for process in 0..self.all.len() {
            let faults = std::mem::take(&mut self.all[process].faults);
            for address in faults {
                self.serve_fault(process, address)?;
            }
        }
        Ok(())
    }

    /// Puts the page in place that a process waits for, and those beside it.
    fn serve_fault(&mut self, process: usize, address: u64) -> io::Result<()> {
        let of = &mut self.all[process];
        if let Some(range) = of.pending.at(address, AROUND) {
            // Pages of another mapping are beside it.
            if self.put(process, range)? == Copied::Unmapped && range.end - range.start > PAGE {
                self.put(process, LazyRange { end: range.start + PAGE, ..range })?;
            }
            let of = &mut self.all[process];
            if of.pending.at(address, PAGE).is_some() && !of.is_gone {
                of.faults.push(address);
            }
            return Ok(());
        }
        match of.userfault.zero(address)? {
            Copied::Later => of.faults.push(address),
            Copied::Present => of.userfault.wake(address),
            Copied::Gone => of.is_gone = true,
            // What is not mapped any more waits for nothing.
            Copied::Bytes(_) | Copied::Unmapped => {}
        }
        Ok(())
    }

    /// Puts the next pages in place that nothing waits for. Returns whether it could.
    pub(super) fn go_on(&mut self) -> io::Result<bool> {
        let count = self.all.len();
        let lacking = (0..count)
            .map(|step| (self.turn + step) % count)
            .find(|process| !self.all[*process].pending.is_empty());
        let Some(process) = lacking else { return Ok(true) };
        self.turn = process + 1;
        let Some(range) = self.all[process].pending.first(CHUNK) else { return Ok(true) };
        let mut put = self.put(process, range)?;
        if put == Copied::Unmapped && range.end - range.start > PAGE {
            // It reaches beyond one mapping.
            let single = LazyRange { end: range.start + PAGE, ..range };
            put = self.put(process, single)?;
        }
        Ok(put != Copied::Later)
    }

    /// Puts pages in place as far as that goes at once. A single page that is not mapped any more is forgotten.
    fn put(&mut self, process: usize, range: LazyRange) -> io::Result<Copied> {
        let of = &mut self.all[process];
        let length = (range.end - range.start) as usize;
        let buffer = &mut self.buffer[..length];
        of.pages.read_exact_at(buffer, range.offset)?;
        let copied = of.userfault.copy(range.start, buffer)?;
        let done = match copied {
            Copied::Bytes(bytes) => bytes,
            Copied::Present => {
                of.userfault.wake(range.start);
                PAGE
            }
            Copied::Unmapped if range.end - range.start <= PAGE => PAGE,
            Copied::Unmapped | Copied::Later => 0,
            Copied::Gone => {
                of.is_gone = true;
                0
            }
        };
        if done > 0 {
            of.pending.forget(range.start, range.start + done);
            if self.is_held {
                self.log.put(of.number, range.start, range.start + done);
            }
            self.release(process, range.offset, done)?;
        }
        Ok(copied)
    }

    /// Gives the memory of pages back that a process does not need any more, as far as no relative of it does.
    fn release(&self, process: usize, offset: u64, length: u64) -> io::Result<()> {
        let of = &self.all[process];
        let relatives = self.all.iter().filter(|other| {
            other.number != of.number && !other.is_gone && Rc::ptr_eq(&other.pages, &of.pages)
        });
        let mut free = vec![(offset, offset + length)];
        relatives.for_each(|relative| free = relative.pending.without_offsets(&free));
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for (start, end) in free {
            fallocate(&*of.pages, flags, start as i64, (end - start) as i64)?;
        }
        Ok(())
    }

    /// Forgets processes that have ended, and gives back what they alone needed.
    pub(super) fn forget_gone(&mut self) -> io::Result<()> {
        while let Some(process) = self.all.iter().position(|of| of.is_gone) {
            // Its descriptor must not be closed before the holder can know.
            if self.is_held && !self.log.gone(self.all[process].number) {
                return Ok(());
            }
            for (start, end) in std::mem::take(&mut self.all[process].pending).offsets() {
                self.release(process, start, end - start)?;
            }
            self.all.remove(process);
        }
        Ok(())
    }

    /// Follows what a server that was killed has left in the log. What waits for a page asks again.
    pub(super) fn take_over(&mut self) -> io::Result<()> {
        for entry in self.log.entries() {
            let Some(process) = self.all.iter().position(|of| of.number == entry.process) else {
                continue;
            };
            match entry.fact() {
                Fact::Event(event) if matches!(event.decode()?, Event::PageFault { .. }) => {}
                Fact::Event(event) => self.follow(process, &event)?,
                Fact::Put { start, end } => self.all[process].pending.forget(start, end),
                Fact::Gone => {
                    // The server has closed the descriptors, or will never.
                    let ProcessMemory { userfault, pages, .. } = self.all.remove(process);
                    std::mem::forget(userfault);
                    std::mem::forget(Rc::into_inner(pages));
                }
            }
        }
        for of in &mut self.all {
            of.faults.clear();
            of.userfault.wake_all();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};

    use super::*;

    fn descriptor() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    /// Writes into the log what the kernel would.
    fn event(memories: &mut Memories, process: u64, kind: u8, arguments: [u64; 3]) {
        let place = memories.log.place(process).unwrap();
        (place.kind, place.arguments) = (kind, arguments);
        memories.log.keep();
    }

    #[test]
    fn a_successor_knows_what_the_server_knew() {
        const FORK: u8 = 0x13;
        const REMAP: u8 = 0x14;
        const REMOVE: u8 = 0x15;
        let range = LazyRange { start: 16 * PAGE, end: 32 * PAGE, offset: 0 };
        let mut memories = Memories::new().unwrap();
        let pages = Rc::new(tempfile::tempfile().unwrap());
        memories.add(Userfault::new(descriptor()), PageRanges::new(&[range]), pages);
        memories.all[0].faults.push(17 * PAGE);
        memories.log.put(0, 16 * PAGE, 18 * PAGE);
        event(&mut memories, 0, REMOVE, [20 * PAGE, 21 * PAGE, 0]);
        let (first, second) = (descriptor().into_raw_fd(), descriptor().into_raw_fd());
        let number = |fd: i32| u64::from(fd.cast_unsigned());
        event(&mut memories, 0, FORK, [number(first), 0, 0]);
        event(&mut memories, 0, FORK, [number(second), 0, 0]);
        event(&mut memories, 0, REMAP, [24 * PAGE, 64 * PAGE, 2 * PAGE]);
        assert!(memories.log.gone(2));
        event(&mut memories, 1, REMOVE, [0, 30 * PAGE, 0]);
        memories.take_over().unwrap();
        let [parent, child] = &memories.all[..] else { panic!("{:?}", memories.all) };
        let has = |of: &ProcessMemory, page: u64| of.pending.at(page * PAGE, PAGE).is_some();
        assert!([18, 19, 21, 23, 26, 31, 64, 65].into_iter().all(|page| has(parent, page)));
        assert!(![16, 17, 20, 24, 25, 66].into_iter().any(|page| has(parent, page)));
        assert!(has(child, 30) && !has(child, 29) && !has(child, 64));
        assert_eq!((child.number, child.userfault.as_fd().as_raw_fd()), (1, first));
        assert_eq!(memories.next_number, 3);
        assert!(!memories.is_refused(), "what waits asks again");
        // SAFETY: fcntl(2) with numbers alone; nothing has closed the descriptor of the process that is gone.
        assert!(unsafe { libc::fcntl(second, libc::F_GETFD) } >= 0);
    }

    #[test]
    fn pages_that_a_child_lacks_are_kept() {
        use std::os::unix::fs::MetadataExt;
        let mut memories = Memories::new().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![7; 4 * PAGE as usize], 0).unwrap();
        let pages = Rc::new(file.try_clone().unwrap());
        let whole = LazyRange { start: 0, end: 4 * PAGE, offset: 0 };
        let other = LazyRange { start: 64 * PAGE, end: 65 * PAGE, offset: PAGE };
        for pending in [whole, other] {
            let pages = Rc::clone(&pages);
            memories.add(Userfault::new(descriptor()), PageRanges::new(&[pending]), pages);
        }
        let byte = |offset: u64| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset).unwrap();
            byte[0]
        };
        let before = file.metadata().unwrap().blocks();
        memories.all[0].pending.forget(0, 2 * PAGE);
        memories.release(0, 0, 2 * PAGE).unwrap();
        assert_eq!([0, 1, 2].map(|page| byte(page * PAGE)), [0, 7, 7]);
        memories.all[1].is_gone = true;
        memories.forget_gone().unwrap();
        assert_eq!([0, 1, 2].map(|page| byte(page * PAGE)), [0, 0, 7]);
        assert!(file.metadata().unwrap().blocks() < before);
    }
}
