//! Which pages of a process may be put in place while it runs, by CRIU's own rules: it leaves out of a restore what its dump has
//! marked as lazy, and so does whoever makes images for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::Error;
use super::pagemap::PAGE;
use super::syscall_restart::{PROCESSES, processes};
use super::tmpfs::io_error;
use crate::protobuf::{Value, fields, take, take_word};

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

/// The mappings of a process whose pages may be lazy, as the images of its dump tell them.
#[derive(Debug, Default)]
pub struct LazyMappings {
    lazy: Vec<Part>,
    /// Pages to which stack pointers point.
    stacks: BTreeSet<u64>,
}

impl LazyMappings {
    /// Reads those of the process that has the number `process` in its container.
    ///
    /// # Errors
    /// [`Error::Differs`] if an image is none; [`Error::Io`].
    pub fn read(images: &Path, process: i32) -> Result<Self, Error> {
        let name = format!("mm-{process}.img");
        let path = images.join(&name);
        let mm = fs::read(&path).map_err(io_error("read", &path))?;
        let lazy =
            lazy_mappings(&mm).ok_or(Error::Differs { name, problem: "it has no mappings" })?;
        Ok(Self { lazy, stacks: stack_pages(images, process)? })
    }

    /// Splits pages into those that may be lazy and those that may not.
    #[must_use]
    pub fn split(&self, start: u64, end: u64) -> Vec<(Part, bool)> {
        split(start, end, &self.lazy, &self.stacks)
    }
}

/// Pages that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The address of the first one.
    pub start: u64,
    /// The address after the last one.
    pub end: u64,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_stack_pointers_are_not_lazy() {
        let lazy = [Part { start: 2 * PAGE, end: 9 * PAGE }];
        let parts = split(PAGE, 8 * PAGE, &lazy, &[5 * PAGE].into());
        let told: Vec<(u64, u64, bool)> =
            parts.iter().map(|(part, is)| (part.start / PAGE, part.end / PAGE, *is)).collect();
        assert_eq!(told, [(1, 2, false), (2, 5, true), (5, 6, false), (6, 8, true)]);
    }
}
