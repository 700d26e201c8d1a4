//! Processes that share several segments of memory and write them all the time. Each page has one process that writes it, and
//! checks every byte before it does. Others are born, write and end; segments come and go; one is attached by nobody.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::thread;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::{Held, Setup, check};

pub(super) const ALL: &[(&str, Setup)] = &[("shared-segments", share)];

const PAGE: usize = 4096;
const WORDS: usize = PAGE / size_of::<u64>();
/// Pages of the anonymous segment and of that of System V, of the memfd, and of those that come and go.
const PAGES: usize = 2048;
const FEW: usize = 512;
/// Bytes beyond whole pages of the segment of System V.
const ODD: usize = 100;
/// Processes that live as long as the container.
const WRITERS: usize = 4;
/// Pages that are written between two pauses, and the length of a pause.
const BURST: usize = 16;
const PAUSE: Duration = Duration::from_millis(2);
/// Pages of the anonymous segment, at its end, that processes write which end at once.
const BRIEF: usize = 64;
/// Each page is empty after so many writes, and has content before and after.
const EMPTY_EVERY: u64 = 7;

/// A mapping that processes share.
#[derive(Clone, Copy)]
struct Shared {
    at: NonNull<u64>,
    pages: usize,
    seed: u64,
}

// SAFETY: each page is written by one process, and the mapping stays.
unsafe impl Send for Shared {}

impl Shared {
    fn anonymous(pages: usize, seed: u64) -> io::Result<Self> {
        let length = NonZeroUsize::new(pages * PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the place, so it lies over nothing else.
        let at = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_SHARED) }?;
        Ok(Self { at: at.cast(), pages, seed })
    }

    fn of_memfd(file: &File, pages: usize, seed: u64) -> io::Result<Self> {
        let length = NonZeroUsize::new(pages * PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        let (protection, flags) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
        // SAFETY: the kernel chooses the place, so it lies over nothing else.
        let at = unsafe { mmap(None, length, protection, flags, file, 0) }?;
        Ok(Self { at: at.cast(), pages, seed })
    }

    fn attach(segment: i32, pages: usize, seed: u64) -> io::Result<Self> {
        // SAFETY: the kernel chooses the place, so it lies over nothing else.
        let at = unsafe { libc::shmat(segment, std::ptr::null(), 0) };
        let at = NonNull::new(at).filter(|at| at.as_ptr() as isize != -1);
        Ok(Self { at: at.ok_or_else(io::Error::last_os_error)?.cast(), pages, seed })
    }

    fn detach(self) -> io::Result<()> {
        // SAFETY: the mapping is one of shmat(2), and nobody uses it any more.
        check(unsafe { libc::shmdt(self.at.as_ptr().cast()) }.into()).map(drop)
    }

    fn unmap(self) -> io::Result<()> {
        // SAFETY: nobody uses the mapping any more.
        Ok(unsafe { munmap(self.at.cast(), self.pages * PAGE) }?)
    }

    fn word(&self, page: usize, word: usize) -> *mut u64 {
        // SAFETY: callers name pages of the mapping alone.
        unsafe { self.at.as_ptr().add(page * WORDS + word) }
    }

    fn write(&self, page: usize, times: u64) {
        let content = content(self.seed, page, times);
        // SAFETY: the page is of this mapping, and aligned.
        (0..WORDS).for_each(|word| unsafe {
            self.word(page, word).write_volatile(content.wrapping_mul(word as u64 | 1));
        });
    }

    /// Checks every byte of a page.
    fn check(&self, page: usize, times: u64) -> io::Result<()> {
        let content = content(self.seed, page, times);
        for word in 0..WORDS {
            // SAFETY: the page is of this mapping, and aligned.
            let found = unsafe { self.word(page, word).read_volatile() };
            if found != content.wrapping_mul(word as u64 | 1) {
                let seed = self.seed;
                let what = format!("segment {seed}, page {page}, word {word}, {times} times");
                return Err(io::Error::other(what));
            }
        }
        Ok(())
    }
}

fn content(seed: u64, page: usize, times: u64) -> u64 {
    if times % EMPTY_EVERY == EMPTY_EVERY - 1 {
        return 0;
    }
    (seed << 56 | (page as u64) << 24 | times) | 1 << 63
}

fn new_segment(length: usize) -> io::Result<i32> {
    // SAFETY: shmget(2) takes numbers alone.
    let made = unsafe { libc::shmget(libc::IPC_PRIVATE, length, libc::IPC_CREAT | 0o600) };
    check(made.into()).map(|made| made as i32)
}

fn remove_segment(segment: i32) -> io::Result<()> {
    // SAFETY: the command takes no structure.
    let removed = unsafe { libc::shmctl(segment, libc::IPC_RMID, std::ptr::null_mut()) };
    check(removed.into()).map(drop)
}

/// Has a child do something and end, and waits for that.
fn by_a_child(work: impl FnOnce()) -> io::Result<()> {
    // SAFETY: the child calls nothing that needs a lock of another thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            work();
            // SAFETY: the child has nothing to end.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            other => Err(io::Error::other(format!("a child ended with {other:?}"))),
        },
    }
}

fn share() -> io::Result<Held> {
    let anonymous = Shared::anonymous(PAGES, 1)?;
    let segment = Shared::attach(new_segment((PAGES - 1) * PAGE + ODD)?, PAGES, 2)?;
    for page in 0..PAGES {
        anonymous.write(page, 0);
        segment.write(page, 0);
    }
    let file = File::from(memfd_create("shared", MFdFlags::MFD_CLOEXEC)?);
    file.set_len((FEW * PAGE) as u64)?;
    let memfd = Shared::of_memfd(&file, FEW, 3)?;
    for writer in 1..WRITERS {
        // SAFETY: the child calls nothing that needs a lock of another thread.
        if let ForkResult::Child = unsafe { fork() }? {
            let error = write_always(writer, [anonymous, segment]);
            println!("WRONG: process {writer}: {error}");
            loop {
                thread::sleep(PAUSE);
            }
        }
    }
    let detached = new_segment(FEW * PAGE)?;
    let attached = Shared::attach(detached, FEW, 4)?;
    (0..FEW).for_each(|page| attached.write(page, 0));
    attached.detach()?;
    Ok(Box::new(thread::spawn(move || {
        let (mut round, mut own) = (0, Own::new(0, [anonymous, segment]));
        loop {
            let done = round_of_parent(round, anonymous, (&file, memfd), detached);
            match done.and_then(|()| own.go_on(PAGES)) {
                Ok(()) => println!("checked {round}"),
                Err(error) => println!("WRONG: {error}"),
            }
            round += 1;
        }
    })))
}

/// What only one process does: children that end at once, segments that come and go, writes that are none by the processor.
fn round_of_parent(
    round: u64,
    anonymous: Shared,
    (file, memfd): (&File, Shared),
    detached: i32,
) -> io::Result<()> {
    for page in PAGES - BRIEF..PAGES {
        anonymous.check(page, round)?;
    }
    by_a_child(|| (PAGES - BRIEF..PAGES).for_each(|page| anonymous.write(page, round + 1)))?;
    for page in 0..FEW {
        if round > 0 {
            memfd.check(page, round - 1)?;
        }
        let content = content(3, page, round);
        let words = (0..WORDS).map(|word| content.wrapping_mul(word as u64 | 1).to_ne_bytes());
        file.write_all_at(&words.collect::<Vec<_>>().concat(), (page * PAGE) as u64)?;
    }
    let attached = Shared::attach(detached, FEW, 4)?;
    (0..FEW).try_for_each(|page| attached.check(page, 0))?;
    attached.detach()?;
    let new = Shared::anonymous(FEW, 5)?;
    by_a_child(|| (0..FEW).for_each(|page| new.write(page, round)))?;
    let removed = new_segment(FEW * PAGE)?;
    let other = Shared::attach(removed, FEW, 6)?;
    (0..FEW).for_each(|page| other.write(page, round));
    thread::sleep(PAUSE * 10);
    (0..FEW).try_for_each(|page| new.check(page, round).and_then(|()| other.check(page, round)))?;
    new.unmap()?;
    other.detach()?;
    remove_segment(removed)
}

/// Pages that one process writes.
struct Own {
    writer: usize,
    shared: [Shared; 2],
    /// How often it has written each page of each.
    times: [Vec<u64>; 2],
    next: usize,
}

impl Own {
    fn new(writer: usize, shared: [Shared; 2]) -> Self {
        Self { writer, shared, times: [vec![0; PAGES], vec![0; PAGES]], next: writer }
    }

    /// Goes on with as many pages, all of which count. The first half of a segment is checked and not written.
    fn go_on(&mut self, pages: usize) -> io::Result<()> {
        for step in 0..pages / WRITERS {
            let page = self.next;
            self.next = if page + WRITERS < PAGES { page + WRITERS } else { self.writer };
            for (index, shared) in self.shared.iter().enumerate() {
                let times = &mut self.times[index][page];
                if index == 0 && page >= PAGES - BRIEF {
                    continue;
                }
                shared.check(page, *times)?;
                if page >= PAGES / 2 {
                    *times += 1;
                    shared.write(page, *times);
                }
            }
            if step % BURST == 0 {
                thread::sleep(PAUSE);
            }
        }
        Ok(())
    }
}

fn write_always(writer: usize, shared: [Shared; 2]) -> io::Error {
    let mut own = Own::new(writer, shared);
    loop {
        if let Err(error) = own.go_on(PAGES) {
            return error;
        }
    }
}
