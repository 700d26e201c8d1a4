//! A userfaultfd for the memory of another process. The kernel makes one for the memory of the calling process alone
//! (userfaultfd(2)), so the process itself has to make the call: its threads are stopped for some 100 µs, and one makes the call
//! ([`crate::injected_call`]). No thread sees the descriptor, and no child gets it.

use std::io;
use std::thread;

use nix::errno::Errno;

use crate::injected_call::{Caller, StoppedThread, instruction};
use crate::pidfd::PidFd;
use crate::procfs;
use crate::userfault::Userfault;

/// Only faults of the process itself (`UFFD_USER_MODE_ONLY`): what an unprivileged process may ask for. Noting writes
/// needs no fault to be answered.
const USER_MODE_ONLY: u64 = 1;

/// Returns a userfaultfd for the memory of a process. Only on x86-64, for 64-bit processes. Blocks.
///
/// # Errors
/// The process cannot be stopped, is traced, or has no vDSO.
pub(super) fn userfault(process: i32) -> io::Result<Userfault> {
    // When the thread that traces others ends, the kernel lets them go (ptrace(2)), whatever has happened.
    let tracer = thread::Builder::new().name("netmig-inject".to_owned());
    let made = tracer.spawn(move || make(process))?.join();
    let userfault = made.map_err(|_| io::Error::other("the tracer has panicked"))??;
    userfault.note_writes()?;
    Ok(userfault)
}

fn make(process: i32) -> io::Result<Userfault> {
    let instruction = instruction(process)?;
    let holder = PidFd::open(process)?;
    let threads = stop_all(process)?;
    // The first one may have ended.
    let first = threads.first().ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    let caller = Caller::new(first, instruction)?;
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | USER_MODE_ONLY;
    let number = caller.call(libc::SYS_userfaultfd, [flags, 0, 0, 0, 0])?;
    let taken =
        i32::try_from(number).map_err(io::Error::other).and_then(|it| holder.descriptor(it));
    caller.call(libc::SYS_close, [number, 0, 0, 0, 0])?;
    drop(caller);
    drop(threads);
    Ok(Userfault::new(taken?))
}

/// Stops all threads of a process.
fn stop_all(process: i32) -> io::Result<Vec<StoppedThread>> {
    let mut stopped: Vec<StoppedThread> = Vec::new();
    loop {
        let known = stopped.len();
        for thread in procfs::threads(process) {
            if stopped.iter().any(|one| one.number() == thread) {
                continue;
            }
            match StoppedThread::stop(thread) {
                Ok(thread) => stopped.push(thread),
                // It has ended meanwhile.
                Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        // Those that run may have made others.
        if stopped.len() == known {
            return Ok(stopped);
        }
    }
}
