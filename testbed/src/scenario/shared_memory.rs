//! Processes that share memory without a file.

use std::io;
use std::num::NonZeroUsize;
use std::thread;
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

use super::{Held, Setup};

pub(super) const ALL: &[(&str, Setup)] = &[("shared-memory", share)];

const LENGTH: usize = 1 << 20;

fn share() -> io::Result<Held> {
    let length = NonZeroUsize::new(LENGTH).ok_or(io::ErrorKind::InvalidInput)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: the kernel chooses the place, so it lies over nothing else.
    let memory = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_SHARED) }?;
    let address = memory.as_ptr() as usize;
    Ok(Box::new(thread::spawn(move || {
        let mut number = 0_u8;
        loop {
            number = number.wrapping_add(1);
            // SAFETY: the mapping lives as long as the process, and this thread alone uses it.
            unsafe { (address as *mut u8).write_volatile(number) };
            thread::sleep(Duration::from_millis(10));
        }
    })))
}
