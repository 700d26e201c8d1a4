//! Which pages of memory the images hold, and where: `pagemap-PID.img` and `pages-N.img` (`images/pagemap.proto`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Error;
use super::tmpfs::io_error;
use crate::protobuf::{MAGIC, Value, put_field, take, take_field, take_word};

/// The size of a page of memory in CRIU's images, in bytes.
pub const PAGE: u64 = 4096;
/// The second magic number of a pagemap (CRIU's `PAGEMAP_MAGIC`).
const PAGEMAP_MAGIC: u32 = 0x5608_4025;
/// The pages are in the images of an earlier dump (CRIU's `PE_PARENT`).
const PARENT: u64 = 1 << 0;
/// The pages may be restored while the process runs: private and anonymous memory (CRIU's `PE_LAZY`).
const LAZY: u64 = 1 << 1;
/// The pages are in the file of pages (CRIU's `PE_PRESENT`).
const PRESENT: u64 = 1 << 2;
/// `pagemap_head.pages_id`.
const PAGES_ID: u64 = 1;
/// `pagemap_entry`: `vaddr`, `compat_nr_pages`, `in_parent`, `flags`, `nr_pages`.
const ADDRESS: u64 = 1;
const OLD_COUNT: u64 = 2;
const IN_PARENT: u64 = 3;
const FLAGS: u64 = 4;
const COUNT: u64 = 5;

/// Pages of one process that may be restored while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LazyRange {
    /// The address of the first page in the process.
    pub start: u64,
    /// The address after the last one.
    pub end: u64,
    /// The place of the first page in the file of pages.
    pub offset: u64,
}

/// Where the lazy pages of a pagemap are, if they are not in its own file of pages. It is beside the pagemap.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Index {
    /// The file with the pages.
    pub(super) pages: PathBuf,
    /// The pages.
    pub(super) ranges: Vec<LazyRange>,
}

impl Index {
    fn path(pagemap: &Path) -> PathBuf {
        pagemap.with_extension("index")
    }

    fn read(pagemap: &Path) -> Result<Option<Self>, Error> {
        let path = Self::path(pagemap);
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io_error("read", &path))?,
        };
        let index =
            serde_json::from_slice(&bytes).map_err(|e| io_error("read", &path)(e.into()))?;
        Ok(Some(index))
    }

    pub(super) fn write(&self, pagemap: &Path) -> Result<(), Error> {
        let path = Self::path(pagemap);
        let bytes = serde_json::to_vec(self).map_err(|e| io_error("write", &path)(e.into()))?;
        fs::write(&path, bytes).map_err(io_error("write", &path))
    }
}

/// The memory of one process in the images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pagemap {
    /// The file with the pages.
    pub pages: PathBuf,
    /// Pages that may be restored while the process runs, in order.
    pub lazy: Vec<LazyRange>,
}

impl Pagemap {
    /// Reads that of the process which had the number `pid` in its container.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Differs`] when it is no pagemap.
    pub fn read(images: &Path, pid: i32) -> Result<Self, Error> {
        Self::read_file(images, &images.join(format!("pagemap-{pid}.img")))
    }

    fn read_file(images: &Path, path: &Path) -> Result<Self, Error> {
        if let Some(index) = Index::read(path)? {
            return Ok(Self { pages: index.pages, lazy: index.ranges });
        }
        let bytes = fs::read(path).map_err(io_error("read", path))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (pages_id, lazy) =
            decode(&bytes).ok_or(Error::Differs { name, problem: "it is no pagemap" })?;
        Ok(Self { pages: images.join(format!("pages-{pages_id}.img")), lazy })
    }

    /// Returns how many bytes may be restored while the process runs.
    #[must_use]
    pub fn lazy_bytes(&self) -> u64 {
        self.lazy.iter().map(|range| range.end - range.start).sum()
    }
}

/// Returns how many bytes of the images may be restored while their processes run.
///
/// # Errors
/// As [`Pagemap::read`].
pub fn lazy_bytes(images: &Path) -> Result<u64, Error> {
    let mut sum = 0_u64;
    for entry in fs::read_dir(images).map_err(io_error("list", images))? {
        let path = entry.map_err(io_error("list", images))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // `pagemap-shmem-N.img` is of shared memory.
        let number = name.strip_prefix("pagemap-").and_then(|name| name.strip_suffix(".img"));
        if number.is_some_and(|number| number.parse::<i32>().is_ok()) {
            sum = sum.saturating_add(Pagemap::read_file(images, &path)?.lazy_bytes());
        }
    }
    Ok(sum)
}

/// An entry of a pagemap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) flags: u64,
}

impl Entry {
    pub(super) fn is_present(&self) -> bool {
        self.flags & PRESENT != 0
    }

    pub(super) fn is_in_parent(&self) -> bool {
        self.flags & PARENT != 0
    }

    /// Returns the entry with its pages in the file of pages.
    pub(super) fn present(start: u64, end: u64, is_lazy: bool) -> Self {
        Self { start, end, flags: if is_lazy { PRESENT | LAZY } else { PRESENT } }
    }

    fn encode(&self) -> Vec<u8> {
        let mut entry = Vec::new();
        let count = (self.end - self.start) / PAGE;
        put_field(&mut entry, ADDRESS, Value::Varint(self.start));
        // Earlier versions of CRIU know this field alone, and later ones prefer the other.
        put_field(&mut entry, OLD_COUNT, Value::Varint(count.min(u32::MAX.into())));
        put_field(&mut entry, FLAGS, Value::Varint(self.flags));
        if u32::try_from(count).is_err() {
            put_field(&mut entry, COUNT, Value::Varint(count));
        }
        entry
    }
}

/// Returns a whole pagemap.
pub(super) fn encode(pages_id: u64, entries: &[Entry]) -> Vec<u8> {
    let mut image = [MAGIC.to_le_bytes(), PAGEMAP_MAGIC.to_le_bytes()].concat();
    let mut head = Vec::new();
    put_field(&mut head, PAGES_ID, Value::Varint(pages_id));
    for entry in std::iter::once(head).chain(entries.iter().map(Entry::encode)) {
        image.extend((entry.len() as u32).to_le_bytes());
        image.extend(entry);
    }
    image
}

/// Returns a pagemap that claims to have every page a process can have.
#[must_use]
pub fn whole_pagemap(pages_id: u64) -> Vec<u8> {
    // The number of pages has 32 bits for earlier versions of CRIU, and addresses have 47.
    let length = PAGE << 31;
    let entries = (0..1 << 47).step_by(length as usize);
    let entries: Vec<Entry> =
        entries.map(|start| Entry::present(start, start + length, false)).collect();
    encode(pages_id, &entries)
}

/// Returns the number of the file of pages, and the ranges.
fn decode(image: &[u8]) -> Option<(u64, Vec<LazyRange>)> {
    let (pages_id, entries) = decode_entries(image)?;
    let mut offset = 0_u64;
    let mut lazy = Vec::new();
    for Entry { start, end, flags } in entries {
        if flags & PRESENT == 0 {
            continue;
        }
        if flags & LAZY != 0 && end > start {
            lazy.push(LazyRange { start, end, offset });
        }
        offset = offset.checked_add(end - start)?;
    }
    Some((pages_id, lazy))
}

/// Returns the number of the file of pages, and all entries.
pub(super) fn decode_entries(mut image: &[u8]) -> Option<(u64, Vec<Entry>)> {
    if take_word(&mut image)? != MAGIC {
        return None;
    }
    take_word(&mut image)?;
    let mut pages_id = None;
    let mut entries = Vec::new();
    while !image.is_empty() {
        let length = take_word(&mut image)?;
        let mut entry = take(&mut image, length.into())?;
        if pages_id.is_none() {
            while let Some((number, value)) = take_field(&mut entry) {
                if let (PAGES_ID, Value::Varint(id)) = (number, value) {
                    pages_id = Some(id);
                }
            }
            pages_id?;
            continue;
        }
        let (mut start, mut old_count, mut count, mut flags) = (None, None, None, 0);
        while let Some((number, value)) = take_field(&mut entry) {
            match (number, value) {
                (ADDRESS, Value::Varint(address)) => start = Some(address),
                (OLD_COUNT, Value::Varint(old)) => old_count = Some(old),
                (COUNT, Value::Varint(new)) => count = Some(new),
                (IN_PARENT, Value::Varint(1)) => flags |= PARENT,
                (FLAGS, Value::Varint(of)) => flags |= of,
                _ => {}
            }
        }
        let start = start.filter(|start| start % PAGE == 0)?;
        let end = start.checked_add(count.or(old_count)?.checked_mul(PAGE)?)?;
        entries.push(Entry { start, end, flags });
    }
    Some((pages_id?, entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(entries: &[(u64, u64, u64)]) -> Vec<u8> {
        let mut image = MAGIC.to_le_bytes().to_vec();
        image.extend([1, 2, 3, 4]);
        let mut head = Vec::new();
        put_field(&mut head, PAGES_ID, Value::Varint(7));
        let mut all = vec![head];
        for (start, count, flags) in entries {
            let mut entry = Vec::new();
            put_field(&mut entry, ADDRESS, Value::Varint(*start));
            put_field(&mut entry, OLD_COUNT, Value::Varint(0));
            put_field(&mut entry, FLAGS, Value::Varint(*flags));
            put_field(&mut entry, COUNT, Value::Varint(*count));
            all.push(entry);
        }
        for entry in all {
            image.extend((entry.len() as u32).to_le_bytes());
            image.extend(entry);
        }
        image
    }

    #[test]
    fn lazy_pages_have_their_place_behind_all_that_are_there() {
        let all =
            [(0x1000, 1, PRESENT), (0x5000, 2, LAZY | PRESENT), (0x9000, 9, 1), (0xa000, 1, 6)];
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("pagemap-3.img"), image(&all)).unwrap();
        fs::write(dir.path().join("pagemap-shmem-3.img"), b"something else").unwrap();
        let pagemap = Pagemap::read(dir.path(), 3).unwrap();
        assert_eq!(pagemap.pages, dir.path().join("pages-7.img"));
        assert_eq!(
            pagemap.lazy,
            [
                LazyRange { start: 0x5000, end: 0x7000, offset: 0x1000 },
                LazyRange { start: 0xa000, end: 0xb000, offset: 0x3000 },
            ]
        );
        assert_eq!(lazy_bytes(dir.path()).unwrap(), 3 * PAGE);
    }

    #[test]
    fn what_no_criu_writes_is_refused() {
        let whole = image(&[(0x1000, 1, PRESENT | LAZY)]);
        assert!(decode(&whole).is_some());
        for cut in 1..whole.len() {
            // A cut between two entries leaves a shorter pagemap.
            let _ = decode(&whole[..cut]);
        }
        assert!(decode(&whole[..whole.len() - 1]).is_none());
        assert!(decode(&image(&[(0x1001, 1, PRESENT)])).is_none(), "not a page");
        assert!(decode(&image(&[(0x1000, u64::MAX / 2, PRESENT)])).is_none(), "too many");
        assert!(decode(b"").is_none());
    }
}
