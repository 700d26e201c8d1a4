//! Pages of a process by their state (`PAGEMAP_SCAN`, Linux 6.7, `Documentation/admin-guide/mm/pagemap.rst`).

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

/// `PAGE_IS_WRITTEN`, `PAGE_IS_FILE`, `PAGE_IS_PRESENT`, `PAGE_IS_SWAPPED`, `PAGE_IS_PFNZERO`.
const WRITTEN: u64 = 1 << 1;
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;
const EMPTY: u64 = 1 << 5;
/// `PM_SCAN_WP_MATCHING`: protects the pages that are found again.
const PROTECT: u64 = 1 << 0;
/// `PM_SCAN_CHECK_WPASYNC`: fails where writes are not noted.
const CHECK: u64 = 1 << 1;
/// Ranges that one call returns at most.
const RANGES: usize = 4096;

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_length: u64,
    most_pages: u64,
    inverted: u64,
    wanted: u64,
    any_of: u64,
    returned: u64,
}

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, ScanArgument);

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first address.
    pub start: u64,
    /// The address after the last one.
    pub end: u64,
}

/// Which pages are looked for: pages with content of the process's own, in memory or in swap, that are not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// All of them.
    All,
    /// Those that were written since the last look, or were never looked at. They are protected again.
    Written,
}

/// Adds the pages of a mapping that `look` wants to `found`.
pub(super) fn scan(
    pagemap: &File,
    mapping: Range,
    look: Look,
    found: &mut Vec<Range>,
) -> nix::Result<()> {
    let mut regions = vec![Region::default(); RANGES];
    let (flags, written) = match look {
        Look::All => (0, 0),
        Look::Written => (PROTECT | CHECK, WRITTEN),
    };
    let mut start = mapping.start;
    while start < mapping.end {
        let mut argument = ScanArgument {
            size: size_of::<ScanArgument>() as u64,
            flags,
            start,
            end: mapping.end,
            walk_end: 0,
            regions: regions.as_mut_ptr() as u64,
            regions_length: RANGES as u64,
            most_pages: 0,
            inverted: FILE | EMPTY,
            wanted: FILE | EMPTY | written,
            any_of: PRESENT | SWAPPED,
            returned: PRESENT | SWAPPED,
        };
        // SAFETY: the structure is the one of this call, and names a buffer that lives until it returns.
        let count = match unsafe { pagemap_scan(pagemap.as_raw_fd(), &raw mut argument) } {
            Err(Errno::EINTR) => continue,
            other => usize::try_from(other?).map_err(|_| Errno::EINVAL)?,
        };
        for region in regions.iter().take(count) {
            match found.last_mut() {
                Some(last) if last.end == region.start => last.end = region.end,
                _ => found.push(Range { start: region.start, end: region.end }),
            }
        }
        if argument.walk_end <= start {
            return Err(Errno::EINVAL);
        }
        start = argument.walk_end;
    }
    Ok(())
}

/// Returns whether the kernel has this call.
pub(super) fn is_supported() -> bool {
    let Ok(pagemap) = File::open("/proc/self/pagemap") else { return false };
    scan(&pagemap, Range { start: 0, end: 1 << 16 }, Look::All, &mut Vec::new()).is_ok()
}

/// The mappings of a process.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    /// Those with pages of its own, in order.
    pub(super) private: Vec<Range>,
    /// Those of them with code.
    pub(super) code: Vec<Range>,
    /// That of the code which the kernel gives it.
    pub(super) vdso: Option<Range>,
}

/// Reads the mappings of a process (proc_pid_maps(5)).
pub(super) fn mappings(process: i32) -> io::Result<Mappings> {
    Ok(parse(&fs::read_to_string(format!("/proc/{process}/maps"))?))
}

fn parse(maps: &str) -> Mappings {
    let mut all = Mappings::default();
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(range), Some(permissions)) = (fields.next(), fields.next()) else { continue };
        let name = fields.nth(3).unwrap_or_default();
        // What the kernel maps is not memory of the process.
        if name.starts_with("[vvar") || name == "[vsyscall]" {
            continue;
        }
        // CRIU dumps memory that is shared.
        if permissions.ends_with('s') {
            continue;
        }
        let number = |text| u64::from_str_radix(text, 16).ok();
        let range = range.split_once('-');
        if let Some((start, end)) = range.and_then(|(a, b)| Some((number(a)?, number(b)?))) {
            match name {
                "[vdso]" => all.vdso = Some(Range { start, end }),
                _ => {
                    all.private.push(Range { start, end });
                    if permissions.contains('x') {
                        all.code.push(Range { start, end });
                    }
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c0a00000-55d0c0a02000 r--p 00000000 08:01 1234 /usr/bin/x
7f0000000000-7f0000100000 rw-p 00000000 00:00 0 
7f0000200000-7f0000300000 rw-s 00000000 00:01 2 /dev/shm/of a file
7ffd3a5f2000-7ffd3a613000 rw-p 00000000 00:00 0                          [stack]
7ffd3a7b8000-7ffd3a7bc000 r--p 00000000 00:00 0                          [vvar]
7ffd3a7bc000-7ffd3a7be000 r-xp 00000000 00:00 0                          [vdso]
";

    #[test]
    fn private_mappings_are_told_from_shared_ones_and_the_kernels() {
        let all = parse(MAPS);
        let starts: Vec<u64> = all.private.iter().map(|range| range.start).collect();
        let expected = [0x55d0_c0a0_0000, 0x7f00_0000_0000, 0x7ffd_3a5f_2000];
        assert_eq!(starts, expected);
        assert_eq!(all.vdso.map(|range| range.start), Some(0x7ffd_3a7b_c000));
    }

    #[test]
    fn pages_with_content_are_found() {
        use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
        let length = std::num::NonZeroUsize::new(16 * 4096).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the place, so it lies over nothing else.
        let memory =
            unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }.unwrap();
        let start = memory.as_ptr() as u64;
        // SAFETY: the page is within the mapping.
        unsafe { memory.as_ptr().cast::<u8>().add(3 * 4096).write_volatile(7) };
        let mut found = Vec::new();
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let mapping = Range { start, end: start + 16 * 4096 };
        match scan(&pagemap, mapping, Look::All, &mut found) {
            Err(Errno::ENOTTY) => println!("skipped: this kernel cannot"),
            other => {
                other.unwrap();
                assert_eq!(found, [Range { start: start + 0x3000, end: start + 0x4000 }]);
            }
        }
        // SAFETY: nothing uses it any more.
        unsafe { munmap(memory, 16 * 4096) }.unwrap();
    }
}
