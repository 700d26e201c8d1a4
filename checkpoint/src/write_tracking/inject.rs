//! A userfaultfd for the memory of another process. The kernel makes one for the memory of the calling process alone
//! (userfaultfd(2)), so the process itself has to make the call: its threads are stopped by ptrace(2) for some 100 µs, and
//! one makes the call, at an instruction of its vDSO. Nothing of its memory is changed. No thread sees the descriptor, and no
//! child gets it.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::pidfd::PidFd;
use crate::procfs;
use crate::userfault::Userfault;

/// Code segment of 64-bit programs (`__USER_CS`).
const LONG_MODE: u64 = 0x33;
/// The instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Only faults of the process itself (`UFFD_USER_MODE_ONLY`): what an unprivileged process may ask for. Noting writes
/// needs no fault to be answered.
const USER_MODE_ONLY: u64 = 1;
/// `PTRACE_GETSIGMASK` and `PTRACE_SETSIGMASK` (ptrace(2)).
const GET_MASK: libc::c_uint = 0x420a;
const SET_MASK: libc::c_uint = 0x420b;
/// `PTRACE_O_SUSPEND_SECCOMP`: the container's filter may forbid the call.
const SUSPEND_SECCOMP: libc::c_int = 1 << 21;

/// How long a thread may take to stop: one that waits for a device may not stop at all.
const STOP: Duration = Duration::from_millis(200);
/// Between two looks whether it has.
const LOOK_EVERY: Duration = Duration::from_micros(20);
/// Attempts to have a thread execute one instruction: signals may come first.
const STEPS: usize = 16;

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
    let task = Task::new(*first)?;
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | USER_MODE_ONLY;
    let number = task.call(instruction, libc::SYS_userfaultfd as u64, flags)?;
    let taken =
        i32::try_from(number).map_err(io::Error::other).and_then(|it| holder.descriptor(it));
    task.call(instruction, libc::SYS_close as u64, number)?;
    drop(task);
    for thread in threads {
        let _ = ptrace::detach(thread, None);
    }
    Ok(Userfault::new(taken?))
}

/// Stops all threads of a process.
fn stop_all(process: i32) -> io::Result<Vec<Pid>> {
    let mut stopped = Vec::new();
    loop {
        let known = stopped.len();
        for thread in procfs::threads(process) {
            let pid = Pid::from_raw(thread);
            if stopped.contains(&pid) {
                continue;
            }
            let options = ptrace::Options::from_bits_retain(SUSPEND_SECCOMP);
            let outcome = ptrace::seize(pid, options)
                .and_then(|()| ptrace::interrupt(pid))
                .and_then(|()| wait(pid));
            match outcome {
                Ok(()) => stopped.push(pid),
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

/// Returns the address of an instruction `syscall` in the vDSO of a process.
fn instruction(process: i32) -> io::Result<u64> {
    let lacking = || io::Error::other("it has no vDSO");
    let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
    if maps.is_empty() {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).ok_or_else(lacking)?;
    let range = line.split(' ').next().and_then(|range| range.split_once('-'));
    let (start, end) = range.ok_or_else(lacking)?;
    let number = |text| usize::from_str_radix(text, 16).map_err(io::Error::other);
    let (base, end) = (number(start)?, number(end)?);
    let mut code = vec![0; (end - base).min(1 << 16)];
    let len = code.len();
    let mut local = [io::IoSliceMut::new(&mut code)];
    let read = process_vm_readv(Pid::from_raw(process), &mut local, &[RemoteIoVec { base, len }])?;
    let found = code[..read].windows(SYSCALL.len()).position(|two| two == SYSCALL);
    Ok((base + found.ok_or_else(lacking)?) as u64)
}

/// A stopped task that makes calls. Dropped, it is stopped as it was before.
struct Task {
    pid: Pid,
    registers: libc::user_regs_struct,
    mask: u64,
}

impl Task {
    fn new(pid: Pid) -> io::Result<Self> {
        let registers = ptrace::getregs(pid)?;
        if registers.cs != LONG_MODE {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let task = Self { pid, registers, mask: signal_mask(pid)? };
        set_signal_mask(pid, u64::MAX)?;
        Ok(task)
    }

    /// Makes the task call the kernel.
    fn call(&self, instruction: u64, number: u64, argument: u64) -> io::Result<u64> {
        let mut registers = self.registers;
        registers.rip = instruction;
        registers.rax = number;
        registers.rdi = argument;
        // It is in no call that the kernel would resume.
        registers.orig_rax = u64::MAX;
        ptrace::setregs(self.pid, registers)?;
        for _ in 0..STEPS {
            ptrace::step(self.pid, None)?;
            wait(self.pid)?;
            let after = ptrace::getregs(self.pid)?;
            // A stop signal may have come before the instruction.
            if after.rip == instruction {
                continue;
            }
            return match i64::from_ne_bytes(after.rax.to_ne_bytes()) {
                error @ -4095..=-1 => Err(io::Error::from_raw_os_error(-(error as i32))),
                _ => Ok(after.rax),
            };
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let restored = ptrace::setregs(self.pid, self.registers);
        if let Err(error) = restored.and_then(|()| set_signal_mask(self.pid, self.mask)) {
            tracing::warn!("thread {} could not be set back: {error}", self.pid);
        }
    }
}

/// Waits until a thread has stopped.
fn wait(pid: Pid) -> nix::Result<()> {
    let give_up = Instant::now() + STOP;
    let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
    loop {
        match waitpid(pid, Some(flags)) {
            Ok(WaitStatus::StillAlive) if Instant::now() >= give_up => {
                return Err(Errno::ETIMEDOUT);
            }
            Ok(WaitStatus::StillAlive) => thread::sleep(LOOK_EVERY),
            Err(Errno::EINTR) => {}
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => return Err(Errno::ESRCH),
            other => return other.map(drop),
        }
    }
}

/// Returns the signals that a stopped task blocks.
fn signal_mask(pid: Pid) -> nix::Result<u64> {
    let mut mask = 0_u64;
    // SAFETY: the kernel writes eight bytes, and is told that there is room for that.
    let result = unsafe { libc::ptrace(GET_MASK, pid.as_raw(), size_of::<u64>(), &raw mut mask) };
    Errno::result(result).map(|_| mask)
}

fn set_signal_mask(pid: Pid, mask: u64) -> nix::Result<()> {
    // SAFETY: the kernel reads eight bytes, and is told that there are so many.
    let result = unsafe { libc::ptrace(SET_MASK, pid.as_raw(), size_of::<u64>(), &raw const mask) };
    Errno::result(result).map(drop)
}
