//! Pages that a copy needs and that are still at its source (post-copy).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Error;
use super::pagemap::LazyRange;
use super::tmpfs::io_error;
use crate::page_ranges::PageRanges;

/// The list of them, among the images.
const LIST: &str = "missing-pages.json";

/// Pages of one process that are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingRange {
    /// The number that the process has in its container.
    pub process: i32,
    /// The pages, by the addresses that they had at the source, and their place in the file of pages.
    pub at: LazyRange,
}

/// The list as a file.
#[derive(Debug, Serialize, Deserialize)]
struct List {
    pages: PathBuf,
    ranges: Vec<MissingRange>,
}

/// Pages that are missing, by their addresses at the source and by their places in the file of pages.
#[derive(Debug, Default)]
pub(crate) struct MissingPages {
    by_address: BTreeMap<i32, PageRanges>,
    /// The places, and the addresses in place of the offsets.
    by_place: BTreeMap<i32, PageRanges>,
    bytes: u64,
}

impl MissingPages {
    pub(crate) fn new(ranges: &[MissingRange]) -> Self {
        let mut all = Self::default();
        for MissingRange { process, at } in ranges {
            all.by_address.entry(*process).or_default().insert(*at);
            all.by_place.entry(*process).or_default().insert(swapped(*at));
            all.bytes += at.end - at.start;
        }
        all
    }

    /// Writes the list. `pages` is the file of pages.
    pub(super) fn write(&self, images: &Path, pages: &Path) -> Result<(), Error> {
        let of = |(process, ranges): (&i32, &PageRanges)| {
            let process = *process;
            ranges.all().map(move |at| MissingRange { process, at }).collect::<Vec<_>>()
        };
        let ranges = self.by_address.iter().flat_map(of).collect();
        let path = images.join(LIST);
        let list = List { pages: pages.to_owned(), ranges };
        let bytes = serde_json::to_vec(&list).map_err(|e| io_error("write", &path)(e.into()))?;
        fs::write(&path, bytes).map_err(io_error("write", &path))
    }

    /// Reads the list, and returns the file of pages with it; `None` if no page is missing.
    pub(crate) fn read(images: &Path) -> io::Result<Option<(PathBuf, Self)>> {
        let bytes = match fs::read(images.join(LIST)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let List { pages, ranges } = serde_json::from_slice(&bytes)?;
        Ok(Some((pages, Self::new(&ranges))))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Returns how many bytes are missing.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns those of some pages in the file that follow each other from the first one on and are all there, or all missing,
    /// and whether they are there.
    pub(crate) fn first_alike(&self, range: LazyRange) -> (LazyRange, bool) {
        let length = range.end - range.start;
        let mut alike = length;
        for places in self.by_place.values() {
            if let Some(missing) = places.at(range.offset, length) {
                let length = missing.end - missing.start;
                return (LazyRange { end: range.start + length, ..range }, false);
            }
            if let Some(next) = places.next_after(range.offset) {
                alike = alike.min(next - range.offset);
            }
        }
        (LazyRange { end: range.start + alike, ..range }, true)
    }

    /// Returns missing pages from a place in the file on, at most `length` bytes of them.
    pub(crate) fn at_place(&self, place: u64, length: u64) -> Option<MissingRange> {
        self.by_place.iter().find_map(|(&process, places)| {
            Some(MissingRange { process, at: swapped(places.at(place, length)?) })
        })
    }

    /// Returns the first missing pages behind or at a place in the file, at most `length` bytes of them.
    pub(crate) fn next(&self, place: u64, length: u64) -> Option<MissingRange> {
        let of = |(&process, places): (&i32, &PageRanges)| {
            Some(MissingRange { process, at: swapped(places.at_or_after(place, length)?) })
        };
        self.by_place.iter().filter_map(of).min_by_key(|missing| missing.at.offset)
    }

    /// Returns those of some pages that are missing.
    pub(crate) fn within(&self, process: i32, start: u64, end: u64) -> Vec<LazyRange> {
        self.by_address.get(&process).map(|of| of.within(start, end)).unwrap_or_default()
    }

    /// Forgets pages that have arrived: a part of what [`MissingPages::within`] has returned.
    pub(crate) fn forget(&mut self, process: i32, at: LazyRange) {
        if let Some(ranges) = self.by_address.get_mut(&process) {
            ranges.forget(at.start, at.end);
        }
        if let Some(places) = self.by_place.get_mut(&process) {
            places.forget(at.offset, at.offset + (at.end - at.start));
        }
        self.bytes -= at.end - at.start;
    }
}

/// Returns a range whose addresses are places, and the other way round.
fn swapped(range: LazyRange) -> LazyRange {
    let end = range.offset + (range.end - range.start);
    LazyRange { start: range.offset, end, offset: range.start }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64, offset: u64) -> LazyRange {
        LazyRange { start, end, offset }
    }

    #[test]
    fn pages_are_found_by_address_and_by_place() {
        let of = |process, at| MissingRange { process, at };
        let all = [of(1, range(100, 200, 0)), of(2, range(100, 150, 200))];
        let mut missing = MissingPages::new(&all);
        assert_eq!(missing.bytes(), 150);
        assert_eq!(missing.first_alike(range(7000, 7400, 0)), (range(7000, 7100, 0), false));
        assert_eq!(missing.first_alike(range(7000, 7400, 150)), (range(7000, 7050, 150), true));
        assert_eq!(missing.at_place(210, 20), Some(of(2, range(110, 130, 210))));
        assert_eq!(missing.at_place(150, 20), None);
        assert_eq!(missing.next(101, 20), Some(of(2, range(100, 120, 200))));
        missing.forget(1, range(120, 200, 20));
        assert_eq!(missing.within(1, 0, 1000), [range(100, 120, 0)]);
        assert_eq!(missing.next(20, 1000), Some(of(2, range(100, 150, 200))));
        missing.forget(1, range(100, 120, 0));
        missing.forget(2, range(100, 150, 200));
        assert!(missing.is_empty() && missing.next(0, 1).is_none());
    }

    #[test]
    fn the_list_is_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        assert!(MissingPages::read(dir.path()).unwrap().is_none());
        let all = MissingPages::new(&[MissingRange { process: 3, at: range(4096, 8192, 4096) }]);
        all.write(dir.path(), Path::new("/m")).unwrap();
        let (pages, read) = MissingPages::read(dir.path()).unwrap().unwrap();
        assert_eq!((pages, read.by_address), ("/m".into(), all.by_address));
    }
}
