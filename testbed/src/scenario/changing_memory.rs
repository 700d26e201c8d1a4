//! A process that empties, moves, unmaps and shares its memory as soon as it notices that it stood still: right after a
//! migration, while pages of it are missing.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::mman::{
    MRemapFlags, MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, mremap, munmap,
};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::{Held, Setup};

pub(super) const ALL: &[(&str, Setup)] = &[("changing-memory", change_after_a_pause)];

const PAGE: usize = 4096;
/// Pages of each mapping.
const PAGES: usize = 8192;
/// A time in which the process does not run for that long is a migration.
const PAUSE: Duration = Duration::from_millis(250);

/// A mapping of private memory.
#[derive(Clone, Copy)]
struct Mapping(NonNull<libc::c_void>);

// SAFETY: one thread uses it, and nothing else knows of it.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new() -> io::Result<Self> {
        let length = NonZeroUsize::new(PAGES * PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the place, so it lies over nothing else.
        let mapped = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) };
        Ok(Self(mapped?))
    }

    fn word(&self, page: usize) -> *mut u64 {
        // SAFETY: callers name pages of the mapping alone.
        unsafe { self.0.as_ptr().cast::<u8>().add(page * PAGE).cast::<u64>() }
    }

    /// Gives each page a number of its own.
    fn fill(&self, part: u64) {
        for page in 0..PAGES {
            // SAFETY: the page is of this mapping, and aligned.
            unsafe { self.word(page).write_volatile(number(part, page)) };
        }
    }

    /// Returns whether these pages have what `expected` says.
    fn has(&self, pages: std::ops::Range<usize>, expected: impl Fn(usize) -> u64) -> bool {
        // SAFETY: the pages are of this mapping, and aligned.
        pages.into_iter().all(|page| unsafe { self.word(page).read_volatile() } == expected(page))
    }
}

fn number(part: u64, page: usize) -> u64 {
    (part + 1) << 32 | page as u64
}

fn change_after_a_pause() -> io::Result<Held> {
    let mut parts = Vec::new();
    for part in 0..5 {
        let mapping = Mapping::new()?;
        mapping.fill(part);
        parts.push(mapping);
    }
    let checker = thread::spawn(move || {
        loop {
            let last = Instant::now();
            thread::sleep(Duration::from_millis(1));
            if last.elapsed() >= PAUSE {
                break;
            }
        }
        match change(&parts) {
            Ok(()) => println!("all is right"),
            Err(error) => println!("WRONG: {error}"),
        }
    });
    Ok(Box::new(checker))
}

/// Changes the mappings, and checks what they have then, here and in a child.
fn change(parts: &[Mapping]) -> io::Result<()> {
    let wrong = |what: &str| Err(io::Error::other(what.to_owned()));
    let [emptied, moved, unmapped, others @ ..] = parts else { return wrong("too few parts") };
    // SAFETY: every range is a mapping of this process that nothing else uses, and the child calls nothing that needs
    // a lock of another thread.
    unsafe {
        madvise(emptied.0, PAGES * PAGE / 2, MmapAdvise::MADV_DONTNEED)?;
        let child = fork()?;
        let flags = MRemapFlags::MREMAP_MAYMOVE;
        let moved = Mapping(mremap(moved.0, PAGES * PAGE, PAGES * PAGE * 2, flags, None)?);
        munmap(unmapped.0, PAGES * PAGE)?;
        let new = Mapping::new()?;
        let zero = |_| 0;
        let checks = [
            ("emptied pages are back", emptied.has(0..PAGES / 2, zero)),
            ("pages beside emptied ones", emptied.has(PAGES / 2..PAGES, |page| number(0, page))),
            ("pages that were moved", moved.has(0..PAGES, |page| number(1, page))),
            ("pages behind those that were moved", moved.has(PAGES..PAGES * 2, zero)),
            ("a new mapping is not empty", new.has(0..PAGES, zero)),
            (
                "pages that nothing has touched",
                (3..).zip(others).all(|(part, of)| of.has(0..PAGES, |page| number(part, page))),
            ),
        ];
        let failed = checks.iter().find(|(_, is_right)| !is_right);
        match child {
            ForkResult::Child => libc::_exit(i32::from(failed.is_some())),
            ForkResult::Parent { child } => {
                if waitpid(child, None)? != WaitStatus::Exited(child, 0) {
                    return wrong("the child has other memory");
                }
            }
        }
        failed.map_or(Ok(()), |(what, _)| wrong(what))
    }
}
