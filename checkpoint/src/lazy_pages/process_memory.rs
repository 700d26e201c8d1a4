//! The memory of processes that lack pages.

mod release;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use super::at_source::AtSource;
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
    /// Addresses of pages that it waits for and that are still at the source.
    waiting: Vec<u64>,
    /// Where the pages begin of which some may be there and not in place. `None` if none is.
    cursor: Option<u64>,
    is_gone: bool,
}

impl ProcessMemory {
    /// Looks at all pages again: some have come, or have other addresses.
    fn look_again(&mut self) {
        self.cursor = Some(0);
        self.faults.append(&mut self.waiting);
    }

    /// Returns whether it may lack a page that could be put in place.
    fn can_go_on(&self) -> bool {
        self.cursor.is_some() && !self.pending.is_empty()
    }

    /// Returns the next pages that are there and not in place.
    fn next(&mut self, at_source: Option<&AtSource>) -> Option<LazyRange> {
        let mut at = self.cursor?;
        while let Some(range) = self.pending.at_or_after(at, CHUNK) {
            let (range, is_there) =
                at_source.map_or((range, true), |pages| pages.first_alike(range));
            if is_there {
                self.cursor = Some(range.start);
                return Some(range);
            }
            at = range.end;
        }
        self.cursor = None;
        None
    }
}

/// The memory of all processes of a container.
#[derive(Debug)]
pub(super) struct Memories {
    all: Vec<ProcessMemory>,
    /// What the holder has to know. Nothing is kept in it as long as there is none.
    pub(super) log: EventLog,
    pub(super) is_held: bool,
    /// Pages that are still at the source, if there were any.
    pub(super) at_source: Option<AtSource>,
    /// The number of the next process.
    next_number: u64,
    /// The process whose turn it is.
    turn: usize,
    buffer: Vec<u8>,
    /// Places in files of pages that a process does not need any more, and that its relatives may need.
    released: Vec<(Rc<File>, (u64, u64))>,
    released_bytes: u64,
}

impl Memories {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            all: Vec::new(),
            log: EventLog::new()?,
            is_held: false,
            at_source: None,
            next_number: 0,
            turn: 0,
            buffer: vec![0; CHUNK as usize],
            released: Vec::new(),
            released_bytes: 0,
        })
    }

    pub(super) fn all(&self) -> &[ProcessMemory] {
        &self.all
    }

    /// Adds a process.
    pub(super) fn add(&mut self, userfault: Userfault, pending: PageRanges, pages: Rc<File>) {
        let number = self.next_number;
        self.next_number += 1;
        self.all.push(ProcessMemory {
            number,
            userfault,
            pending,
            pages,
            faults: Vec::new(),
            waiting: Vec::new(),
            cursor: Some(0),
            is_gone: false,
        });
    }

    /// Returns whether no process lacks a page.
    pub(super) fn is_whole(&self) -> bool {
        let lacks =
            |of: &ProcessMemory| [&of.faults, &of.waiting].iter().any(|them| !them.is_empty());
        !self.all.iter().any(|of| !of.pending.is_empty() || lacks(of))
    }

    /// Returns whether there is nothing more to say about pages at the source, once no process lacks a page.
    pub(super) fn has_told_end(&mut self) -> bool {
        let Some(at_source) = &mut self.at_source else { return true };
        at_source.has_told_end(!self.all.is_empty())
    }

    /// Returns whether there may be pages that nothing waits for and that are here.
    pub(super) fn has_pending(&self) -> bool {
        self.all.iter().any(ProcessMemory::can_go_on)
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
            Event::Remap { from, to, length } => {
                of.pending.remap(from, to, length);
                of.look_again();
            }
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
        if let Some(mut range) = of.pending.at(address, AROUND) {
            if let Some(at_source) = &mut self.at_source {
                let (alike, is_there) = at_source.first_alike(range);
                if !is_there {
                    at_source.want(range.offset);
                    of.waiting.push(address);
                    return Ok(());
                }
                range = alike;
            }
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
            .find(|process| self.all[*process].can_go_on());
        let Some(process) = lacking else { return Ok(true) };
        self.turn = process + 1;
        let at_source = self.at_source.as_ref();
        let Some(range) = self.all[process].next(at_source) else { return Ok(true) };
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
            self.release(process, &[(range.offset, range.offset + done)])?;
        }
        Ok(copied)
    }

    /// Follows what the agents say about pages at the source, on those of [`AtSource::sides`] that are ready.
    pub(super) fn follow_agents(&mut self, ready: &[bool]) -> io::Result<()> {
        let Some(at_source) = &mut self.at_source else { return Ok(()) };
        let was_noted = at_source.is_noted();
        let changes = at_source.follow(ready)?;
        if self.is_held && at_source.is_noted() && !was_noted {
            self.log.noted();
        }
        let arrived = at_source.take_arrived();
        if self.is_held {
            arrived.for_each(|(process, at)| self.log.arrived(process, at.start, at.end));
        }
        if changes {
            self.all.iter_mut().for_each(ProcessMemory::look_again);
        }
        Ok(())
    }

    /// Notes that the copy is the container.
    pub(super) fn decide(&mut self) {
        if let Some(at_source) = &mut self.at_source {
            at_source.decide();
            if self.is_held {
                self.log.decided();
            }
        }
    }

    /// Notes that all processes have ended.
    pub(super) fn end_all(&mut self) {
        self.all.iter_mut().for_each(|of| of.is_gone = true);
    }

    /// Forgets processes that have ended, and gives back what they alone needed.
    pub(super) fn forget_gone(&mut self) -> io::Result<()> {
        while let Some(process) = self.all.iter().position(|of| of.is_gone) {
            // Its descriptor must not be closed before the holder can know.
            if self.is_held && !self.log.gone(self.all[process].number) {
                return Ok(());
            }
            let places = std::mem::take(&mut self.all[process].pending).offsets();
            self.release(process, &places)?;
            self.release_all()?;
            self.all.remove(process);
        }
        Ok(())
    }

    /// Follows what a server that was killed has left in the log. What waits for a page asks again.
    pub(super) fn take_over(&mut self) -> io::Result<()> {
        // Each of these files is a process's as well, so that none is closed here.
        self.released.clear();
        self.released_bytes = 0;
        if let Some(at_source) = &mut self.at_source {
            at_source.take_over()?;
        }
        for entry in self.log.entries() {
            match (entry.fact(), &mut self.at_source) {
                (Fact::Arrived { process, start, end }, Some(at_source)) => {
                    at_source.forget(process, start, end);
                    continue;
                }
                (Fact::Decided, Some(at_source)) => {
                    at_source.decide();
                    continue;
                }
                (Fact::Noted, Some(at_source)) => {
                    at_source.note();
                    continue;
                }
                _ => {}
            }
            let Some(process) = self.all.iter().position(|of| of.number == entry.process) else {
                continue;
            };
            match entry.fact() {
                Fact::Event(event) if matches!(event.decode()?, Event::PageFault { .. }) => {}
                Fact::Event(event) => self.follow(process, &event)?,
                Fact::Put { start, end } => self.all[process].pending.forget(start, end),
                Fact::Arrived { .. } | Fact::Decided | Fact::Noted => {}
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
            of.waiting.clear();
            of.cursor = Some(0);
            of.userfault.wake_all();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
