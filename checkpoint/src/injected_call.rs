//! System calls that a thread of another process makes for us, with its own credentials and in its own memory. The thread is
//! stopped by ptrace(2) and executes one instruction of its vDSO. Nothing of its memory is changed. A call in which it slept
//! goes on: the kernel resumes it, or it is made again ([`crate::syscall_restart`]).
//!
//! Only on x86-64, for 64-bit programs.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::syscall_restart;

/// Code segment of 64-bit programs (`__USER_CS`).
const LONG_MODE: u64 = 0x33;
/// The instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// `PTRACE_GETSIGMASK` and `PTRACE_SETSIGMASK` (ptrace(2)).
const GET_MASK: libc::c_uint = 0x420a;
const SET_MASK: libc::c_uint = 0x420b;
/// `PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG` (linux/ptrace.h, since Linux 6.4).
const GET_DISPATCH: libc::c_uint = 0x4211;
/// `PTRACE_O_SUSPEND_SECCOMP`: the container's filter may forbid the call.
const SUSPEND_SECCOMP: libc::c_int = 1 << 21;

/// How long a thread may take to stop: one that waits for a device may not stop at all.
const STOP: Duration = Duration::from_millis(200);
/// Between two looks whether it has.
const LOOK_EVERY: Duration = Duration::from_micros(20);
/// Attempts to have a thread execute one instruction: signals may come first.
const STEPS: usize = 16;

/// A thread that is stopped. Dropped, it goes on as if it had not been stopped. Only the thread that has stopped it may use this;
/// when that ends, the kernel lets the stopped one go (ptrace(2)).
#[derive(Debug)]
pub(crate) struct StoppedThread {
    pid: Pid,
}

impl StoppedThread {
    /// Stops a thread. Blocks for some 50 µs, or until it has left the kernel.
    ///
    /// # Errors
    /// ESRCH if it has ended, EPERM if another process traces it, ETIMEDOUT if it does not stop: it is let go when the calling
    /// thread ends.
    pub(crate) fn stop(thread: i32) -> nix::Result<Self> {
        let pid = Pid::from_raw(thread);
        ptrace::seize(pid, ptrace::Options::from_bits_retain(SUSPEND_SECCOMP))?;
        ptrace::interrupt(pid)?;
        wait(pid)?;
        Ok(Self { pid })
    }

    /// Returns the thread's number.
    pub(crate) fn number(&self) -> i32 {
        self.pid.as_raw()
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        if let Err(error) = syscall_restart::rewind_stopped(self.pid) {
            tracing::debug!("thread {} may see EINTR: {error}", self.pid);
        }
        // It has been killed, if this fails.
        let _ = ptrace::detach(self.pid, None);
    }
}

/// Returns the address of an instruction `syscall` in the vDSO of a process.
///
/// # Errors
/// It has no vDSO, or has ended.
pub(crate) fn instruction(process: i32) -> io::Result<u64> {
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
    let mut code = vec![0; end.saturating_sub(base).min(1 << 16)];
    let len = code.len();
    let mut local = [io::IoSliceMut::new(&mut code)];
    let read = process_vm_readv(Pid::from_raw(process), &mut local, &[RemoteIoVec { base, len }])?;
    let found = code[..read].windows(SYSCALL.len()).position(|two| two == SYSCALL);
    Ok((base + found.ok_or_else(lacking)?) as u64)
}

/// A stopped thread that makes calls. Dropped, its registers and its signal mask are as they were before.
pub(crate) struct Caller<'a> {
    thread: &'a StoppedThread,
    instruction: u64,
    registers: libc::user_regs_struct,
    mask: u64,
}

impl<'a> Caller<'a> {
    /// Takes over a stopped thread. `instruction` is that of its process.
    ///
    /// # Errors
    /// It does not run a 64-bit program, or hands its system calls to a handler of its own.
    pub(crate) fn new(thread: &'a StoppedThread, instruction: u64) -> io::Result<Self> {
        let pid = thread.pid;
        let registers = ptrace::getregs(pid)?;
        if registers.cs != LONG_MODE || dispatches_calls(pid) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let caller = Self { thread, instruction, registers, mask: signal_mask(pid)? };
        set_signal_mask(pid, u64::MAX)?;
        Ok(caller)
    }

    /// Makes the thread call the kernel.
    ///
    /// # Errors
    /// That of the call, or the thread has ended.
    pub(crate) fn call(&self, number: libc::c_long, arguments: [u64; 5]) -> io::Result<u64> {
        let pid = self.thread.pid;
        let mut registers = self.registers;
        registers.rip = self.instruction;
        registers.rax = number as u64;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8] = arguments;
        // It is in no call that the kernel would resume.
        registers.orig_rax = u64::MAX;
        ptrace::setregs(pid, registers)?;
        for _ in 0..STEPS {
            ptrace::step(pid, None)?;
            wait(pid)?;
            let after = ptrace::getregs(pid)?;
            // A stop signal may have come before the instruction.
            if after.rip == self.instruction {
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

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        let pid = self.thread.pid;
        let restored = ptrace::setregs(pid, self.registers);
        if let Err(error) = restored.and_then(|()| set_signal_mask(pid, self.mask)) {
            tracing::warn!("thread {pid} could not be set back: {error}");
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

/// Returns whether a stopped thread has its system calls handed to a handler of its own (prctl(2),
/// `PR_SET_SYSCALL_USER_DISPATCH`): it would get SIGSYS for ours.
fn dispatches_calls(pid: Pid) -> bool {
    // `struct ptrace_sud_config`: mode, selector, offset, length.
    let mut config = [0_u64; 4];
    // SAFETY: the kernel writes 32 bytes, and is told that there is room for that.
    let result = unsafe {
        libc::ptrace(GET_DISPATCH, pid.as_raw(), size_of_val(&config), config.as_mut_ptr())
    };
    result == 0 && config[0] != 0
}

/// Returns the signals that a stopped thread blocks.
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
