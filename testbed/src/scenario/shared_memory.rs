//! Processes that share memory without a file: a child counts in it, and the parent checks that the numbers only grow, and
//! that nothing else of it changes.

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::unistd::{ForkResult, fork};

use super::{Held, Setup};

pub(super) const ALL: &[(&str, Setup)] = &[("shared-memory", share)];

const LENGTH: usize = 16 << 20;
const PAGE: usize = 4096;
/// Between two looks of the parent. The child counts on meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(500);

fn share() -> io::Result<Held> {
    let length = NonZeroUsize::new(LENGTH).ok_or(io::ErrorKind::InvalidInput)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: the kernel chooses the place, so it lies over nothing else.
    let memory = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_SHARED) }?;
    let count = LENGTH / size_of::<u64>();
    // SAFETY: the mapping is aligned, has this length, and lives as long as the process.
    let words: &'static [AtomicU64] =
        unsafe { std::slice::from_raw_parts(memory.as_ptr().cast(), count) };
    let counter = &words[0];
    let pages = || (1..LENGTH / PAGE).map(|page| (page, &words[page * PAGE / size_of::<u64>()]));
    pages().for_each(|(page, word)| word.store(page as u64, Ordering::Relaxed));
    // SAFETY: the child calls nothing that needs a lock of another thread.
    if let ForkResult::Child = unsafe { fork() }? {
        loop {
            counter.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(Box::new(thread::spawn(move || {
        let mut before = 0;
        loop {
            thread::sleep(LOOK_EVERY);
            let now = counter.load(Ordering::Relaxed);
            let bad = pages().find(|(page, word)| word.load(Ordering::Relaxed) != *page as u64);
            match bad {
                Some((page, _)) => println!("WRONG: page {page}"),
                None if now <= before => println!("WRONG: {now} after {before}"),
                None => println!("checked {now}"),
            }
            before = now;
        }
    })))
}
