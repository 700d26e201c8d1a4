//! A userfaultfd for the memory of another process. The kernel makes one for the memory of the calling process alone
//! (userfaultfd(2)), so the process itself has to make the call: stopped by ptrace(2) for some 100 µs, at an instruction
//! of its vDSO. Nothing of its memory is changed, and it never sees the descriptor.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::pidfd::PidFd;
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

/// Returns a userfaultfd for the memory of a process. Only on x86-64, for 64-bit processes.
///
/// # Errors
/// The process cannot be stopped, is traced, or has no vDSO.
pub(super) fn userfault(process: i32) -> io::Result<Userfault> {
    let instruction = instruction(process)?;
    let holder = PidFd::open(process)?;
    let task = Task::stop(process)?;
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | USER_MODE_ONLY;
    let number = task.call(instruction, libc::SYS_userfaultfd as u64, flags)?;
    let taken =
        i32::try_from(number).map_err(io::Error::other).and_then(|it| holder.descriptor(it));
    task.call(instruction, libc::SYS_close as u64, number)?;
    let userfault = Userfault::new(taken?);
    task.let_go()?;
    userfault.note_writes()?;
    Ok(userfault)
}

/// Returns the address of an instruction `syscall` in the vDSO of a process.
fn instruction(process: i32) -> io::Result<u64> {
    let lacking = || io::Error::other("it has no vDSO");
    let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
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

/// A stopped task. Dropped, it goes on as it was.
struct Task {
    pid: Pid,
    registers: libc::user_regs_struct,
    mask: u64,
    is_stopped: bool,
}

impl Task {
    fn stop(process: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(process);
        let options = ptrace::Options::from_bits_retain(SUSPEND_SECCOMP);
        ptrace::seize(pid, options)?;
        let stopped = ptrace::interrupt(pid)
            .and_then(|()| wait(pid))
            .and_then(|()| ptrace::getregs(pid))
            .and_then(|registers| Ok((registers, signal_mask(pid)?)));
        match stopped {
            Ok((registers, mask)) if registers.cs == LONG_MODE => {
                let task = Self { pid, registers, mask, is_stopped: true };
                set_signal_mask(pid, u64::MAX)?;
                Ok(task)
            }
            other => {
                let _ = ptrace::detach(pid, None);
                Err(other.err().map_or_else(|| io::ErrorKind::Unsupported.into(), Into::into))
            }
        }
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
        ptrace::step(self.pid, None)?;
        wait(self.pid)?;
        let result = ptrace::getregs(self.pid)?.rax;
        match i64::from_ne_bytes(result.to_ne_bytes()) {
            error @ -4095..=-1 => Err(io::Error::from_raw_os_error(-(error as i32))),
            _ => Ok(result),
        }
    }

    fn let_go(mut self) -> io::Result<()> {
        self.restore()
    }

    fn restore(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.is_stopped) {
            return Ok(());
        }
        let restored = ptrace::setregs(self.pid, self.registers);
        let masked = set_signal_mask(self.pid, self.mask);
        ptrace::detach(self.pid, None)?;
        restored?;
        Ok(masked?)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            tracing::warn!("process {} could not be let go as it was: {error}", self.pid);
        }
    }
}

fn wait(pid: Pid) -> nix::Result<()> {
    loop {
        match waitpid(pid, Some(WaitPidFlag::__WALL)) {
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
