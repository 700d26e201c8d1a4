//! Descriptors that watch, queue or notify.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{Held, Setup, check, descriptor, held};

pub(super) const ALL: &[(&str, Setup)] = &[
    ("inotify-etc", || watch("/etc")),
    ("inotify-overlay", || watch("/srv/watched")),
    ("inotify-tmpfs", || watch("/tmp/watched")),
    ("inotify-shm", || watch("/dev/shm")),
    ("inotify-proc", || watch("/proc/sys")),
    ("inotify-empty", || held(Inotify::init(InitFlags::empty())?)),
    ("fanotify-etc", || fanotify("/etc")),
    ("fanotify-overlay", || fanotify("/srv/watched")),
    ("message-queue", message_queue),
    ("message-queue-closed", || message_queue().map(drop).and_then(held)),
    ("epoll-closed", epoll_closed),
    ("epoll-of-a-child", epoll_of_a_child),
    ("epoll-nested", epoll_nested),
    ("pidfd", pidfd),
    ("pidfd-dead", pidfd_dead),
    ("memfd", memfd),
    ("timerfd", timerfd),
];

/// Watches a directory, and prints the names of files that are created in it.
fn watch(path: &str) -> io::Result<Held> {
    std::fs::create_dir_all(path)?;
    let inotify = Inotify::init(InitFlags::empty())?;
    inotify.add_watch(path, AddWatchFlags::IN_CREATE)?;
    let tell = move || {
        while let Ok(events) = inotify.read_events() {
            let names = events.into_iter().filter_map(|event| event.name);
            names.for_each(|name| println!("made {}", name.display()));
        }
    };
    std::thread::Builder::new().spawn(tell)?;
    held(())
}

/// Watches a directory by fanotify, as far as that needs no privilege.
fn fanotify(path: &str) -> io::Result<Held> {
    std::fs::create_dir_all(path)?;
    let path = std::ffi::CString::new(path)?;
    let flags = libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_FID;
    // SAFETY: fanotify_init(2) takes numbers alone.
    let fd = descriptor(i64::from(unsafe { libc::fanotify_init(flags, 0) }))?;
    let (mark, mask) = (libc::FAN_MARK_ADD, libc::FAN_MODIFY | libc::FAN_OPEN);
    // SAFETY: the path is a string that ends in zero and lives until the call returns.
    let added =
        unsafe { libc::fanotify_mark(fd.as_raw_fd(), mark, mask, libc::AT_FDCWD, path.as_ptr()) };
    check(i64::from(added))?;
    held(fd)
}

/// Opens a POSIX message queue with a message in it.
fn message_queue() -> io::Result<Held> {
    let flags = libc::O_RDWR | libc::O_CREAT;
    // SAFETY: the name is a string that ends in zero; no attributes are given.
    let fd = unsafe {
        libc::mq_open(c"/queue".as_ptr(), flags, 0o600, std::ptr::null::<libc::mq_attr>())
    };
    let fd = descriptor(i64::from(fd))?;
    // SAFETY: one byte is read from a string that lives on.
    check(i64::from(unsafe { libc::mq_send(fd.as_raw_fd(), c"x".as_ptr(), 1, 0) }))?;
    held(fd)
}

/// Has an epoll entry whose descriptor was closed while a duplicate is open.
fn epoll_closed() -> io::Result<Held> {
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    epoll.add(&ours, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
    let duplicate = ours.try_clone()?;
    drop(ours);
    held((epoll, duplicate, theirs))
}

/// Has an epoll entry of a file that only a child has open.
fn epoll_of_a_child() -> io::Result<Held> {
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    epoll.add(&ours, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
    let mut command = std::process::Command::new("/bin/sleep");
    let child = command.arg("100000").stdin(std::os::fd::OwnedFd::from(ours)).spawn()?;
    held((epoll, child, theirs))
}

/// Has an epoll entry of another epoll instance.
fn epoll_nested() -> io::Result<Held> {
    let (outer, inner) =
        (Epoll::new(EpollCreateFlags::empty())?, Epoll::new(EpollCreateFlags::empty())?);
    outer.add(&inner.0, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
    held((outer, inner))
}

fn pidfd() -> io::Result<Held> {
    let child = std::process::Command::new("/bin/sleep").arg("100000").spawn()?;
    // SAFETY: pidfd_open(2) takes numbers alone.
    let fd = descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) })?;
    held((child, fd))
}

/// Has a pidfd of a child that was waited for.
fn pidfd_dead() -> io::Result<Held> {
    let mut child = std::process::Command::new("/bin/sleep").arg("0.2").spawn()?;
    // SAFETY: pidfd_open(2) takes numbers alone.
    let fd = descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) })?;
    child.wait()?;
    held(fd)
}

fn memfd() -> io::Result<Held> {
    // SAFETY: the name is a string that ends in zero.
    let fd = descriptor(i64::from(unsafe { libc::memfd_create(c"note".as_ptr(), 0) }))?;
    let mut file = File::from(fd);
    io::Write::write_all(&mut file, b"kept")?;
    held(file)
}

fn timerfd() -> io::Result<Held> {
    // SAFETY: timerfd_create(2) takes numbers alone.
    held(descriptor(i64::from(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, 0) }))?)
}
