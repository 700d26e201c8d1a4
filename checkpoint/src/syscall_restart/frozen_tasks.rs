//! Frozen tasks of this host that will resume here: their calls are set back by ptrace(2).

use std::fs;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::registers::{EINTR, Registers, is_known, takes_any};
use crate::procfs;

/// Code segment of 64-bit programs (`__USER_CS`).
const LONG_MODE: u64 = 0x33;

/// A task's registers could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot {action} thread {thread}, which was stopped in a system call; the call returns EINTR"
)]
pub struct Error {
    /// What was tried: "stop", "change".
    action: &'static str,
    /// The thread.
    thread: i32,
    /// Why.
    #[source]
    source: Errno,
}

/// What has been done to frozen tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// CRIU may have run its code in them: the kernel does not know any more which calls it was to resume.
    Dumped,
    /// Nothing: the kernel resumes the calls that it has noted, with the rest of their time.
    Frozen,
}

/// Sets the calls back in which the threads of frozen processes are; returns how many there were. The threads
/// stay frozen: one that is attached to by ptrace(2) stops inside the freezer
/// (`do_freezer_trap` in `kernel/signal.c`).
///
/// Blocks the calling thread for some 50 µs for each thread that is in a call. Threads that have ended are no
/// error.
///
/// # Errors
/// [`Error`] for the first thread that could not be set back; the others were.
pub fn rewind(processes: &[i32], since: Since) -> Result<usize, Error> {
    let mut rewound = 0;
    let mut outcome = Ok(());
    for thread in processes.iter().flat_map(|process| procfs::threads(*process)) {
        if !is_candidate(thread) {
            continue;
        }
        match rewind_one(thread, since) {
            Ok(changed) => rewound += usize::from(changed),
            Err(Error { source: Errno::ESRCH, .. }) => {}
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    outcome.map(|()| rewound)
}

/// Returns whether a thread is in a call that can be made again (proc_pid_syscall(5)), and no signal has
/// interrupted it.
fn is_candidate(thread: i32) -> bool {
    let directory = PathBuf::from(format!("/proc/{thread}"));
    let call = fs::read_to_string(directory.join("syscall")).unwrap_or_default();
    let number = call.split_ascii_whitespace().next().and_then(|number| number.parse().ok());
    if !number.is_some_and(is_known) {
        return false;
    }
    let status = fs::read_to_string(directory.join("status")).unwrap_or_default();
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or_default()
    };
    !takes_any(set("SigPnd:") | set("ShdPnd:"), set("SigBlk:"))
}

fn rewind_one(thread: i32, since: Since) -> Result<bool, Error> {
    let pid = Pid::from_raw(thread);
    let failed = |action| move |source| Error { action, thread, source };
    ptrace::seize(pid, ptrace::Options::empty()).map_err(failed("stop"))?;
    let outcome = stop(pid).and_then(|()| set_back(pid, since));
    let detached = ptrace::detach(pid, None);
    let changed = outcome.map_err(failed("change"))?;
    detached.map_err(failed("let go"))?;
    Ok(changed)
}

/// Sets the call back in which a thread is that this thread has stopped, if the call would return EINTR for that reason alone, or
/// could not be told from another one once the kernel has resumed it.
///
/// # Errors
/// The thread has ended.
pub(crate) fn rewind_stopped(pid: Pid) -> nix::Result<()> {
    let registers = registers(&ptrace::getregs(pid)?);
    let since = match registers.is_ambiguous_when_resumed() {
        true => Since::Dumped,
        false if registers.ax == EINTR => Since::Frozen,
        false => return Ok(()),
    };
    if is_candidate(pid.as_raw()) {
        set_back(pid, since)?;
    }
    Ok(())
}

fn stop(pid: Pid) -> nix::Result<()> {
    ptrace::interrupt(pid)?;
    loop {
        match waitpid(pid, Some(WaitPidFlag::__WALL)) {
            Err(Errno::EINTR) => {}
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => return Err(Errno::ESRCH),
            other => return other.map(drop),
        }
    }
}

fn set_back(pid: Pid, since: Since) -> nix::Result<bool> {
    let mut all = ptrace::getregs(pid)?;
    let before = registers(&all);
    if since == Since::Frozen && before.ax != EINTR {
        return Ok(false);
    }
    let Some(after) = before.rewound().filter(|_| all.cs == LONG_MODE) else { return Ok(false) };
    // No error in this register: the kernel sees nothing that it should resume.
    (all.rax, all.rip) = (after.ax, after.ip);
    ptrace::setregs(pid, all)?;
    Ok(true)
}

fn registers(all: &libc::user_regs_struct) -> Registers {
    Registers {
        ax: all.rax,
        orig_ax: all.orig_rax,
        ip: all.rip,
        di: all.rdi,
        si: all.rsi,
        dx: all.rdx,
    }
}
