//! Memory that came while the container ran. CRIU's dump leaves it out, and names the pages that it expects in the images of
//! an earlier dump: here they are.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

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
/// Bytes that are copied at a time.
const PIECE: usize = 1 << 20;

/// Pages of processes, the last content of each.
#[derive(Debug)]
pub struct MemoryStore {
    path: PathBuf,
    file: File,
    length: u64,
    limit: u64,
    processes: BTreeMap<i32, PageRanges>,
    /// Those of them whose content comes after the decision.
    later: BTreeMap<i32, PageRanges>,
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
            later: BTreeMap::new(),
        })
    }

    /// Takes whole pages of a process, named by the number that it has in its container, in place of what came before.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; [`Error::Differs`] for what are no whole pages; [`Error::Io`].
    pub fn write(&mut self, process: i32, start: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = start.checked_add(bytes.len() as u64);
        for place in self.places(process, start, end)? {
            let part = (place.start - start) as usize..(place.end - start) as usize;
            let part = bytes.get(part).unwrap_or_default();
            self.file.write_all_at(part, place.offset).map_err(io_error("write", &self.path))?;
            if let Some(later) = self.later.get_mut(&process) {
                later.forget(place.start, place.end);
            }
        }
        Ok(())
    }

    /// Notes that the content of whole pages of a process comes after the decision. What came before counts no more.
    ///
    /// # Errors
    /// As [`MemoryStore::write`].
    pub fn expect_later(&mut self, process: i32, start: u64, end: u64) -> Result<(), Error> {
        for place in self.places(process, start, Some(end))? {
            let later = self.later.entry(process).or_default();
            later.forget(place.start, place.end);
            later.insert(place);
        }
        let has = self.file.metadata().map_err(io_error("look at", &self.path))?.len();
        if has < self.length {
            self.file.set_len(self.length).map_err(io_error("extend", &self.path))?;
        }
        Ok(())
    }

    /// Returns where pages are in the file. Those that are new get a place.
    fn places(
        &mut self,
        process: i32,
        start: u64,
        end: Option<u64>,
    ) -> Result<Vec<LazyRange>, Error> {
        let is_whole = |end: &u64| {
            *end >= start && start.is_multiple_of(PAGE) && end.is_multiple_of(PAGE) && process > 0
        };
        let Some(end) = end.filter(is_whole) else {
            return Err(Error::Differs { name: PAGES.to_owned(), problem: "it is no page" });
        };
        if !self.processes.contains_key(&process) && self.processes.len() >= PROCESS_LIMIT {
            let what = "number of processes";
            return Err(Error::TooLarge { what, limit: PROCESS_LIMIT as u64 });
        }
        let ranges = self.processes.entry(process).or_default();
        let mut places = Vec::new();
        let mut at = start;
        while at < end {
            let place = match ranges.at(at, end - at) {
                Some(known) => known,
                None => {
                    let next = ranges.next_after(at).map_or(end, |next| next.min(end));
                    let new = LazyRange { start: at, end: next, offset: self.length };
                    if new.end - new.start > self.limit.saturating_sub(self.length) {
                        return Err(Error::TooLarge { what: "bytes of memory", limit: self.limit });
                    }
                    self.length += new.end - new.start;
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
        self.later.values().map(PageRanges::length).sum()
    }

    /// Returns how many bytes are here.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.length
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
        let later = self.later.get(&process);
        let mut missing = Vec::new();
        let (mut before, mut offset) = (0, 0);
        let (mut new, mut ranges) = (Vec::new(), Vec::new());
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
                    let found = stored.and_then(|stored| stored.at(at, part.end - at));
                    let found = found.ok_or_else(|| differs("a page of memory is missing"))?;
                    let length = found.end - found.start;
                    let absent = later.map(|of| of.within(found.start, found.end));
                    let absent = absent.unwrap_or_default();
                    if is_lazy {
                        ranges.push(found);
                        missing.extend(absent.into_iter().map(|at| MissingRange { process, at }));
                    } else if !absent.is_empty() {
                        return Err(differs("a page that has to be there at once comes later"));
                    } else {
                        copy(&self.file, found.offset, &to, offset + (at - part.start), length)
                            .map_err(io_error("copy", &self.path))?;
                    }
                    at = found.end;
                }
                offset += part.end - part.start;
                new.push(Entry::present(part.start, part.end, is_lazy));
            }
        }
        to.set_len(offset).map_err(io_error("write", &whole))?;
        fs::rename(&whole, &own).map_err(io_error("replace", &own))?;
        fs::write(pagemap, encode(pages_id, &new)).map_err(io_error("write", pagemap))?;
        if !ranges.is_empty() {
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
            let range = store.processes[&1].at(address, PAGE).unwrap();
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
        store.expect_later(1, PAGE, 4 * PAGE).unwrap();
        assert_eq!((store.later_bytes(), store.bytes()), (3 * PAGE, 3 * PAGE));
        store.write(1, 2 * PAGE, &page).unwrap();
        assert_eq!(store.later_bytes(), 2 * PAGE, "it came nevertheless");
        assert!(store.expect_later(2, PAGE, 3 * PAGE).is_err(), "there is room for one more page");
        assert!(store.expect_later(1, 2 * PAGE, PAGE).is_err(), "it ends before it begins");
    }
}
