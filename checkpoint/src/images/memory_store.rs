//! Memory that came while the container ran. CRIU's dump leaves it out, and names the pages that it expects in the images of
//! an earlier dump: here they are.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};

use super::Error;
use super::lazy_mappings::LazyMappings;
use super::missing_pages::{MissingPages, MissingRange};
use super::pagemap::{Entry, Index, LazyRange, PAGE, decode_entries, encode};
use super::tmpfs::io_error;
use crate::page_ranges::PageRanges;

/// The file of the pages, in its directory.
const PAGES: &str = "memory";
/// Processes of one container.
const PROCESS_LIMIT: usize = 1 << 16;
/// Parts of empty memory of one process.
const EMPTY_LIMIT: usize = 1 << 20;
/// The addresses that a process can have end here, with most page tables that there are.
const ADDRESSES: u64 = 1 << 57;
/// Bytes that are copied at a time.
const PIECE: usize = 1 << 20;

/// Pages of processes, the last content of each.
#[derive(Debug)]
pub struct MemoryStore {
    path: PathBuf,
    file: File,
    length: u64,
    limit: u64,
    processes: BTreeMap<i32, Stored>,
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
        Ok(Self { path, file, length: 0, limit, processes: BTreeMap::new() })
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
        empty.forget(start, end);
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
        stored.empty.forget(start, end);
        stored.later.forget(start, end);
        if stored.empty.count() >= EMPTY_LIMIT {
            let what = "parts of empty memory";
            return Err(Error::TooLarge { what, limit: EMPTY_LIMIT as u64 });
        }
        stored.empty.insert(LazyRange { start, end, offset: start });
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

    /// Completes images whose pages are here: each pagemap gets its pages in its own file of pages. With `lazy_pages`, pages
    /// that may be lazy stay here, and a restore of these images has to be lazy. Images that lack nothing are left alone.
    ///
    /// # Errors
    /// [`Error::Differs`] if a page is missing, or an image is none; [`Error::Io`].
    pub fn complete(&self, images: &Path, lazy_pages: bool) -> Result<(), Error> {
        let mut missing = Vec::new();
        for entry in fs::read_dir(images).map_err(io_error("list", images))? {
            let path = entry.map_err(io_error("list", images))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let number = name.strip_prefix("pagemap-").and_then(|name| name.strip_suffix(".img"));
            if let Some(process) = number.and_then(|number| number.parse().ok()) {
                let of_this = self.complete_process(images, &path, (process, &name), lazy_pages)?;
                missing.extend(of_this);
            }
        }
        match missing[..] {
            [] => Ok(()),
            _ => MissingPages::new(&missing).write(images, &self.path),
        }
    }

    fn complete_process(
        &self,
        images: &Path,
        pagemap: &Path,
        (process, name): (i32, &str),
        lazy_pages: bool,
    ) -> Result<Vec<MissingRange>, Error> {
        let differs = |problem| Error::Differs { name: name.to_owned(), problem };
        let read = |path: &Path| fs::read(path).map_err(io_error("read", path));
        let (pages_id, entries) =
            decode_entries(&read(pagemap)?).ok_or_else(|| differs("it is no pagemap"))?;
        if !entries.iter().any(Entry::is_in_parent) {
            return Ok(Vec::new());
        }
        let lazy = match lazy_pages {
            true => LazyMappings::read(images, process)?,
            false => LazyMappings::default(),
        };
        let own = images.join(format!("pages-{pages_id}.img"));
        let whole = images.join(format!("pages-{pages_id}.new"));
        let file = |path: &Path, writes: bool| {
            let mut options = OpenOptions::new();
            options.read(!writes).write(writes).create(writes).mode(0o600);
            options.open(path).map_err(io_error("open", path))
        };
        let (from, to) = (file(&own, false)?, file(&whole, true)?);
        let stored = self.processes.get(&process);
        let (mut before, mut offset, mut missing) = (0, 0, Vec::new());
        let (mut new, mut ranges, mut has_lazy) = (Vec::new(), Vec::new(), false);
        for entry in entries {
            if entry.is_present() {
                copy(&from, before, &to, offset, entry.end - entry.start)
                    .map_err(io_error("copy", &own))?;
                before += entry.end - entry.start;
                offset += entry.end - entry.start;
                new.push(Entry::present(entry.start, entry.end, false));
                continue;
            }
            if !entry.is_in_parent() {
                new.push(entry);
                continue;
            }
            for (part, is_lazy) in lazy.split(entry.start, entry.end) {
                let mut at = part.start;
                while at < part.end {
                    let known = stored.and_then(|stored| stored.at(at, part.end));
                    at = match known.ok_or_else(|| differs("a page of memory is missing"))? {
                        // The file has a hole there, and the server gives what is lazy an empty page.
                        Known::Empty(end) => end,
                        Known::Stored(found) => {
                            let absent = stored.map(|of| of.later.within(found.start, found.end));
                            let absent = absent.unwrap_or_default();
                            if is_lazy {
                                ranges.push(found);
                                let of_this = |at| MissingRange { process, at };
                                missing.extend(absent.into_iter().map(of_this));
                            } else if !absent.is_empty() {
                                return Err(differs("a page that has to be there comes later"));
                            } else {
                                let place = offset + (at - part.start);
                                copy(&self.file, found.offset, &to, place, found.end - found.start)
                                    .map_err(io_error("copy", &self.path))?;
                            }
                            found.end
                        }
                    };
                }
                has_lazy |= is_lazy;
                offset += part.end - part.start;
                new.push(Entry::present(part.start, part.end, is_lazy));
            }
        }
        to.set_len(offset).map_err(io_error("write", &whole))?;
        fs::rename(&whole, &own).map_err(io_error("replace", &own))?;
        fs::write(pagemap, encode(pages_id, &new)).map_err(io_error("write", pagemap))?;
        if has_lazy {
            Index { pages: self.path.clone(), ranges }.write(pagemap)?;
        }
        Ok(missing)
    }
}

fn copy(from: &File, at: u64, to: &File, offset: u64, length: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; PIECE.min(length as usize)];
    let mut done = 0;
    while done < length {
        let piece = (length - done).min(PIECE as u64) as usize;
        from.read_exact_at(&mut buffer[..piece], at + done)?;
        to.write_all_at(&buffer[..piece], offset + done)?;
        done += piece as u64;
    }
    Ok(())
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
}
