//! Injecting packets into an interface as if it had received them.
//!
//! bpf(2) runs a program on a packet that is passed to it (`BPF_PROG_TEST_RUN`), and a program of
//! type `SCHED_CLS` may pass a copy of it to an interface of this network namespace as if it had
//! come in there (`bpf_clone_redirect` with `BPF_F_INGRESS`; `net/core/filter.c`). From there on it
//! is an ordinary packet: XDP, tc and all hooks of netfilter see it. Nothing remains in the kernel:
//! there is no interface and no filter, and the program goes with its descriptor.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Commands of bpf(2).
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;
/// `BPF_FUNC_clone_redirect`, `BPF_F_INGRESS`.
const CLONE_REDIRECT: i32 = 13;
const INGRESS: i32 = 1;
/// `BPF_ALU | BPF_MOV | BPF_K`, `BPF_JMP | BPF_CALL`, `BPF_JMP | BPF_EXIT`.
const MOVE: u8 = 0xb4;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// One instruction (`struct bpf_insn`): code, registers, offset, immediate value.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Instruction(u8, u8, i16, i32);

/// The part of `union bpf_attr` that loads a program.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    /// No log, no version, no flags.
    rest: [u32; 6],
}

/// The part of `union bpf_attr` that runs a program.
#[repr(C)]
struct Run {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// A program that injects packets into one interface.
#[derive(Debug)]
pub(super) struct Injector {
    program: OwnedFd,
}

impl Injector {
    /// Loads the program for the interface with this index.
    pub(super) fn new(interface: u32) -> io::Result<Self> {
        // The packet is in the first register, for the call and from the beginning.
        let program = [
            Instruction(MOVE, 2, 0, interface as i32),
            Instruction(MOVE, 3, 0, INGRESS),
            Instruction(CALL, 0, 0, CLONE_REDIRECT),
            Instruction(EXIT, 0, 0, 0),
        ];
        let load = Load {
            kind: SCHED_CLS,
            count: program.len() as u32,
            instructions: program.as_ptr() as u64,
            licence: c"MIT".as_ptr() as u64,
            rest: [0; 6],
        };
        // SAFETY: the structure begins as `union bpf_attr` does for this command, and what it points to
        // outlives the call.
        let fd =
            unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
        match i32::try_from(fd) {
            // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
            Ok(fd) if fd >= 0 => Ok(Self { program: unsafe { OwnedFd::from_raw_fd(fd) } }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Injects a frame.
    pub(super) fn receive(&self, frame: &[u8]) -> io::Result<()> {
        let mut run = Run {
            program: self.program.as_raw_fd() as u32,
            result: 0,
            size_in: frame.len() as u32,
            size_out: 0,
            data_in: frame.as_ptr() as u64,
            data_out: 0,
            repeat: 1,
            duration: 0,
        };
        // SAFETY: as above; the kernel reads the frame and writes into the structure alone.
        let ran =
            unsafe { libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, &raw mut run, size_of::<Run>()) };
        if ran != 0 {
            return Err(io::Error::last_os_error());
        }
        // What the program gives back is the answer to its call.
        match run.result as i32 {
            0 => Ok(()),
            refused => Err(io::Error::from_raw_os_error(refused.saturating_neg())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root"]
    fn an_interface_that_is_not_there_receives_nothing() {
        assert!(Injector::new(i32::MAX as u32).unwrap().receive(&[0; 60]).is_err());
    }
}
