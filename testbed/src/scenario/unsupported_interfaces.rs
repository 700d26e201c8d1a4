//! Kernel interfaces that CRIU does not support. Some need privileges.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::{Held, Setup, check, descriptor, held};

pub(super) const ALL: &[(&str, Setup)] = &[
    ("io-uring", io_uring),
    ("userfaultfd", userfaultfd),
    ("perf-event", perf_event),
    ("bpf", bpf),
    ("secret-memory", secret_memory),
    ("landlock", landlock),
    ("landlock-of-an-administrator", || restricted(ruleset()?)),
    ("landlock-of-a-thread", landlock_of_a_thread),
    ("landlock-again-and-again", landlock_again_and_again),
    ("no-new-privileges", || {
        nix::sys::prctl::set_no_new_privs()?;
        held(())
    }),
    ("landlock-ruleset", || held(ruleset()?)),
    ("seccomp-notify", seccomp_notify),
];

fn io_uring() -> io::Result<Held> {
    let mut parameters = [0_u8; 120];
    // SAFETY: the buffer has the size of struct io_uring_params (linux/io_uring.h).
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 8, parameters.as_mut_ptr()) };
    held(descriptor(fd)?)
}

fn userfaultfd() -> io::Result<Held> {
    // SAFETY: userfaultfd(2) takes a number; 1 is UFFD_USER_MODE_ONLY.
    held(descriptor(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | 1) })?)
}

/// Has a performance counter of this process.
fn perf_event() -> io::Result<Held> {
    let mut attributes = [0_u8; 64];
    attributes[0..4].copy_from_slice(&1_u32.to_ne_bytes()); // PERF_TYPE_SOFTWARE
    attributes[4..8].copy_from_slice(&64_u32.to_ne_bytes()); // size, PERF_ATTR_SIZE_VER0
    attributes[40..48].copy_from_slice(&0x60_u64.to_ne_bytes()); // exclude_kernel, exclude_hv
    // SAFETY: the buffer has the size that stands in it (linux/perf_event.h).
    let fd =
        unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), 0, -1, -1, 0_u64) };
    held(descriptor(fd)?)
}

/// Has a BPF array map.
fn bpf() -> io::Result<Held> {
    let mut attributes = [0_u32; 16];
    attributes[..4].copy_from_slice(&[2, 4, 4, 1]); // BPF_MAP_TYPE_ARRAY, key, value, entries
    // SAFETY: the buffer is as large as is said; command 0 is BPF_MAP_CREATE (bpf(2)).
    let fd = unsafe { libc::syscall(libc::SYS_bpf, 0, attributes.as_ptr(), 64) };
    held(descriptor(fd)?)
}

fn secret_memory() -> io::Result<Held> {
    // SAFETY: memfd_secret(2) takes a number.
    held(descriptor(unsafe { libc::syscall(libc::SYS_memfd_secret, 0) })?)
}

/// Creates a Landlock ruleset that handles writing to files.
fn ruleset() -> io::Result<OwnedFd> {
    let handled = 2_u64; // LANDLOCK_ACCESS_FS_WRITE_FILE
    // SAFETY: the attribute is the first field of struct landlock_ruleset_attr (linux/landlock.h), and its
    // size is given.
    let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const handled, 8, 0) };
    descriptor(fd)
}

/// Restricts this process to writing to no file.
fn landlock() -> io::Result<Held> {
    let ruleset = ruleset()?;
    nix::sys::prctl::set_no_new_privs()?;
    restricted(ruleset)
}

/// Has three threads, one of which has restricted itself.
fn landlock_of_a_thread() -> io::Result<Held> {
    let wait = || thread::sleep(Duration::from_secs(1 << 30));
    let (tell, told) = mpsc::channel();
    thread::spawn(wait);
    thread::spawn(move || {
        let _kept = landlock();
        let _ = tell.send(_kept.is_ok());
        wait();
    });
    match told.recv() {
        Ok(true) => held(()),
        _ => Err(io::Error::other("the thread could not restrict itself")),
    }
}

/// Has a thread restrict itself, and end, every few milliseconds.
fn landlock_again_and_again() -> io::Result<Held> {
    drop(ruleset()?);
    thread::spawn(|| {
        loop {
            let _ = thread::spawn(|| landlock().is_ok()).join();
            thread::sleep(Duration::from_millis(2));
        }
    });
    held(())
}

/// Restricts this process by a ruleset, which needs CAP_SYS_ADMIN or no_new_privs.
fn restricted(ruleset: OwnedFd) -> io::Result<Held> {
    // SAFETY: landlock_restrict_self(2) takes numbers alone.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })?;
    drop(ruleset);
    held(())
}

/// Has a seccomp notification descriptor for a system call that is never made.
fn seccomp_notify() -> io::Result<Held> {
    // Loads the number of the call. getcpu is notified, all others are allowed.
    let mut filter = [
        libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
        libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: libc::SYS_getcpu as u32 },
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_USER_NOTIF },
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    nix::sys::prctl::set_no_new_privs()?;
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: the program and its filter live until the call returns (seccomp(2)).
    let fd = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    held(descriptor(fd)?)
}
