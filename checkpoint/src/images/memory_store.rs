//! Memory that came while the container ran. CRIU's dump leaves it out, and names the pages that it expects in the images of
//! an earlier dump: here they are.

mod complete_images;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};

use super::Error;
use super::pagemap::{LazyRange, PAGE};
use super::tmpfs::io_error;
use crate::page_ranges::PageRanges;

/// The file of the pages, in its directory.
const PAGES: &str = "memory";
/// Processes of one container.
const PROCESS_LIMIT: usize = 1 << 16;
/// Parts of empty memory of all processes.
const EMPTY_LIMIT: usize = 1 << 20;
/// The addresses that a process can have end here, with most page tables that there are.
const ADDRESSES: u64 = 1 << 57;

/// Pages of processes, the last content of each.
#[derive(Debug)]
pub struct MemoryStore {
    path: PathBuf,
    file: File,
    length: u64,
    limit: u64,
    processes: BTreeMap<i32, Stored>,
    /// Parts of empty memory of all processes, and the most that are noted.
    empty_parts: usize,
    empty_limit: usize,
}

/// The pages of one process.
#[derive(Debug, Default)]
struct Stored {
    /// Those that have had content. Each keeps its place in the file.
    pages: PageRanges,
    /// Those that have nothing but zeros now, whatever they have had. Their places do not count.
    empty: PageRanges,
    /// Those of `pages` whose content comes after the decision.
    later: PageRanges,
}

/// What is known of pages that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// They are in the file.
    Stored(LazyRange),
    /// They have nothing but zeros, up to an address.
    Empty(u64),
}

impl Stored {
    /// Returns what is known of the pages from one address on, up to another one at most.
    fn at(&self, start: u64, end: u64) -> Option<Known> {
        if let Some(empty) = self.empty.at(start, end - start) {
            return Some(Known::Empty(empty.end));
        }
        let end = self.empty.next_after(start).map_or(end, |next| next.min(end));
        self.pages.at(start, end - start).map(Known::Stored)
    }
}

impl MemoryStore {
    /// Makes one in `directory`, which is in memory. At most `limit` bytes go into it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(directory: &Path, limit: u64) -> Result<Self, Error> {
        let path = directory.join(PAGES);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&path).map_err(io_error("make", &path))?;
        Ok(Self {
            path,
            file,
            length: 0,
            limit,
            processes: BTreeMap::new(),
            empty_parts: 0,
            empty_limit: EMPTY_LIMIT,
        })
    }

    /// Takes whole pages of a process, named by the number that it has in its container, in place of what came before.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; [`Error::Differs`] for what are no whole pages; [`Error::Io`].
    pub fn write(&mut self, process: i32, start: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = self.end_of(process, start, bytes.len() as u64)?;
        for place in self.places(process, start, end)? {
            let part = (place.start - start) as usize..(place.end - start) as usize;
            let part = bytes.get(part).unwrap_or_default();
            self.file.write_all_at(part, place.offset).map_err(io_error("write", &self.path))?;
        }
        Ok(())
    }

    /// Notes that the content of whole pages of a process comes after the decision. What came before counts no more.
    ///
    /// # Errors
    /// As [`MemoryStore::write`].
    pub fn expect_later(&mut self, process: i32, start: u64, end: u64) -> Result<(), Error> {
        // What ends before it begins is no page.
        let end = self.end_of(process, start, end.checked_sub(start).unwrap_or(1))?;
        let places = self.places(process, start, end)?;
        let later = &mut self.processes.entry(process).or_default().later;
        places.into_iter().for_each(|place| later.insert(place));
        let has = self.file.metadata().map_err(io_error("look at", &self.path))?.len();
        if has < self.length {
            self.file.set_len(self.length).map_err(io_error("extend", &self.path))?;
        }
        Ok(())
    }

    /// Returns where pages are in the file, whose content is known anew. Those that are new get a place.
    fn places(&mut self, process: i32, start: u64, end: u64) -> Result<Vec<LazyRange>, Error> {
        let Stored { pages: ranges, empty, later } = self.processes.entry(process).or_default();
        let before = empty.count();
        empty.forget(start, end);
        self.empty_parts = self.empty_parts + empty.count() - before;
        later.forget(start, end);
        let mut places = Vec::new();
        let mut at = start;
        while at < end {
            let place = match ranges.at(at, end - at) {
                Some(known) => known,
                None => {
                    let next = ranges.next_after(at).map_or(end, |next| next.min(end));
                    let new = LazyRange { start: at, end: next, offset: self.length };
                    if next - at > self.limit.saturating_sub(self.length) {
                        return Err(Error::TooLarge { what: "bytes of memory", limit: self.limit });
                    }
                    self.length += next - at;
                    ranges.insert(new);
                    new
                }
            };
            at = place.end;
            places.push(place);
        }
        Ok(places)
    }

    /// Returns how many bytes come after the decision.
    #[must_use]
    pub fn later_bytes(&self) -> u64 {
        self.processes.values().map(|stored| stored.later.bytes()).sum()
    }

    /// Takes the word that pages of a process have nothing but zeros, whatever came before. They take no memory.
    ///
    /// # Errors
    /// As [`MemoryStore::write`].
    pub fn empty(&mut self, process: i32, start: u64, length: u64) -> Result<(), Error> {
        let end = self.end_of(process, start, length)?;
        if length == 0 {
            return Ok(());
        }
        let stored = self.processes.entry(process).or_default();
        let mut at = start;
        while at < end {
            let Some(known) = stored.pages.at(at, end - at) else {
                at = stored.pages.next_after(at).map_or(end, |next| next.min(end));
                continue;
            };
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let (place, length) = (known.offset as i64, (known.end - known.start) as i64);
            fallocate(&self.file, flags, place, length)
                .map_err(|errno| io_error("write", &self.path)(errno.into()))?;
            at = known.end;
        }
        stored.later.forget(start, end);
        let before = stored.empty.count();
        stored.empty.forget(start, end);
        stored.empty.insert(LazyRange { start, end, offset: start });
        self.empty_parts = self.empty_parts + stored.empty.count() - before;
        if self.empty_parts > self.empty_limit {
            let what = "parts of empty memory";
            return Err(Error::TooLarge { what, limit: self.empty_limit as u64 });
        }
        Ok(())
    }

    /// Returns where pages end that a source names.
    fn end_of(&self, process: i32, start: u64, length: u64) -> Result<u64, Error> {
        let end = start.checked_add(length);
        let is_page = start.is_multiple_of(PAGE) && length.is_multiple_of(PAGE) && process > 0;
        let Some(end) = end.filter(|end| is_page && *end <= ADDRESSES) else {
            return Err(Error::Differs { name: PAGES.to_owned(), problem: "it is no page" });
        };
        if !self.processes.contains_key(&process) && self.processes.len() >= PROCESS_LIMIT {
            let what = "number of processes";
            return Err(Error::TooLarge { what, limit: PROCESS_LIMIT as u64 });
        }
        Ok(end)
    }

    /// Returns how many bytes of memory are here, with empty ones.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let empty = self.processes.values().map(|stored| stored.empty.bytes());
        empty.fold(self.length, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_content_of_a_page_counts() {
        let dir = tempfile::tempdir().unwrap();
        let page = |byte: u8| vec![byte; PAGE as usize];
        let mut store = MemoryStore::create(dir.path(), 4 * PAGE).unwrap();
        store.write(1, 2 * PAGE, &[page(2), page(3)].concat()).unwrap();
        store.write(1, PAGE, &[page(11), page(12), page(13), page(14)].concat()).unwrap();
        let content = |address: u64| {
            let range = store.processes[&1].pages.at(address, PAGE).unwrap();
            let mut byte = [0];
            store.file.read_exact_at(&mut byte, range.offset).unwrap();
            byte[0]
        };
        assert_eq!([1, 2, 3, 4].map(|page| content(page * PAGE)), [11, 12, 13, 14]);
        let mut full = |process, start, bytes: &[u8]| store.write(process, start, bytes).is_err();
        assert!(full(2, PAGE, &page(1)), "there is room for four pages");
        assert!(full(1, PAGE + 1, &page(1)) && full(1, PAGE, &[1]) && full(0, PAGE, &page(1)));
        assert!(full(1, u64::MAX - PAGE + 1, &page(1)), "beyond the last address");
    }

    #[test]
    fn what_comes_later_takes_the_place_of_what_came_before() {
        let dir = tempfile::tempdir().unwrap();
        let page = vec![1; PAGE as usize];
        let mut store = MemoryStore::create(dir.path(), 4 * PAGE).unwrap();
        store.write(1, PAGE, &page).unwrap();
        store.empty(1, 2 * PAGE, PAGE).unwrap();
        store.expect_later(1, PAGE, 4 * PAGE).unwrap();
        assert_eq!((store.later_bytes(), store.bytes()), (3 * PAGE, 3 * PAGE));
        store.expect_later(1, 2 * PAGE, 3 * PAGE).unwrap();
        assert_eq!(store.later_bytes(), 3 * PAGE, "it is told twice");
        store.write(1, 2 * PAGE, &page).unwrap();
        store.empty(1, 3 * PAGE, PAGE).unwrap();
        assert_eq!(store.later_bytes(), PAGE, "they came nevertheless");
        assert!(store.expect_later(2, PAGE, 3 * PAGE).is_err(), "there is room for one more page");
        assert!(store.expect_later(1, 2 * PAGE, PAGE).is_err(), "it ends before it begins");
    }

    #[test]
    fn empty_pages_take_no_memory_until_they_have_content_again() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let mut store = MemoryStore::create(dir.path(), 8 * PAGE).unwrap();
        store.write(1, 2 * PAGE, &vec![7; 4 * PAGE as usize]).unwrap();
        let full = store.file.metadata().unwrap().blocks();
        store.empty(1, PAGE, 3 * PAGE).unwrap();
        store.empty(1, 3 * PAGE, PAGE).unwrap();
        assert!(store.file.metadata().unwrap().blocks() < full);
        let known =
            |store: &MemoryStore, page: u64| match store.processes[&1].at(page * PAGE, 9 * PAGE) {
                Some(Known::Empty(end)) => (true, end / PAGE),
                Some(Known::Stored(found)) => (false, found.end / PAGE),
                None => (false, 0),
            };
        assert_eq!(
            [0, 1, 2, 4, 6].map(|page| known(&store, page)),
            [(false, 0), (true, 4), (true, 4), (false, 6), (false, 0)]
        );
        store.write(1, 2 * PAGE, &vec![9; PAGE as usize]).unwrap();
        assert_eq!([1, 2, 3].map(|page| known(&store, page)), [(true, 2), (false, 3), (true, 4)]);
        assert_eq!(store.length, 4 * PAGE, "each page keeps its place");
        let mut refused = |process, start, length| store.empty(process, start, length).is_err();
        assert!(refused(0, PAGE, PAGE) && refused(1, PAGE + 1, PAGE) && refused(1, PAGE, 1));
        assert!(refused(1, u64::MAX - PAGE + 1, PAGE) && refused(1, 0, 1 << 58));
    }

    #[test]
    fn what_is_noted_of_empty_pages_has_a_bound_for_all_processes() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = MemoryStore::create(dir.path(), 8 * PAGE).unwrap();
        store.empty_limit = 1000;
        let processes = 4;
        // Every other page, so that none follows another.
        let mut calls = (1..).flat_map(|page| (1..=processes).map(move |process| (process, page)));
        let refused =
            |(process, page): &(i32, u64)| store.empty(*process, 2 * page * PAGE, PAGE).is_err();
        let (_, page) = calls.find(refused).unwrap();
        assert_eq!(page, 251, "so many parts of each");
        store.empty(1, 0, 4000 * PAGE).unwrap();
        store.empty(2, 2 * (page + 2) * PAGE, PAGE).unwrap();
    }
}
