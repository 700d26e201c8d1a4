//! What the server has learnt of its processes' memory, in memory that it shares with its holder.
//!
//! The kernel writes each event right into the log (read(2)). So a server that is killed has either left an event to be read,
//! or the log has it.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};

use nix::sys::mman::{MapFlags, ProtFlags, mlock, mmap_anonymous, munmap};

use crate::userfault::RawEvent;

/// How many entries a log has.
const ENTRIES: usize = 24 << 10;
/// Kinds of entries beside those of the kernel, which begin at 0x12: pages are in place, from one address to another; a
/// process is gone; pages have come from the source; the copy is the container; how it ended is noted.
const PUT: u8 = 1;
const GONE: u8 = 2;
const ARRIVED: u8 = 3;
const DECIDED: u8 = 4;
const NOTED: u8 = 5;

/// An event, and the number of its process.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) process: u64,
    event: RawEvent,
}

/// What an entry says.
#[derive(Debug)]
pub(super) enum Fact {
    /// The kernel has told this.
    Event(RawEvent),
    /// Pages are in place.
    Put { start: u64, end: u64 },
    /// The process has ended, and its descriptor is closed.
    Gone,
    /// Pages of the process that had this number at the source have come from there.
    Arrived { process: i32, start: u64, end: u64 },
    /// The copy is the container.
    Decided,
    /// Nobody needs the server any more to learn that no page is wanted.
    Noted,
}

impl Entry {
    pub(super) fn fact(&self) -> Fact {
        let [start, end, _] = self.event.arguments;
        match self.event.kind {
            PUT => Fact::Put { start, end },
            GONE => Fact::Gone,
            ARRIVED => Fact::Arrived { process: self.process as i32, start, end },
            DECIDED => Fact::Decided,
            NOTED => Fact::Noted,
            _ => Fact::Event(self.event),
        }
    }
}

/// A log. One process writes it; the other reads it once that one has ended.
#[derive(Debug)]
pub(super) struct EventLog {
    entries: NonNull<Entry>,
    used: usize,
}

impl EventLog {
    /// Makes an empty one.
    pub(super) fn new() -> io::Result<Self> {
        let length = ENTRIES * size_of::<Entry>();
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: the kernel chooses the place, so it lies over nothing else.
        let memory = unsafe { mmap_anonymous(None, size, protection, flags) }?;
        // The kernel must not need memory to write an event. Without the privilege it hardly ever does.
        // SAFETY: the mapping was just made and has this length.
        let _ = unsafe { mlock(memory, length) };
        Ok(Self { entries: memory.cast(), used: 0 })
    }

    /// Returns whether an entry can be added.
    pub(super) fn has_room(&self) -> bool {
        self.used < ENTRIES
    }

    /// Returns the place of the next event, which is empty. It counts when the kernel has written into it, and is
    /// used again unless it is kept.
    pub(super) fn place(&mut self, process: u64) -> Option<&mut RawEvent> {
        if !self.has_room() {
            return None;
        }
        // SAFETY: the place is within the mapping, which lives as long as `self`. Zeros, as the kernel gives them, are a
        // value. The other process reads only when this one has ended.
        let entry = unsafe { self.entries.add(self.used).as_mut() };
        entry.event = RawEvent::default();
        entry.process = process;
        Some(&mut entry.event)
    }

    /// Keeps what was written into the last place.
    pub(super) fn keep(&mut self) {
        self.used += 1;
    }

    /// Notes that pages are in place. Whoever does not know it puts them again, which changes nothing.
    pub(super) fn put(&mut self, process: u64, start: u64, end: u64) {
        self.note(process, PUT, [start, end, 0]);
    }

    /// Notes that a process is gone, whose descriptor may be closed after that. Returns `false` if there is no room.
    pub(super) fn gone(&mut self, process: u64) -> bool {
        self.note(process, GONE, [0; 3])
    }

    /// Notes that pages have come from the source, for the process that had a number there. Whoever does not know it asks for
    /// them again.
    pub(super) fn arrived(&mut self, process: i32, start: u64, end: u64) {
        self.note(process as u64, ARRIVED, [start, end, 0]);
    }

    /// Notes that the copy is the container.
    pub(super) fn decided(&mut self) {
        self.note(0, DECIDED, [0; 3]);
    }

    /// Notes that nobody needs the server any more to learn that no page is wanted.
    pub(super) fn noted(&mut self) {
        self.note(0, NOTED, [0; 3]);
    }

    fn note(&mut self, process: u64, kind: u8, arguments: [u64; 3]) -> bool {
        let Some(event) = self.place(process) else { return false };
        event.arguments = arguments;
        // An entry without a kind does not count.
        compiler_fence(Ordering::Release);
        event.kind = kind;
        compiler_fence(Ordering::Release);
        self.keep();
        true
    }

    /// Returns the entries that a process which has ended has left.
    pub(super) fn entries(&self) -> Vec<Entry> {
        // SAFETY: the mapping has so many entries, any bytes are a value, and nobody writes any more.
        let all = unsafe { std::slice::from_raw_parts(self.entries.as_ptr(), ENTRIES) };
        all.iter().take_while(|entry| entry.event.kind != 0).copied().collect()
    }
}

impl Drop for EventLog {
    fn drop(&mut self) {
        // SAFETY: it is our mapping of this length, and nothing refers to it any more.
        let _ = unsafe { munmap(self.entries.cast(), ENTRIES * size_of::<Entry>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_counts_once_it_is_written() {
        let mut log = EventLog::new().unwrap();
        log.put(3, 0x1000, 0x3000);
        log.place(4).unwrap().kind = 0x12;
        // It was a fault, and is not kept.
        assert_eq!(log.entries().len(), 2);
        log.place(5).unwrap();
        assert_eq!(log.entries().len(), 1);
        log.place(6).unwrap().kind = 0x13;
        let entries = log.entries();
        assert!(matches!(entries[0].fact(), Fact::Put { start: 0x1000, end: 0x3000 }));
        assert!(matches!(entries[1].fact(), Fact::Event(RawEvent { kind: 0x13, .. })));
        assert_eq!(entries[1].process, 6);
        log.keep();
        log.arrived(300, 0x5000, 0x6000);
        log.decided();
        log.noted();
        let entries = log.entries();
        let arrived = Fact::Arrived { process: 300, start: 0x5000, end: 0x6000 };
        assert_eq!(format!("{:?}", entries[2].fact()), format!("{arrived:?}"));
        assert!(matches!(entries[3].fact(), Fact::Decided));
        assert!(matches!(entries[4].fact(), Fact::Noted));
        while log.gone(7) {}
        assert!(!log.has_room() && log.place(8).is_none());
        assert_eq!(log.entries().len(), ENTRIES);
    }
}
