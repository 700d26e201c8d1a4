//! Shared memory that came while the container ran. CRIU's dump leaves its pages out; here they are put into the images.
//!
//! The pages are in one file for each segment, in the order in which they came first. A pagemap may name pages in any order, so
//! this file is CRIU's file of pages as it is: nothing is copied in the interruption.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};

use super::Error;
use super::pagemap::{Entry, LazyRange, PAGE, decode_entries, encode};
use super::tmpfs::io_error;
use crate::page_ranges::PageRanges;
use crate::shared_memory::Content;

/// Segments of one container.
const SEGMENT_LIMIT: usize = 1024;
/// Parts of empty memory of one segment.
const EMPTY_LIMIT: usize = 1 << 20;
/// No segment is larger: the end of a file (`MAX_LFS_FILESIZE`).
const LENGTH_LIMIT: u64 = i64::MAX as u64;

/// Pages of segments, the last content of each.
#[derive(Debug)]
pub struct SharedStore {
    directory: PathBuf,
    length: u64,
    limit: u64,
    segments: BTreeMap<u32, Stored>,
    /// What each segment has in the end; `None` as long as the source has not said it.
    whole: Option<Vec<Content>>,
}

/// The pages of one segment.
#[derive(Debug)]
struct Stored {
    path: PathBuf,
    file: File,
    length: u64,
    /// Those that have had content. Each keeps its place in the file.
    pages: PageRanges,
    /// Those of them that have nothing but zeros now, also in the file.
    empty: PageRanges,
}

impl SharedStore {
    /// Makes one in `directory`, which is in memory. At most `limit` bytes go into it.
    #[must_use]
    pub fn new(directory: &Path, limit: u64) -> Self {
        let directory = directory.to_owned();
        Self { directory, length: 0, limit, segments: BTreeMap::new(), whole: None }
    }

    /// Takes whole pages of a segment, in place of what came before.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; [`Error::Differs`] for what are no whole pages; [`Error::Io`].
    pub fn write(&mut self, segment: u32, start: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = end_of(start, bytes.len() as u64)?;
        let room = self.limit.saturating_sub(self.length);
        let stored = self.segment(segment)?;
        stored.empty.forget(start, end);
        let (mut at, before) = (start, stored.length);
        while at < end {
            let place = match stored.pages.at(at, end - at) {
                Some(known) => known,
                None => stored.add(at, end),
            };
            let part = (place.start - start) as usize..(place.end - start) as usize;
            if stored.length - before > room {
                return Err(Error::TooLarge { what: "bytes of shared memory", limit: self.limit });
            }
            let part = bytes.get(part).unwrap_or_default();
            let written = stored.file.write_all_at(part, place.offset);
            written.map_err(io_error("write", &stored.path))?;
            at = place.end;
        }
        let more = stored.length - before;
        self.length += more;
        Ok(())
    }

    /// Takes the word that pages of a segment have nothing but zeros, whatever came before.
    ///
    /// # Errors
    /// As [`SharedStore::write`].
    pub fn empty(&mut self, segment: u32, start: u64, length: u64) -> Result<(), Error> {
        let end = end_of(start, length)?;
        let stored = self.segment(segment)?;
        for part in stored.pages.within(start, end) {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let (place, length) = (part.offset as i64, (part.end - part.start) as i64);
            fallocate(&stored.file, flags, place, length)
                .map_err(|errno| io_error("write", &stored.path)(errno.into()))?;
            stored.empty.forget(part.start, part.end);
            if stored.empty.count() >= EMPTY_LIMIT {
                let what = "parts of empty memory";
                return Err(Error::TooLarge { what, limit: EMPTY_LIMIT as u64 });
            }
            stored.empty.insert(LazyRange { offset: part.start, ..part });
        }
        Ok(())
    }

    /// Takes the word what each segment has in the end.
    pub fn end(&mut self, whole: Vec<Content>) {
        self.whole = Some(whole);
    }

    fn segment(&mut self, segment: u32) -> Result<&mut Stored, Error> {
        if !self.segments.contains_key(&segment) && self.segments.len() >= SEGMENT_LIMIT {
            let what = "number of segments of shared memory";
            return Err(Error::TooLarge { what, limit: SEGMENT_LIMIT as u64 });
        }
        let made = match self.segments.remove(&segment) {
            Some(known) => known,
            None => Stored::create(self.directory.join(format!("shared-{segment}")))?,
        };
        Ok(self.segments.entry(segment).or_insert(made))
    }

    /// Puts the pages into images, whatever CRIU has dumped of these segments. Pages stay where they are.
    ///
    /// # Errors
    /// [`Error::Differs`] if something is missing, or an image is none; [`Error::Io`].
    pub fn complete(&self, images: &Path) -> Result<(), Error> {
        let Some(whole) = &self.whole else {
            return match self.segments.keys().next() {
                Some(segment) => Err(missing(*segment)),
                None => Ok(()),
            };
        };
        if self.segments.keys().any(|of| whole.iter().all(|content| content.segment != *of)) {
            return Err(Error::Differs { name: "shared memory".to_owned(), problem: "end" });
        }
        whole.iter().try_for_each(|content| self.complete_segment(images, content))
    }

    fn complete_segment(&self, images: &Path, content: &Content) -> Result<(), Error> {
        let name = format!("pagemap-shmem-{}.img", content.segment);
        let pagemap = images.join(&name);
        let image = match fs::read(&pagemap) {
            // It was removed before the container was frozen.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !content.is_mapped => return Ok(()),
            other => other.map_err(io_error("read", &pagemap))?,
        };
        let differs = |problem| Error::Differs { name: name.clone(), problem };
        let (pages_id, _) = decode_entries(&image).ok_or_else(|| differs("it is no pagemap"))?;
        let stored = self.segments.get(&content.segment);
        let pages = stored.map_or(0, |of| of.pages.bytes() - of.empty.bytes()) / PAGE;
        if pages != content.pages {
            return Err(missing(content.segment));
        }
        let Some(stored) = stored else {
            // CRIU may have dumped pages that have nothing but zeros.
            return fs::write(&pagemap, encode(pages_id, &[])).map_err(io_error("write", &pagemap));
        };
        let mut ranges: Vec<LazyRange> = stored.pages.all().collect();
        ranges.sort_unstable_by_key(|range| range.offset);
        let entries: Vec<Entry> =
            ranges.iter().map(|range| Entry::present(range.start, range.end, false)).collect();
        let own = images.join(format!("pages-{pages_id}.img"));
        let link = relative(images, &stored.path)?;
        match fs::remove_file(&own) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(io_error("replace", &own))?,
        }
        symlink(link, &own).map_err(io_error("replace", &own))?;
        fs::write(&pagemap, encode(pages_id, &entries)).map_err(io_error("write", &pagemap))
    }
}

impl Stored {
    fn create(path: PathBuf) -> Result<Self, Error> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&path).map_err(io_error("make", &path))?;
        let (pages, empty) = (PageRanges::default(), PageRanges::default());
        Ok(Self { path, file, length: 0, pages, empty })
    }

    /// Gives pages that are not known a place: from `at` on, up to `end` at most.
    fn add(&mut self, at: u64, end: u64) -> LazyRange {
        let end = self.pages.next_after(at).map_or(end, |next| next.min(end));
        let new = LazyRange { start: at, end, offset: self.length };
        self.length += end - at;
        self.pages.insert(new);
        new
    }
}

fn missing(segment: u32) -> Error {
    Error::Differs { name: format!("shared-{segment}"), problem: "a page of memory is missing" }
}

/// Returns where pages end that a source names.
fn end_of(start: u64, length: u64) -> Result<u64, Error> {
    let end = start.checked_add(length).filter(|end| *end <= LENGTH_LIMIT);
    match end.filter(|_| start.is_multiple_of(PAGE) && length.is_multiple_of(PAGE)) {
        Some(end) => Ok(end),
        None => Err(Error::Differs { name: "shared memory".to_owned(), problem: "it is no page" }),
    }
}

/// Returns the way from a directory to a file. CRIU opens the files of pages below a directory that it has open, when the root
/// of its tasks is the container's already, so an absolute path would lead elsewhere.
fn relative(directory: &Path, file: &Path) -> Result<PathBuf, Error> {
    let whole = |path: &Path| path.canonicalize().map_err(io_error("look at", path));
    let (directory, file) = (whole(directory)?, whole(file)?);
    let common = directory.components().zip(file.components()).take_while(|(a, b)| a == b).count();
    let up = directory.components().skip(common).map(|_| Component::ParentDir);
    Ok(up.chain(file.components().skip(common)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(byte: u8) -> Vec<u8> {
        vec![byte; PAGE as usize]
    }

    fn content(pages: u64) -> Vec<Content> {
        vec![Content { segment: 5, pages, is_mapped: true }]
    }

    #[test]
    fn the_last_content_is_read_by_way_of_the_images() {
        let dir = tempfile::tempdir().unwrap();
        let (images, memory) = (dir.path().join("images"), dir.path().join("memory"));
        fs::create_dir(&images).unwrap();
        fs::create_dir(&memory).unwrap();
        let mut store = SharedStore::new(&memory, 5 * PAGE);
        store.write(5, 8 * PAGE, &[page(8), page(9)].concat()).unwrap();
        store.write(5, 2 * PAGE, &[page(2), page(3)].concat()).unwrap();
        store.write(5, 8 * PAGE, &page(18)).unwrap();
        store.empty(5, 0, 3 * PAGE).unwrap();
        store.empty(5, 9 * PAGE, PAGE).unwrap();
        store.write(5, 9 * PAGE, &page(19)).unwrap();
        fs::write(images.join("pagemap-shmem-5.img"), encode(7, &[])).unwrap();
        store.end(content(4));
        assert!(store.complete(&images).is_err(), "it has three pages");
        store.end(content(3));
        store.complete(&images).unwrap();
        let pagemap = fs::read(images.join("pagemap-shmem-5.img")).unwrap();
        let (id, entries) = decode_entries(&pagemap).unwrap();
        let places: Vec<_> = entries.iter().map(|e| (e.start / PAGE, e.end / PAGE)).collect();
        assert_eq!((id, &places[..]), (7, &[(8, 10), (2, 4)][..]));
        let link = images.join("pages-7.img");
        assert!(fs::read_link(&link).unwrap().is_relative());
        let expected = [page(18), page(19), page(0), page(3)].concat();
        assert!(fs::read(&link).unwrap() == expected);
    }

    #[test]
    fn what_is_missing_or_no_page_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = SharedStore::new(dir.path(), 2 * PAGE);
        store.complete(dir.path()).unwrap();
        store.write(5, 0, &page(1)).unwrap();
        assert!(store.complete(dir.path()).is_err(), "nobody has said what it has in the end");
        store.end(Vec::new());
        assert!(store.complete(dir.path()).is_err(), "nor is it said now");
        store.end(content(1));
        assert!(store.complete(dir.path()).is_err(), "there is no image of it");
        let gone = Content { segment: 5, pages: 1, is_mapped: false };
        store.end(vec![gone]);
        store.complete(dir.path()).unwrap();
        assert!(store.write(5, 1, &page(1)).is_err() && store.write(5, PAGE, &[1]).is_err());
        assert!(store.write(5, LENGTH_LIMIT & !(PAGE - 1), &page(1)).is_err());
        store.write(5, PAGE, &page(1)).unwrap();
        assert!(store.write(6, 0, &page(1)).is_err(), "there is room for two pages");
        assert!(store.empty(5, 0, !(PAGE - 1)).is_err());
    }
}
