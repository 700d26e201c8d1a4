//! A process that may lack pages, as the server knows it.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::rc::Rc;

use super::at_source::AtSource;
use crate::images::{LazyRange, Pagemap};
use crate::page_ranges::PageRanges;
use crate::userfault::Userfault;

/// A process that may lack pages.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) userfault: Userfault,
    pub(super) pending: PageRanges,
    /// The file of pages of the images.
    pub(super) pages: Rc<File>,
    /// Addresses of pages that it waits for and that could not be put in place yet.
    pub(super) faults: Vec<u64>,
    /// Addresses of pages that it waits for and that are still at the source.
    pub(super) waiting: Vec<u64>,
    /// Where the pages begin of which some may be there and not in place. `None` if none is.
    pub(super) cursor: Option<u64>,
    pub(super) is_gone: bool,
}

impl Process {
    /// Takes the process that had the number `pid` in its container.
    pub(super) fn read(userfault: Userfault, images: &Path, pid: i32) -> io::Result<Self> {
        let pagemap = Pagemap::read(images, pid).map_err(io::Error::other)?;
        let file = OpenOptions::new().read(true).write(true).open(&pagemap.pages)?;
        let length = file.metadata()?.len();
        let is_beyond =
            |range: &LazyRange| range.offset.saturating_add(range.end - range.start) > length;
        if pagemap.lazy.iter().any(is_beyond) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self::new(userfault, PageRanges::new(&pagemap.lazy), Rc::new(file)))
    }

    fn new(userfault: Userfault, pending: PageRanges, pages: Rc<File>) -> Self {
        let (faults, waiting) = (Vec::new(), Vec::new());
        Self { userfault, pending, pages, faults, waiting, cursor: Some(0), is_gone: false }
    }

    /// Returns its child, which lacks the same pages.
    pub(super) fn fork(&self, child: Userfault) -> Self {
        Self::new(child, self.pending.clone(), Rc::clone(&self.pages))
    }

    /// Looks at all pages again: some have come, or have other addresses.
    pub(super) fn look_again(&mut self) {
        self.cursor = Some(0);
        self.faults.append(&mut self.waiting);
    }

    pub(super) fn is_whole(&self) -> bool {
        self.pending.is_empty() && self.faults.is_empty() && self.waiting.is_empty()
    }

    /// Returns whether it may lack a page that could be put in place.
    pub(super) fn can_go_on(&self) -> bool {
        self.cursor.is_some() && !self.pending.is_empty()
    }

    /// Returns the next pages that are there and not in place, at most `length` bytes of them.
    pub(super) fn next(&mut self, at_source: Option<&AtSource>, length: u64) -> Option<LazyRange> {
        let mut at = self.cursor?;
        while let Some(range) = self.pending.at_or_after(at, length) {
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
