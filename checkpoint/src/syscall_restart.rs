//! Restart of system calls that a freeze has interrupted.
//!
//! A task that is frozen in a system call leaves the call at once. The call's result waits in the task's registers until
//! the task resumes. Some calls then restart by themselves, because the kernel has noted that they must (`ERESTARTSYS`
//! and its kin, `include/linux/errno.h`). Two kinds do not:
//!
//! * Calls with a timeout of which the kernel keeps the rest in a restart block (`ERESTART_RESTARTBLOCK`: nanosleep(2),
//!   poll(2), futex(2)). The restart block cannot be carried to another task, and is lost when CRIU runs its code in a
//!   task. CRIU turns the value into EINTR (`compel_get_task_regs` in `compel/arch/x86/src/lib/infect.c`), in the images
//!   as well as in the original.
//! * Calls that return EINTR whenever they are woken without a result (signal(7), "Interruption of system calls and
//!   library functions by stop signals"): epoll_wait(2), semop(2), sigtimedwait(2), calls on a socket with a timeout.
//!
//! A program without a signal handler need not expect EINTR, and most programs do not: `sleep` would end. So these calls
//! are set back: the task executes the call's instruction once more, with the arguments that it had. A timeout starts
//! from its beginning, so the call never ends early.
//!
//! An EINTR that belongs to the program differs in two ways. Once a signal's handler has returned, the registers say no
//! longer that the task is in the call (`orig_ax`; `restore_sigcontext`). And a pending signal that the task would take
//! has interrupted the call rightfully, so that call is left alone.

mod frozen_tasks;
mod registers;

pub(crate) use frozen_tasks::rewind_stopped;
pub use frozen_tasks::{Error, Since, rewind};
pub(crate) use registers::{EINTR, Registers, signal_set, takes_any};
