//! Ahead of others for the processor, while a container is interrupted.
//!
//! An interruption is a chain of short steps in two agents and the shim, each of which begins when a
//! message has come or a program has ended. On a busy host, above all one that prepares several moves at
//! once, each of them would wait for its turn behind others' time slices, and all of these waits are
//! silence on the container's connections. So their threads run by a real-time policy meanwhile (sched(7),
//! SCHED_RR, the lowest priority). What they do themselves then takes a few milliseconds of a processor;
//! programs that they start do not inherit it (SCHED_RESET_ON_FORK).
//!
//! Only a dump of thousands of files gives them more to do, while CRIU is at work. The kernel wakes a
//! real-time thread on the processor where it was last, in the place of whoever runs there and though
//! another one may be idle (`select_task_rq_rt` in kernel/sched/rt.c), and CRIU loses more by that than
//! they gain: see [`MANY_FILES`].

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::{c_int, pid_t};

/// After so many files of images in one dump nothing is urgent until CRIU has ended.
pub const MANY_FILES: usize = 512;

/// Who wants this process to be urgent now.
static WANTED: Mutex<usize> = Mutex::new(0);

/// While there is one of these, this process' threads are urgent. Without CAP_SYS_NICE, and where the
/// host's groups have no real-time share, nothing changes; nor does it for threads that somebody has
/// given another policy than the usual one.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct Urgency(());

impl Urgency {
    /// Begins with all threads that there are.
    pub fn begin() -> Self {
        let mut wanted = lock();
        *wanted += 1;
        if *wanted == 1 {
            each_thread(make_urgent);
        }
        Self(())
    }
}

impl Drop for Urgency {
    fn drop(&mut self) {
        let mut wanted = lock();
        *wanted -= 1;
        if *wanted == 0 {
            each_thread(make_usual);
        }
    }
}

/// To be called by a thread that has just begun: it is urgent if the others are.
pub fn thread_began() {
    let wanted = lock();
    if *wanted > 0 {
        make_urgent(0);
    }
}

fn lock() -> MutexGuard<'static, usize> {
    WANTED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn each_thread(change: fn(pid_t)) {
    // Without the list there is nothing to be done: it is only slower.
    let Ok(entries) = fs::read_dir("/proc/self/task") else { return };
    for entry in entries.flatten() {
        if let Some(thread) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            change(thread);
        }
    }
}

fn make_urgent(thread: pid_t) {
    if policy(thread) & !libc::SCHED_RESET_ON_FORK == libc::SCHED_OTHER {
        // SAFETY: sched_get_priority_min(3) takes a number.
        let lowest = unsafe { libc::sched_get_priority_min(libc::SCHED_RR) };
        set(thread, libc::SCHED_RR, lowest);
    }
}

fn make_usual(thread: pid_t) {
    if policy(thread) == libc::SCHED_RR | libc::SCHED_RESET_ON_FORK {
        set(thread, libc::SCHED_OTHER, 0);
    }
}

/// The policy of a thread, 0 being the calling one; negative if it is gone.
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
    fn threads_are_urgent_for_a_while_and_programs_never() {
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
        let (one, other) = (Urgency::begin(), Urgency::begin());
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
