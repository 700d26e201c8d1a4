//! Calls on a userfaultfd (`include/uapi/linux/userfaultfd.h`, userfaultfd(2), ioctl_userfaultfd(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use crate::images::PAGE;

/// `UFFD_API`.
const API: u64 = 0xaa;
/// What CRIU asks for when it restores lazily: `UFFD_FEATURE_EVENT_FORK`, `_REMAP`, `_REMOVE`, `_UNMAP`.
const FEATURES: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;
/// `UFFD_FEATURE_WP_ASYNC` (Linux 6.7) and `UFFD_FEATURE_WP_HUGETLBFS_SHMEM`.
const TRACKING: u64 = 1 << 15 | 1 << 12;
/// `UFFDIO_REGISTER_MODE_WP`.
const REGISTER_WRITES: u64 = 1 << 1;
/// `UFFD_EVENT_PAGEFAULT` and the others.
const PAGE_FAULT: u8 = 0x12;
const FORK: u8 = 0x13;
const REMAP: u8 = 0x14;
const REMOVE: u8 = 0x15;
const UNMAP: u8 = 0x16;
/// The lowest address that a process can have (`vm.mmap_min_addr`, at most), and how many bits addresses have, depending
/// on the processor.
const FIRST: u64 = 64 << 10;
const ADDRESS_BITS: std::ops::RangeInclusive<u32> = 36..=57;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    length: u64,
}

#[repr(C)]
struct CopyArgument {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct ZeroArgument {
    range: Range,
    mode: u64,
    zeroed: i64,
}

#[repr(C)]
struct RegisterArgument {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// An event as the kernel writes it (`struct uffd_msg`); the arguments depend on the kind. All zeros are no event.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RawEvent {
    pub(crate) kind: u8,
    _reserved: [u8; 7],
    pub(crate) arguments: [u64; 3],
}

nix::ioctl_readwrite!(userfault_api, 0xaa, 0x3f, Api);
nix::ioctl_readwrite!(userfault_register, 0xaa, 0x00, RegisterArgument);
nix::ioctl_read!(userfault_wake, 0xaa, 0x02, Range);
nix::ioctl_readwrite!(userfault_copy, 0xaa, 0x03, CopyArgument);
nix::ioctl_readwrite!(userfault_zero, 0xaa, 0x04, ZeroArgument);

/// What a process does with memory that it may lack.
#[derive(Debug)]
pub(crate) enum Event {
    /// It waits for a page.
    PageFault { address: u64 },
    /// It has a child, whose memory has a descriptor of its own. The kernel has opened it in the process that has read the event.
    Fork { child: RawFd },
    /// It gives pages other addresses.
    Remap { from: u64, to: u64, length: u64 },
    /// It empties or unmaps pages.
    Remove { start: u64, end: u64 },
}

/// What became of pages that were to be copied into a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copied {
    /// So many bytes were copied, which may be fewer than wanted.
    Bytes(u64),
    /// The first page is there already.
    Present,
    /// The range is not within one mapping that may lack pages.
    Unmapped,
    /// The process changes its mappings: there is an event to read first. Or its cgroup has no memory left now.
    Later,
    /// The process has ended.
    Gone,
}

/// The descriptor of a process whose memory is not whole yet.
#[derive(Debug)]
pub(crate) struct Userfault(OwnedFd);

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns whether the kernel has what a lazy restore needs.
pub(crate) fn is_supported() -> bool {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: userfaultfd(2) takes a number alone.
    let descriptor = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let Some(descriptor) = i32::try_from(descriptor).ok().filter(|number| *number >= 0) else {
        return false;
    };
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let mut api = Api { api: API, features: FEATURES, ioctls: 0 };
    // SAFETY: the structure is the one of this call, and lives until it returns.
    unsafe { userfault_api(descriptor.as_raw_fd(), &raw mut api) }.is_ok()
}

impl Userfault {
    /// Takes a descriptor that CRIU has made.
    pub(crate) fn new(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Chooses the mode in which the kernel notes writes by itself and nothing has to answer: a write to a protected page
    /// takes the protection off (`UFFD_FEATURE_WP_ASYNC`).
    pub(crate) fn note_writes(&self) -> io::Result<()> {
        let mut api = Api { api: API, features: TRACKING, ioctls: 0 };
        // SAFETY: the structure is the one of this call, and lives until it returns.
        unsafe { userfault_api(self.0.as_raw_fd(), &raw mut api) }.map(drop).map_err(Into::into)
    }

    /// Has the kernel note writes to the pages of a mapping. A mapping of which it does already may be named again.
    pub(crate) fn register_writes(&self, start: u64, end: u64) -> nix::Result<()> {
        let range = Range { start, length: end - start };
        let mut argument = RegisterArgument { range, mode: REGISTER_WRITES, ioctls: 0 };
        // SAFETY: the structure is the one of this call, and lives until it returns.
        unsafe { userfault_register(self.0.as_raw_fd(), &raw mut argument) }.map(drop)
    }

    /// Takes a descriptor by its number.
    ///
    /// # Safety
    /// It is one of this module's, and nothing else closes it.
    pub(crate) unsafe fn of_number(number: RawFd) -> Self {
        // SAFETY: the caller knows that the descriptor is open and ours.
        Self(unsafe { OwnedFd::from_raw_fd(number) })
    }

    /// Reads the next event into `raw`; returns `false` if there is none now.
    pub(crate) fn read_event(&self, raw: &mut RawEvent) -> io::Result<bool> {
        let size = size_of::<RawEvent>();
        let into = std::ptr::from_mut(raw).cast::<libc::c_void>();
        // SAFETY: the structure has the size that is given, and any bytes are a value of it.
        let read = unsafe { libc::read(self.0.as_raw_fd(), into, size) };
        if read < 0 {
            return match Errno::last() {
                Errno::EAGAIN | Errno::EINTR => Ok(false),
                errno => Err(errno.into()),
            };
        }
        match usize::try_from(read) == Ok(size) {
            true => Ok(true),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Copies `pages`, which are whole ones, into the process and wakes whatever waits for them.
    pub(crate) fn copy(&self, to: u64, pages: &[u8]) -> io::Result<Copied> {
        let mut argument = CopyArgument {
            to,
            from: pages.as_ptr() as u64,
            length: pages.len() as u64,
            mode: 0,
            copied: 0,
        };
        // SAFETY: the kernel reads `pages`, which is borrowed, and writes nothing but the structure.
        let done = unsafe { userfault_copy(self.0.as_raw_fd(), &raw mut argument) };
        copied(done, argument.copied, argument.length)
    }

    /// Gives the process an empty page, and wakes whatever waits for it.
    pub(crate) fn zero(&self, at: u64) -> io::Result<Copied> {
        let range = Range { start: at, length: PAGE };
        let mut argument = ZeroArgument { range, mode: 0, zeroed: 0 };
        // SAFETY: the structure is the one of this call, and lives until it returns.
        let done = unsafe { userfault_zero(self.0.as_raw_fd(), &raw mut argument) };
        copied(done, argument.zeroed, PAGE)
    }

    /// Wakes whatever waits for a page that is there.
    pub(crate) fn wake(&self, at: u64) {
        let mut range = Range { start: at, length: PAGE };
        // SAFETY: the structure is the one of this call, and lives until it returns. A process that has ended
        // needs no waking.
        let _ = unsafe { userfault_wake(self.0.as_raw_fd(), &raw mut range) };
    }

    /// Wakes whatever waits for a page, so that it asks again.
    pub(crate) fn wake_all(&self) {
        for bits in ADDRESS_BITS.rev() {
            let mut range = Range { start: FIRST, length: (1 << bits) - PAGE - FIRST };
            // SAFETY: as above.
            let woken = unsafe { userfault_wake(self.0.as_raw_fd(), &raw mut range) };
            // The kernel refuses a range that is longer than the addresses of a process.
            if woken != Err(Errno::EINVAL) {
                return;
            }
        }
    }
}

impl RawEvent {
    /// Returns what the kernel says.
    pub(crate) fn decode(&self) -> io::Result<Event> {
        let [first, second, third] = self.arguments;
        Ok(match self.kind {
            PAGE_FAULT => Event::PageFault { address: second & !(PAGE - 1) },
            FORK => {
                // `arg.fork.ufd`, a number of four bytes in the host's order.
                let [a, b, c, d, ..] = first.to_ne_bytes();
                Event::Fork { child: RawFd::from_ne_bytes([a, b, c, d]) }
            }
            REMAP => Event::Remap { from: first, to: second, length: third },
            REMOVE | UNMAP => Event::Remove { start: first, end: second },
            _ => return Err(io::ErrorKind::InvalidData.into()),
        })
    }
}

/// Judges the result of a copy (`mm/userfaultfd.c`).
fn copied(done: nix::Result<i32>, copied: i64, wanted: u64) -> io::Result<Copied> {
    let errno = match done {
        Ok(_) => return Ok(Copied::Bytes(wanted)),
        Err(errno) => errno,
    };
    match (u64::try_from(copied), errno) {
        (Ok(bytes), _) if bytes > 0 => Ok(Copied::Bytes(bytes)),
        (_, Errno::EEXIST) => Ok(Copied::Present),
        (_, Errno::ENOENT) => Ok(Copied::Unmapped),
        (_, Errno::EAGAIN | Errno::ENOMEM | Errno::EINTR) => Ok(Copied::Later),
        (_, Errno::ESRCH | Errno::ENOSPC) => Ok(Copied::Gone),
        (_, errno) => Err(errno.into()),
    }
}
