//! Pages that were written, by the kernel's soft-dirty bit (`CONFIG_MEM_SOFT_DIRTY`,
//! `Documentation/admin-guide/mm/soft-dirty.rst`): for kernels that have no better way.
//!
//! The bits are cleared for a whole process at a time, and no call reads and clears them at once. A page that is written after
//! its bit was read and before it is cleared would be lost, so the process has to stand still for that. Clearing alone needs no
//! stop: the kernel has no writable entry left when the call returns (`clear_refs_write`, `fs/proc/task_mmu.c`), so a page
//! whose content is read after that is marked again by the first write that the reader has not seen.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use super::scan::{Look, Range};
use crate::images::PAGE;

/// Bits of an entry of `/proc/PID/pagemap`.
const SOFT_DIRTY: u64 = 1 << 55;
const FILE: u64 = 1 << 61;
const SWAPPED: u64 = 1 << 62;
const PRESENT: u64 = 1 << 63;
/// Bytes of an entry.
const ENTRY: usize = size_of::<u64>();
/// Entries that are read at a time.
const ENTRIES: usize = 64 << 10;
/// Clears the bits of a process (proc_pid_clear_refs(5)).
const CLEAR: &str = "4";

/// Returns whether the kernel has the bit: a page that was just written has it.
pub(super) fn is_supported() -> bool {
    let mut pages = vec![0_u8; 2 * PAGE as usize];
    pages.fill(1);
    let written = std::hint::black_box(&pages);
    let page = (written.as_ptr() as u64).div_ceil(PAGE);
    let mut entry = [0; ENTRY];
    let read = File::open("/proc/self/pagemap")
        .and_then(|pagemap| pagemap.read_exact_at(&mut entry, page * ENTRY as u64));
    read.is_ok() && u64::from_ne_bytes(entry) & SOFT_DIRTY != 0
}

/// Adds the pages of a mapping that `look` wants to `found`.
pub(super) fn scan(
    pagemap: &File,
    mapping: Range,
    look: Look,
    found: &mut Vec<Range>,
) -> io::Result<()> {
    let mut buffer = vec![0; ENTRIES * ENTRY];
    let mut at = mapping.start;
    while at < mapping.end {
        let count = (((mapping.end - at) / PAGE) as usize).min(ENTRIES);
        let entries = &mut buffer[..count * ENTRY];
        pagemap.read_exact_at(entries, at / PAGE * ENTRY as u64)?;
        for entry in entries.chunks_exact(ENTRY) {
            let bits = entry.try_into().map_or(0, u64::from_ne_bytes);
            let is_there = bits & (PRESENT | SWAPPED) != 0 && bits & FILE == 0;
            if is_there && (look == Look::All || bits & SOFT_DIRTY != 0) {
                match found.last_mut() {
                    Some(last) if last.end == at => last.end = at + PAGE,
                    _ => found.push(Range { start: at, end: at + PAGE }),
                }
            }
            at += PAGE;
        }
    }
    Ok(())
}

/// Clears the bits of a process.
pub(super) fn clear(pid: i32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), CLEAR)
}
