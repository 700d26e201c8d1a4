//! The holder: a second process with the descriptors of the server, which becomes the server if that one is killed.
//!
//! Both have one table of descriptors (`CLONE_FILES` of clone(2)), so that whatever the kernel opens for the server is the holder's at
//! once. The holder begins as a copy of the server's memory. What has happened since is in the [log](super::event_log).

use std::fs::OpenOptions;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::{Signal, kill as signal};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, setpgid};

use super::{HOLD, SERVE};
use crate::cgroup::Cgroup;
use crate::pidfd::PidFd;
use crate::procfs;

/// In place of the count of servers: there is to be no other.
const ENDED: u64 = u64::MAX;
/// How often a holder takes the server's place. Something is wrong with a container that has needed so many.
const MOST: u64 = 64;
/// How long killed tasks may take to be gone.
const KILLED: Duration = Duration::from_secs(10);

/// Which of several processes is the server.
#[derive(Debug)]
pub(super) struct Succession {
    /// The number of the server, shared by all of them, or [`ENDED`].
    count: &'static AtomicU64,
    /// The number of the server that this process knows.
    known: u64,
    /// That server, once it has had a holder.
    server: Option<PidFd>,
}

/// Which of the two processes this is.
#[derive(Debug)]
pub(super) enum Side {
    /// The server.
    Server(Holder),
    /// The holder, when the server was killed: it is the server now.
    Successor,
}

impl Succession {
    /// Makes this process the first server.
    pub(super) fn new() -> io::Result<Self> {
        let size = NonZeroUsize::new(size_of::<AtomicU64>()).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the place, so it lies over nothing else.
        let memory = unsafe { mmap_anonymous(None, size, protection, MapFlags::MAP_SHARED) }?;
        // SAFETY: the mapping is aligned, long enough, zero, and stays until the process ends.
        let count = unsafe { AtomicU64::from_ptr(memory.cast().as_ptr()) };
        Ok(Self { count, known: 0, server: None })
    }

    /// Starts a holder. Returns on both sides: in the holder when it has to take the server's place.
    ///
    /// # Errors
    /// There is no holder.
    pub(super) fn start_holder(&mut self) -> io::Result<Side> {
        let server = match self.server.take() {
            Some(server) => server,
            None => PidFd::open(process::id() as i32)?,
        };
        let flags = libc::CLONE_FILES | libc::SIGCHLD;
        // SAFETY: without memory that both share, this is fork(2). No other thread has a lock, for there is none.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        let error = io::Error::last_os_error();
        if pid == 0 {
            self.wait_for_turn(&server);
            return Ok(Side::Successor);
        }
        self.server = Some(server);
        let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 0) else { return Err(error) };
        match PidFd::open(pid) {
            Ok(descriptor) => Ok(Side::Server(Holder { pid, descriptor })),
            Err(error) => {
                // It would take this process's place later, and know nothing of what happens from now on.
                end(pid);
                Err(error)
            }
        }
    }

    /// Returns whether servers were killed again and again.
    pub(super) fn is_exhausted(&self) -> bool {
        self.known >= MOST
    }

    /// Ends the succession: nothing has to be served any more. A holder ends when this process does.
    pub(super) fn end(&self) {
        self.count.store(ENDED, Ordering::SeqCst);
    }

    /// Waits until the server has ended. Returns if it was killed, and ends this process otherwise. Nothing may be dropped
    /// here: descriptors are the server's, too.
    fn wait_for_turn(&mut self, server: &PidFd) {
        // Whoever kills the server's group does not mean its holder.
        let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
        rename(SERVE, HOLD);
        loop {
            let mut side = [PollFd::new(server.as_fd(), PollFlags::POLLIN)];
            match poll(&mut side, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Err(_) => process::exit(1),
                Ok(_) => break,
            }
        }
        let next = self.known + 1;
        let claimed =
            self.count.compare_exchange(self.known, next, Ordering::SeqCst, Ordering::SeqCst);
        if claimed.is_err() {
            process::exit(0);
        }
        rename(HOLD, SERVE);
        self.known = next;
    }
}

/// The holder, seen from the server.
#[derive(Debug)]
pub(super) struct Holder {
    pid: i32,
    descriptor: PidFd,
}

impl AsFd for Holder {
    /// Returns a descriptor that can be read from when the holder has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Holder {
    /// Ends it, if it has not ended.
    pub(super) fn end(self) {
        end(self.pid);
    }
}

/// Ends a child of this process. Nobody else has its number, for it was not waited for.
fn end(child: i32) {
    let child = Pid::from_raw(child);
    let _ = signal(child, Signal::SIGKILL);
    while waitpid(child, None) == Err(Errno::EINTR) {}
}

/// Writes another first argument over that of this process, for those who look (`/proc/PID/cmdline`). Both have one length.
fn rename(from: &str, to: &str) {
    let Some((start, end)) = procfs::arguments(process::id() as i32) else { return };
    let Ok(memory) = OpenOptions::new().read(true).write(true).open("/proc/self/mem") else {
        return;
    };
    let mut arguments = vec![0; usize::try_from(end - start).unwrap_or_default().min(4096)];
    let read = memory.read_at(&mut arguments, start).unwrap_or_default();
    let program = arguments[..read].iter().position(|byte| *byte == 0).unwrap_or(read);
    let first = arguments[..read].get(program + 1..).unwrap_or_default();
    if from.len() == to.len() && first.starts_with(from.as_bytes()) {
        let _ = memory.write_at(to.as_bytes(), start + program as u64 + 1);
    }
}

/// Kills a container, named by its first process and its ID. One that has ended is left alone.
pub(super) fn kill(pid: i32, id: &str) -> io::Result<()> {
    if !Path::new("/proc").join(pid.to_string()).exists() {
        return Ok(());
    }
    Cgroup::of_pid(pid, id)
        .and_then(|cgroup| cgroup.kill(Instant::now() + KILLED))
        .map_err(io::Error::other)
}
