//! Memory that came while the container ran. CRIU's dump leaves it out, and names the pages that it expects in the images of
//! an earlier dump: here they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Error;
use super::pagemap::{Entry, Index, LazyRange, PAGE, decode_entries, encode};
use super::syscall_restart::{PROCESSES, processes};
use super::tmpfs::io_error;
use crate::page_ranges::PageRanges;
use crate::protobuf::{Value, fields, take, take_word};

/// The file of the pages, in its directory.
const PAGES: &str = "memory";
/// Processes of one container.
const PROCESS_LIMIT: usize = 1 << 16;
/// `mm_entry.vmas`.
const MAPPINGS: u64 = 14;
/// `vma_entry`: `start`, `end`, `flags`, `status`.
const START: u64 = 1;
const END: u64 = 2;
const FLAGS: u64 = 6;
const STATUS: u64 = 7;
/// `core_entry.thread_info`, `thread_info_x86.gpregs`, `user_x86_regs_entry.sp`.
const THREAD_INFO: u64 = 2;
const REGISTERS: u64 = 2;
const STACK_POINTER: u64 = 20;
/// `MAP_PRIVATE | MAP_ANONYMOUS`, and `MAP_LOCKED | MAP_HUGETLB` (mmap(2)).
const PRIVATE: u64 = 0x22;
const SPECIAL: u64 = 0x4_2000;
/// `VMA_AREA_VSYSCALL | VMA_AREA_VDSO | VMA_AREA_VVAR` (`criu/include/image.h`).
const KERNELS: u64 = 1 << 2 | 1 << 3 | 1 << 12;
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
        let length = bytes.len() as u64;
        let end = start.checked_add(length);
        let Some(end) = end
            .filter(|_| start.is_multiple_of(PAGE) && length.is_multiple_of(PAGE) && process > 0)
        else {
            return Err(Error::Differs { name: PAGES.to_owned(), problem: "it is no page" });
        };
        if !self.processes.contains_key(&process) && self.processes.len() >= PROCESS_LIMIT {
            let what = "number of processes";
            return Err(Error::TooLarge { what, limit: PROCESS_LIMIT as u64 });
        }
        let ranges = self.processes.entry(process).or_default();
        let mut at = start;
        while at < end {
            let place = match ranges.at(at, end - at) {
                Some(known) => known,
                None => {
                    let next = ranges.next_after(at).map_or(end, |next| next.min(end));
                    let new = LazyRange { start: at, end: next, offset: self.length };
                    self.length += next - at;
                    if self.length > self.limit {
                        return Err(Error::TooLarge { what: "bytes of memory", limit: self.limit });
                    }
                    ranges.insert(new);
                    new
                }
            };
            let part = (at - start) as usize..(place.end - start) as usize;
            let part = bytes.get(part).unwrap_or_default();
            self.file.write_all_at(part, place.offset).map_err(io_error("write", &self.path))?;
            at = place.end;
        }
        Ok(())
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
        for entry in fs::read_dir(images).map_err(io_error("list", images))? {
            let path = entry.map_err(io_error("list", images))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let number = name.strip_prefix("pagemap-").and_then(|name| name.strip_suffix(".img"));
            if let Some(process) = number.and_then(|number| number.parse().ok()) {
                self.complete_process(images, &path, (process, &name), lazy_pages)?;
            }
        }
        Ok(())
    }

    fn complete_process(
        &self,
        images: &Path,
        pagemap: &Path,
        (process, name): (i32, &str),
        lazy_pages: bool,
    ) -> Result<(), Error> {
        let differs = |problem| Error::Differs { name: name.to_owned(), problem };
        let read = |path: &Path| fs::read(path).map_err(io_error("read", path));
        let (pages_id, entries) =
            decode_entries(&read(pagemap)?).ok_or_else(|| differs("it is no pagemap"))?;
        if !entries.iter().any(Entry::is_in_parent) {
            return Ok(());
        }
        let lazy = if lazy_pages {
            let mm = read(&images.join(format!("mm-{process}.img")))?;
            lazy_mappings(&mm).ok_or_else(|| differs("it has no mappings"))?
        } else {
            Vec::new()
        };
        let stacks = stack_pages(images, process)?;
        let own = images.join(format!("pages-{pages_id}.img"));
        let whole = images.join(format!("pages-{pages_id}.new"));
        let file = |path: &Path, writes: bool| {
            let mut options = OpenOptions::new();
            options.read(!writes).write(writes).create(writes).mode(0o600);
            options.open(path).map_err(io_error("open", path))
        };
        let (from, to) = (file(&own, false)?, file(&whole, true)?);
        let stored = self.processes.get(&process);
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
            for (part, is_lazy) in split(entry.start, entry.end, &lazy, &stacks) {
                let mut at = part.start;
                while at < part.end {
                    let found = stored.and_then(|stored| stored.at(at, part.end - at));
                    let found = found.ok_or_else(|| differs("a page of memory is missing"))?;
                    let length = found.end - found.start;
                    if is_lazy {
                        ranges.push(found);
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
        match ranges[..] {
            [] => Ok(()),
            _ => Index { pages: self.path.clone(), ranges }.write(pagemap),
        }
    }
}

/// A part of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    start: u64,
    end: u64,
}

/// Splits pages into those that may be lazy and those that may not, as CRIU's dump does (`generate_iovs` in `criu/mem.c`):
/// lazy are private mappings of no file, except for the pages to which stack pointers point.
fn split(start: u64, end: u64, lazy: &[Part], stacks: &BTreeSet<u64>) -> Vec<(Part, bool)> {
    let mut edges: BTreeSet<u64> = [start, end].into();
    let mut add = |edge: u64| {
        if edge > start && edge < end {
            edges.insert(edge);
        }
    };
    // Mappings are in order.
    let first = lazy.partition_point(|of| of.end <= start);
    let lazy: Vec<&Part> = lazy[first..].iter().take_while(|of| of.start < end).collect();
    lazy.iter().for_each(|of| [of.start, of.end].into_iter().for_each(&mut add));
    stacks.range(start..end).for_each(|page| [*page, *page + PAGE].into_iter().for_each(&mut add));
    let edges: Vec<u64> = edges.into_iter().collect();
    let part = |edge: &[u64]| {
        let part = Part { start: edge[0], end: edge[1] };
        let within = lazy.partition_point(|of| of.end < part.end);
        let is_within = lazy.get(within).is_some_and(|of| of.start <= part.start);
        (part, is_within && !stacks.contains(&part.start))
    };
    edges.windows(2).map(part).collect()
}

/// Returns the mappings of an image `mm-PID.img` whose pages may be lazy (`vma_entry_can_be_lazy`).
fn lazy_mappings(mut image: &[u8]) -> Option<Vec<Part>> {
    take(&mut image, 8)?;
    let length = take_word(&mut image)?;
    let entry = take(&mut image, length.into())?;
    let mut all = Vec::new();
    for (number, value) in fields(entry) {
        let (MAPPINGS, Value::Bytes(mapping)) = (number, value) else { continue };
        let mut values = [0; STATUS as usize + 1];
        for (number, value) in fields(mapping) {
            if let (Value::Varint(value), Some(place)) = (value, values.get_mut(number as usize)) {
                *place = value;
            }
        }
        let (flags, status) = (values[FLAGS as usize], values[STATUS as usize]);
        if flags & PRIVATE == PRIVATE && flags & SPECIAL == 0 && status & KERNELS == 0 {
            all.push(Part { start: values[START as usize], end: values[END as usize] });
        }
    }
    Some(all)
}

/// Returns the pages to which the stack pointers of a process's threads point.
fn stack_pages(images: &Path, process: i32) -> Result<BTreeSet<u64>, Error> {
    let differs = |name: &str| Error::Differs { name: name.to_owned(), problem: "format" };
    let path = images.join(PROCESSES);
    let tree = fs::read(&path).map_err(io_error("read", &path))?;
    let tree = processes(&tree).ok_or_else(|| differs(PROCESSES))?;
    let threads = u64::try_from(process).ok().and_then(|process| tree.get(&process));
    let mut pages = BTreeSet::new();
    for thread in threads.into_iter().flatten() {
        let name = format!("core-{thread}.img");
        let path = images.join(&name);
        let image = fs::read(&path).map_err(io_error("read", &path))?;
        let pointer = stack_pointer(&image).ok_or_else(|| differs(&name))?;
        pages.insert(pointer & !(PAGE - 1));
    }
    Ok(pages)
}

fn stack_pointer(mut image: &[u8]) -> Option<u64> {
    take(&mut image, 8)?;
    let length = take_word(&mut image)?;
    let entry = take(&mut image, length.into())?;
    let within = |bytes, wanted| {
        fields(bytes).find_map(|(number, value)| match value {
            Value::Bytes(bytes) if number == wanted => Some(bytes),
            _ => None,
        })
    };
    let registers = within(within(entry, THREAD_INFO)?, REGISTERS)?;
    fields(registers).find_map(|field| match field {
        (STACK_POINTER, Value::Varint(pointer)) => Some(pointer),
        _ => None,
    })
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
    fn pages_of_stack_pointers_are_not_lazy() {
        let lazy = [Part { start: 2 * PAGE, end: 9 * PAGE }];
        let parts = split(PAGE, 8 * PAGE, &lazy, &[5 * PAGE].into());
        let told: Vec<(u64, u64, bool)> =
            parts.iter().map(|(part, is)| (part.start / PAGE, part.end / PAGE, *is)).collect();
        assert_eq!(told, [(1, 2, false), (2, 5, true), (5, 6, false), (6, 8, true)]);
    }
}
