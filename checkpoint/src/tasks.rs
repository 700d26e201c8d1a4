//! Settings of threads that CRIU does not restore: processors, the disk's priority, timer slack, and what a
//! core dump holds.
//!
//! [`TaskSettings::read`] reads from the frozen original what is not as the engine's monitor has it, and timer slack,
//! [`TaskSettings::apply`] sets it on the frozen copy.

use std::collections::HashMap;
use std::fs;
use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::procfs::inner_pid;

/// Most threads that are looked at.
const MOST: usize = 100_000;
/// IOPRIO_WHO_PROCESS (ioprio_set(2)).
const WHO_PROCESS: i32 = 1;

/// A setting could not be set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The copy lacks a thread.
    #[error("the copy has no thread {0}, whose settings were to be set")]
    NoThread(i32),
    /// The kernel refused.
    #[error("cannot set {what} of the copy's thread {thread}")]
    Set {
        /// Which setting.
        what: &'static str,
        /// The thread, as the container numbers it.
        thread: i32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// None of the processors that a thread may use is here.
    #[error(
        "the container's thread {thread} may use the processors {processors:?} alone, and this host has none \
         of them; change it (taskset), or choose a host with as many processors"
    )]
    Processors {
        /// The thread, as the container numbers it.
        thread: i32,
        /// The processors.
        processors: Vec<u32>,
    },
}

/// What of a thread is not as usual.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskSettings {
    /// The thread, as the container numbers it.
    pub thread: i32,
    /// The processors that it may use (sched_setaffinity(2)).
    pub processors: Option<Vec<u32>>,
    /// Its priority at the disk (ioprio_set(2)).
    pub io_priority: Option<i32>,
    /// By how much its timers may be late, in nanoseconds (`PR_SET_TIMERSLACK`).
    pub timer_slack: Option<u64>,
    /// What of its memory is in a core dump (core(5)).
    pub coredump_filter: Option<u32>,
}

/// The settings of a thread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Settings {
    processors: Vec<u32>,
    io_priority: i32,
    timer_slack: Option<u64>,
    coredump_filter: Option<u32>,
}

impl TaskSettings {
    /// Reads those of all threads of a container; `monitor` is the engine's process that watches it.
    #[must_use]
    pub fn read(cgroup: &Cgroup, monitor: i32) -> Vec<Self> {
        let usual = Settings::of(monitor);
        let allowed = fs::read_to_string(cgroup.path().join("cpuset.cpus.effective"));
        let allowed = allowed.map(|text| ranges(&text)).unwrap_or_default();
        let threads = threads(&cgroup.pids().unwrap_or_default());
        let unusual = |(inner, tid): (i32, i32)| {
            let Settings { processors, io_priority, timer_slack, coredump_filter } =
                Settings::of(tid);
            let is_usual =
                processors.is_empty() || processors == usual.processors || processors == allowed;
            let one = Self {
                thread: inner,
                processors: (!is_usual).then_some(processors),
                io_priority: (io_priority != usual.io_priority).then_some(io_priority),
                // There is no usual one: what a restore runs at real-time priority begets has none.
                timer_slack,
                coredump_filter: coredump_filter
                    .filter(|_| coredump_filter != usual.coredump_filter),
            };
            (one != Self { thread: inner, ..Self::default() }).then_some(one)
        };
        threads.into_iter().filter_map(unusual).collect()
    }

    /// Sets what the original had on the threads of a copy, of which these are the processes.
    ///
    /// # Errors
    /// [`Error`]: the first that cannot be set.
    pub fn apply(all: &[Self], pids: &[i32]) -> Result<(), Error> {
        if all.is_empty() {
            return Ok(());
        }
        let threads: HashMap<i32, i32> = threads(pids).into_iter().collect();
        all.iter().try_for_each(|settings| {
            let tid = threads.get(&settings.thread).ok_or(Error::NoThread(settings.thread))?;
            settings.set(*tid)
        })
    }

    fn set(&self, tid: i32) -> Result<(), Error> {
        let thread = self.thread;
        let failed = |what| move |source| Error::Set { what, thread, source };
        if let Some(processors) = &self.processors {
            let mut set = CpuSet::new();
            // A number beyond what the kernel can have is no processor here.
            let known = processors.iter().filter(|one| set.set(**one as usize).is_ok()).count();
            match sched_setaffinity(Pid::from_raw(tid), &set) {
                Err(nix::errno::Errno::EINVAL) => {
                    return Err(Error::Processors { thread, processors: processors.clone() });
                }
                other => other.map_err(|e| failed("the processors")(e.into()))?,
            }
            if known < processors.len() {
                return Err(Error::Processors { thread, processors: processors.clone() });
            }
        }
        if let Some(priority) = self.io_priority {
            // SAFETY: ioprio_set(2) takes numbers alone.
            let done = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, tid, priority) };
            if done < 0 {
                return Err(failed("the I/O priority")(io::Error::last_os_error()));
            }
        }
        if let Some(slack) = self.timer_slack.filter(|slack| timer_slack(tid) != Some(*slack)) {
            fs::write(format!("/proc/{tid}/timerslack_ns"), slack.to_string())
                .map_err(failed("the timer slack"))?;
        }
        if let Some(filter) = self.coredump_filter {
            fs::write(format!("/proc/{tid}/coredump_filter"), format!("{filter:#x}"))
                .map_err(failed("the filter of core dumps"))?;
        }
        Ok(())
    }
}

impl Settings {
    /// Those of a thread; of one that has ended, none.
    fn of(tid: i32) -> Self {
        let read = |file: &str| {
            let text = fs::read_to_string(format!("/proc/{tid}/{file}")).ok()?;
            Some(text.trim().to_owned())
        };
        let set = sched_getaffinity(Pid::from_raw(tid)).unwrap_or_default();
        let most = u32::try_from(CpuSet::count()).unwrap_or(0);
        // SAFETY: ioprio_get(2) takes numbers alone.
        let priority = unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, tid) };
        Self {
            processors: (0..most).filter(|one| set.is_set(*one as usize) == Ok(true)).collect(),
            io_priority: i32::try_from(priority).unwrap_or(0).max(0),
            timer_slack: timer_slack(tid),
            coredump_filter: read("coredump_filter")
                .and_then(|text| u32::from_str_radix(&text, 16).ok()),
        }
    }
}

fn timer_slack(tid: i32) -> Option<u64> {
    fs::read_to_string(format!("/proc/{tid}/timerslack_ns")).ok()?.trim().parse().ok()
}

/// All threads of processes: numbers in the container and on the host.
fn threads(pids: &[i32]) -> Vec<(i32, i32)> {
    let of_process = |pid: &i32| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    pids.iter()
        .flat_map(of_process)
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .take(MOST)
        .filter_map(|tid| Some((inner_pid(tid)?, tid)))
        .collect()
}

/// The numbers of a list such as `0-2,5` (cpuset(7)).
fn ranges(text: &str) -> Vec<u32> {
    let range = |word: &str| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        Some(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?.min(1 << 16))
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(ranges("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(ranges("\n"), [0_u32; 0]);
    }

    #[test]
    fn what_is_read_of_a_thread_can_be_set_again() {
        let own = i32::try_from(std::process::id()).unwrap();
        let was = Settings::of(own);
        assert!(!was.processors.is_empty() && was.coredump_filter.is_some(), "{was:?}");
        let settings = TaskSettings {
            thread: own,
            processors: Some(was.processors.clone()),
            io_priority: Some((2 << 13) | 6),
            timer_slack: None,
            coredump_filter: was.coredump_filter,
        };
        let inner = TaskSettings { thread: inner_pid(own).unwrap(), ..settings };
        TaskSettings::apply(std::slice::from_ref(&inner), &[own]).unwrap();
        assert_eq!(Settings::of(own).io_priority, (2 << 13) | 6);
        let gone = TaskSettings { thread: i32::MAX, ..inner };
        assert!(matches!(TaskSettings::apply(&[gone], &[own]), Err(Error::NoThread(_))));
    }
}
