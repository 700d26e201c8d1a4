//! A process that writes its memory all the time and checks each page before it writes it again: by several threads, by
//! children that check what they were born with, and with mappings that come, go and take the place of others.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::{Held, Setup};

pub(super) const ALL: &[(&str, Setup)] = &[("writing-memory", write_always)];

const PAGE: usize = 4096;
/// Pages of each thread, on a machine that is not slowed down.
const PAGES: usize = 6144;
/// The environment variable with the factor by which there are fewer pages and longer pauses.
const PACE: &str = "PACE";
/// Threads that write.
const THREADS: usize = 3;
/// Writes between two pauses, and the length of a pause.
const BURST: usize = 200;
const PAUSE: Duration = Duration::from_millis(2);
/// Places in a page that are written and checked.
const PLACES: [usize; 3] = [0, 1000, 4088];
/// Each page is empty after so many writes, and has content before and after.
const EMPTY_EVERY: u64 = 40;
/// Pages that a child checks.
const CHILD: usize = 64;
/// Between two children, and between two mappings.
const BETWEEN: Duration = Duration::from_millis(40);

/// Checks so far.
static CHECKED: AtomicU64 = AtomicU64::new(0);

/// A mapping of private memory, and how often each of its pages was written.
pub(super) struct Region {
    memory: NonNull<u8>,
    times: Vec<u64>,
    seed: u64,
}

// SAFETY: one thread uses it.
unsafe impl Send for Region {}

impl Region {
    pub(super) fn new(seed: u64, pages: usize) -> io::Result<Self> {
        let length = NonZeroUsize::new(pages * PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the place, so it lies over nothing else.
        let memory = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }?;
        let mut region = Self { memory: memory.cast(), times: vec![0; pages], seed };
        (0..pages).for_each(|page| region.write(page));
        Ok(region)
    }

    fn expected(&self, page: usize) -> u64 {
        match self.times[page] % EMPTY_EVERY {
            0 => 0,
            _ => (self.seed << 48) ^ (self.times[page] << 20) ^ page as u64,
        }
    }

    fn place(&self, page: usize, at: usize) -> *mut u64 {
        // SAFETY: pages and places are within the mapping.
        unsafe { self.memory.as_ptr().add(page * PAGE + at).cast() }
    }

    /// Returns how many pages there are.
    pub(super) fn pages(&self) -> usize {
        self.times.len()
    }

    pub(super) fn write(&mut self, page: usize) {
        self.times[page] += 1;
        let value = self.expected(page);
        // SAFETY: the places are of this mapping, and aligned.
        PLACES.iter().for_each(|at| unsafe { self.place(page, *at).write_volatile(value) });
    }

    pub(super) fn is_right(&self, page: usize) -> bool {
        let value = self.expected(page);
        // SAFETY: the places are of this mapping, and aligned.
        PLACES.iter().all(|at| unsafe { self.place(page, *at).read_volatile() } == value)
    }

    /// Replaces the mapping by a new one, often at the same place.
    fn replace(&mut self) -> io::Result<()> {
        // SAFETY: nothing else uses the mapping.
        unsafe { munmap(self.memory.cast(), self.pages() * PAGE) }?;
        *self = Self::new(self.seed + 1, self.pages())?;
        Ok(())
    }
}

/// Numbers without a pattern (xorshift).
pub(super) fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state as usize
}

pub(super) fn wrong(what: &str, page: usize) {
    println!("WRONG: {what}, page {page}");
}

/// Returns the number in an environment variable.
pub(super) fn number(variable: &str) -> Option<u32> {
    std::env::var(variable).ok()?.parse().ok()
}

fn write_always() -> io::Result<Held> {
    let pace = number(PACE).unwrap_or(1).max(1);
    let (pages, pause, between) = (PAGES / pace as usize, PAUSE * pace, BETWEEN * pace);
    for thread in 0..THREADS {
        let mut region = Region::new(thread as u64 + 1, pages)?;
        thread::spawn(move || {
            let mut state = thread as u64 + 99;
            loop {
                for _ in 0..BURST {
                    let page = next(&mut state) % pages;
                    if !region.is_right(page) {
                        wrong("a page of a thread", page);
                    }
                    region.write(page);
                }
                CHECKED.fetch_add(BURST as u64, Ordering::Relaxed);
                thread::sleep(pause);
            }
        });
    }
    let mut own = Region::new(77, pages)?;
    let parent = thread::spawn(move || -> io::Result<()> {
        let mut state = 7;
        loop {
            (0..CHILD).for_each(|_| own.write(next(&mut state) % pages));
            // SAFETY: the child calls nothing that needs a lock of another thread.
            match unsafe { fork() }? {
                ForkResult::Child => {
                    thread::sleep(between * 3);
                    let bad = (0..CHILD).find(|_| !own.is_right(next(&mut state) % pages));
                    // SAFETY: _exit(2) ends the child at once.
                    unsafe { libc::_exit(i32::from(bad.is_some())) }
                }
                ForkResult::Parent { child } => {
                    thread::sleep(between);
                    (0..CHILD).for_each(|_| own.write(next(&mut state) % pages));
                    if waitpid(child, None)? != WaitStatus::Exited(child, 0) {
                        wrong("a page of a child", 0);
                    }
                }
            }
            if let Some(page) = (0..pages).find(|page| !own.is_right(*page)) {
                wrong("a page of the parent", page);
            }
            own.replace()?;
        }
    });
    let teller = thread::spawn(|| {
        loop {
            thread::sleep(Duration::from_millis(500));
            println!("checked {}", CHECKED.load(Ordering::Relaxed));
        }
    });
    Ok(Box::new((parent, teller)))
}
