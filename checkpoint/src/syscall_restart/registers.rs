//! The calls that can be restarted, and the registers that do it. Numbers and registers are those of x86-64.

/// `-EINTR`, as a register has it.
pub(crate) const EINTR: u64 = negative(4);
/// `-ERESTART_RESTARTBLOCK` (`include/linux/errno.h`): never seen by a program.
const RESTART_BLOCK: u64 = negative(516);
/// Bytes of the instruction `syscall`.
const INSTRUCTION: u64 = 2;

/// Calls that do nothing before they wait, or nothing that counts when they are made again with the same
/// arguments. Calls that may have been half done are not among them, nor close(2).
#[rustfmt::skip]
const CALLS: &[u64] = &[
    0, 1, 19, 20,                  // read, write, readv, writev
    7, 271,                        // poll, ppoll
    23, 270,                       // select, pselect6
    35, 230,                       // nanosleep, clock_nanosleep
    40, 275,                       // sendfile, splice
    42, 43, 288,                   // connect, accept, accept4
    44, 45, 46, 47, 299, 307,      // sendto, recvfrom, sendmsg, recvmsg, recvmmsg, sendmmsg
    65, 220,                       // semop, semtimedop
    128,                           // rt_sigtimedwait
    202, 449, 455,                 // futex, futex_waitv, futex_wait
    208, 333,                      // io_getevents, io_pgetevents
    232, 281, 441,                 // epoll_wait, epoll_pwait, epoll_pwait2
];

const RESTART_SYSCALL: u64 = 219;
const NANOSLEEP: u64 = 35;
const CLOCK_NANOSLEEP: u64 = 230;
const POLL: u64 = 7;
const FUTEX: u64 = 202;

/// Operations of futex(2) that the kernel resumes, with their usual flags: FUTEX_WAIT and FUTEX_WAIT_BITSET,
/// private ones, and ones by the other clock.
const FUTEX_WAITS: &[u64] = &[128, 128 | 9, 256 | 9, 128 | 256 | 9];
/// Programs have nothing below (the default of `/proc/sys/vm/mmap_min_addr`).
const LEAST_ADDRESS: u64 = 65_536;

/// The registers of a task that a call depends on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Registers {
    /// What the call returns.
    pub(crate) ax: u64,
    /// The call's number, or -1 outside of a call.
    pub(crate) orig_ax: u64,
    /// The instruction after the call's.
    pub(crate) ip: u64,
    /// The first argument.
    pub(crate) di: u64,
    /// The second.
    pub(crate) si: u64,
    /// The third.
    pub(crate) dx: u64,
}

impl Registers {
    /// Returns the registers with which the task makes its call again; `None` if it was not interrupted in one,
    /// or not in one that can be made again.
    pub(crate) fn rewound(self) -> Option<Self> {
        if self.ax != EINTR && self.ax != RESTART_BLOCK {
            return None;
        }
        let ip = self.ip.checked_sub(INSTRUCTION)?;
        Some(Self { ax: self.call()?, ip, ..self })
    }

    /// Returns whether the kernel would resume this call by restart_syscall(2), and its arguments would then be taken for those of
    /// another one ([`Registers::resumed`]): it is better made again, though its time starts from the beginning.
    pub(crate) fn is_ambiguous_when_resumed(self) -> bool {
        let resumed = Self { orig_ax: RESTART_SYSCALL, ..self };
        self.ax == RESTART_BLOCK
            && [POLL, NANOSLEEP, CLOCK_NANOSLEEP, FUTEX].contains(&self.orig_ax)
            && resumed.call() != Some(self.orig_ax)
    }

    /// Returns the number of the call that the program has made, if it can be made again.
    fn call(self) -> Option<u64> {
        match self.orig_ax {
            RESTART_SYSCALL => self.resumed(),
            number => is_known(number).then_some(number),
        }
    }

    /// Returns the call that restart_syscall(2) was to resume, since the task had been stopped before, by a
    /// signal or a debugger. The number is lost. The arguments are there, and tell the four calls apart that
    /// can be resumed (`set_restart_fn` in the kernel).
    fn resumed(self) -> Option<u64> {
        let Self { di, si, dx, .. } = self;
        if is_clock(di) {
            // poll(2) without descriptors has a limit where clock_nanosleep(2) has an address.
            return Some(if is_limit(dx) { POLL } else { CLOCK_NANOSLEEP });
        }
        match si {
            // Where the rest is to be written, if anywhere.
            0 | LEAST_ADDRESS.. => Some(NANOSLEEP),
            operation if FUTEX_WAITS.contains(&operation) => Some(FUTEX),
            _ => Some(POLL),
        }
    }
}

/// Returns whether an argument is a clock's number, which is an `int` and negative for the clocks of
/// processes.
fn is_clock(argument: u64) -> bool {
    argument < LEAST_ADDRESS || (argument as i32) < 0 && matches!(argument >> 32, 0 | 0xffff_ffff)
}

/// Returns whether an argument is a limit of poll(2), in milliseconds or -1.
fn is_limit(argument: u64) -> bool {
    i32::try_from(argument).is_ok() || argument as u32 == u32::MAX
}

/// Returns whether a call can be made again, or resumes one that can.
pub(crate) fn is_known(number: u64) -> bool {
    number == RESTART_SYSCALL || CALLS.contains(&number)
}

/// Returns whether any signal that waits is not blocked.
pub(crate) fn takes_any(waiting: u64, blocked: u64) -> bool {
    waiting & !blocked != 0
}

/// Returns the set that has one signal, as the kernel writes sets; empty for what is no signal.
pub(crate) fn signal_set(signal: i32) -> u64 {
    match u32::try_from(signal) {
        Ok(signal @ 1..=64) => 1 << (signal - 1),
        _ => 0,
    }
}

const fn negative(error: u64) -> u64 {
    error.wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(orig_ax: u64, ax: u64) -> Registers {
        Registers { ax, orig_ax, ip: 0x40_1002, di: 0x7fff_0000_1000, si: 1, dx: 500 }
    }

    #[test]
    fn a_call_that_was_stopped_is_made_again() {
        for number in [POLL, NANOSLEEP, 232, 128, 45] {
            for value in [EINTR, RESTART_BLOCK] {
                let before = stopped(number, value);
                let after = before.rewound().unwrap();
                assert_eq!(after, Registers { ax: number, ip: 0x40_1000, ..before });
            }
        }
    }

    #[test]
    fn what_has_returned_or_counts_stays() {
        let outside = stopped(u64::MAX, EINTR);
        let result = stopped(POLL, 1);
        let timed_out = stopped(FUTEX, negative(110));
        let close = stopped(3, EINTR);
        for registers in [outside, result, timed_out, close, Registers { ip: 1, ..close }] {
            assert_eq!(registers.rewound(), None, "{registers:?}");
        }
    }

    #[test]
    fn a_resumed_call_is_known_by_its_arguments() {
        let stack = 0x7ffd_1234_5678;
        for (di, si, dx, number) in [
            (stack, 0, 7, NANOSLEEP),
            (stack, stack, 7, NANOSLEEP),
            (0, 0, stack, CLOCK_NANOSLEEP),
            (1, 0, stack, CLOCK_NANOSLEEP),
            (0xffff_fffa, 0, stack, CLOCK_NANOSLEEP),
            (0xffff_ffff_ffff_fffa, 0, stack, CLOCK_NANOSLEEP),
            (0, 0, 1000, POLL),
            (0, 0, u64::MAX, POLL),
            (stack, 1, 1000, POLL),
            (stack, 9, 0xffff_ffff, POLL),
            (stack, 128, 2, FUTEX),
            (stack, 393, 0, FUTEX),
        ] {
            let before = Registers { di, si, dx, ..stopped(RESTART_SYSCALL, EINTR) };
            assert_eq!(before.rewound().map(|after| after.ax), Some(number), "{before:x?}");
        }
    }

    #[test]
    fn a_call_that_would_be_taken_for_another_one_is_known() {
        let of = |orig_ax, si| Registers { si, ..stopped(orig_ax, RESTART_BLOCK) };
        // FUTEX_WAIT of a futex that processes share has the number 0.
        assert!(of(FUTEX, 0).is_ambiguous_when_resumed());
        assert!(!of(FUTEX, 128).is_ambiguous_when_resumed());
        assert!(!of(NANOSLEEP, 0).is_ambiguous_when_resumed());
        assert!(!of(POLL, 1).is_ambiguous_when_resumed());
        assert!(!of(RESTART_SYSCALL, 0).is_ambiguous_when_resumed());
        assert!(!stopped(FUTEX, EINTR).is_ambiguous_when_resumed());
    }

    #[test]
    fn only_a_signal_that_is_not_blocked_interrupts() {
        assert_eq!([1, 15, 64, 0, -1, 65].map(signal_set), [1, 1 << 14, 1 << 63, 0, 0, 0]);
        assert!(takes_any(signal_set(15), signal_set(2)));
        assert!(!takes_any(signal_set(15), signal_set(15)));
    }
}
