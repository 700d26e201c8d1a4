//! Real-time scheduling of the agents' threads while a container is interrupted.
//!
//! An interruption is a chain of short steps in two agents and the shim. Each step begins when a message has
//! arrived or a program has ended. On a busy host, above all one that prepares several moves at once, each step
//! would wait behind other processes' time slices, and the container's connections are silent for all of these
//! waits. So the threads of the agents and the shim run by a real-time policy meanwhile (sched(7), SCHED_RR, the
//! lowest priority). Their own work takes a few milliseconds of a processor. Programs that they start do not
//! inherit the policy (SCHED_RESET_ON_FORK).
//!
//! The server of pages ([`crate::lazy_pages`]) has the policy until no page is missing, and rests again and again
//! while no process waits for a page.
//!
//! A dump of thousands of files gives them more to do while CRIU is at work. The kernel wakes a real-time thread
//! on the processor where it ran last, in place of the task that runs there, even if another processor is idle
//! (`select_task_rq_rt` in kernel/sched/rt.c). CRIU then loses more than the agents gain: see [`MANY_FILES`].

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::{c_int, pid_t};

/// The number of image files in one dump from which on the agents run by the usual policy until CRIU has ended.
pub const MANY_FILES: usize = 512;

/// The number of [`RealtimePriority`] values that exist.
static HELD: Mutex<usize> = Mutex::new(0);

/// The real-time policy of all threads of this process, for as long as a value of this type exists. Without
/// CAP_SYS_NICE, or where the host's cgroups have no real-time share, nothing changes. Threads with another policy
/// than the usual one keep theirs.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct RealtimePriority(());

impl RealtimePriority {
    /// Gives all threads of this process the real-time policy, unless they have it.
    pub fn begin() -> Self {
        let mut held = lock();
        *held += 1;
        if *held == 1 {
            each_thread(raise);
        }
        Self(())
    }
}

impl Drop for RealtimePriority {
    fn drop(&mut self) {
        let mut held = lock();
        *held -= 1;
        if *held == 0 {
            each_thread(lower);
        }
    }
}

/// Gives the calling thread the policy of the others. Each thread calls it when it begins.
pub fn thread_began() {
    let held = lock();
    if *held > 0 {
        raise(0);
    }
}

fn lock() -> MutexGuard<'static, usize> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn each_thread(change: fn(pid_t)) {
    // Without the list the threads keep their policy, which is only slower.
    let Ok(entries) = fs::read_dir("/proc/self/task") else { return };
    for entry in entries.flatten() {
        if let Some(thread) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            change(thread);
        }
    }
}

fn raise(thread: pid_t) {
    if policy(thread) & !libc::SCHED_RESET_ON_FORK == libc::SCHED_OTHER {
        // SAFETY: sched_get_priority_min(3) takes a number.
        let lowest = unsafe { libc::sched_get_priority_min(libc::SCHED_RR) };
        set(thread, libc::SCHED_RR, lowest);
    }
}

fn lower(thread: pid_t) {
    if policy(thread) == libc::SCHED_RR | libc::SCHED_RESET_ON_FORK {
        set(thread, libc::SCHED_OTHER, 0);
    }
}

/// Returns the policy of a thread, of which 0 is the calling one; negative if it is gone.
fn policy(thread: pid_t) -> c_int {
    // SAFETY: sched_getscheduler(2) takes a number.
    unsafe { libc::sched_getscheduler(thread) }
}

fn set(thread: pid_t, policy: c_int, sched_priority: c_int) {
    let parameters = libc::sched_param { sched_priority };
    // SAFETY: sched_setscheduler(2) reads the parameters, which outlive the call. A thread that has ended
    // meanwhile, and a refusal, change nothing.
    unsafe {
        libc::sched_setscheduler(thread, policy | libc::SCHED_RESET_ON_FORK, &raw const parameters)
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn own() -> c_int {
        policy(0) & !libc::SCHED_RESET_ON_FORK
    }

    /// Needs CAP_SYS_NICE; says so where it has none.
    #[test]
    fn threads_are_realtime_for_a_while_and_programs_never() {
        let of_program = || {
            let mut child = Command::new("sleep").arg("5").spawn().unwrap();
            let found = policy(pid_t::try_from(child.id()).unwrap());
            child.kill().unwrap();
            child.wait().unwrap();
            found & !libc::SCHED_RESET_ON_FORK
        };
        let of_new_thread = || {
            let begun = || {
                thread_began();
                own()
            };
            std::thread::spawn(begun).join().unwrap()
        };
        let usual = own();
        let (one, other) = (RealtimePriority::begin(), RealtimePriority::begin());
        let during = own();
        let seen = (of_new_thread(), of_program());
        drop(one);
        let after_one = own();
        drop(other);
        assert_eq!((own(), of_new_thread()), (usual, usual));
        if during == usual {
            return println!("skipped: needs CAP_SYS_NICE, and the usual policy to begin with");
        }
        assert_eq!((during, after_one), (libc::SCHED_RR, libc::SCHED_RR));
        assert_eq!(seen, (libc::SCHED_RR, libc::SCHED_OTHER));
    }
}
