//! System calls that a stop has interrupted, set back to their beginning.
//!
//! A task that is stopped in a system call leaves the call at once, and what the call returns waits in the
//! task's registers for the task to go on. Some calls begin anew then, by themselves: the kernel has noted that
//! they are to (`ERESTARTSYS` and its kin, `include/linux/errno.h`). Two kinds do not:
//!
//! * Calls with a time limit whose rest the kernel keeps (`ERESTART_RESTARTBLOCK`: nanosleep(2), poll(2),
//!   futex(2)). The note cannot be carried to another task, and is lost when CRIU runs its code in a task. CRIU
//!   turns the value into EINTR (`compel_get_task_regs` in `compel/arch/x86/src/lib/infect.c`), in the images
//!   as well as in the original.
//! * Calls that return EINTR whenever they are woken without a result (signal(7), "Interruption of system calls
//!   and library functions by stop signals"): epoll_wait(2), semop(2), sigtimedwait(2), calls on a socket with a
//!   time limit.
//!
//! A program that did not ask for a signal need not expect either, and most do not: `sleep` would end. So these
//! calls are set back: the task executes the call's instruction once more, with the arguments that it had. A
//! limit counts from its beginning again: never early.
//!
//! An EINTR that belongs to the program is told apart by two things. The registers say that the task is in the
//! call still (`orig_ax`): once a signal's handler has returned, they do not (`restore_sigcontext`). And no signal
//! that the task would take waits for it: one that does has interrupted the call by rights.

mod frozen_tasks;
mod registers;

pub use frozen_tasks::{Error, rewind};
pub(crate) use registers::{EINTR, Registers, signal_set, takes_any};
