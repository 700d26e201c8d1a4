//! Triggers two slow operations of the kernel in advance, so that CRIU does not wait for them during the interruption.
//!
//! CRIU does two things for which the kernel waits until every processor has passed through its scheduler
//! (`synchronize_rcu`, an RCU grace period). Each wait takes ten to twenty milliseconds, however few tasks a container
//! has.
//!
//! * CRIU sets a breakpoint in each task, to stop it where CRIU's own code ends (ptrace(2), `PTRACE_POKEUSER`). The
//!   first performance event that belongs to a task enables a static branch in the scheduler, and only the first event
//!   waits (`account_event`, kernel/events/core.c). So this process holds an event that counts nothing.
//! * CRIU moves the tasks that it restores into the container's cgroup. The first move in a while makes all forks and
//!   exits on the host take a lock that they otherwise skip, and waits until they do. The kernel leaves that state by
//!   itself some milliseconds later (`rcu_sync_enter`, kernel/rcu/sync.c). So this process moves itself into its own
//!   cgroup again and again.
//!
//! Both belong to this process and end with it. Where the kernel refuses one, CRIU waits.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use crate::cgroup;

/// Between two moves: of the time that the kernel takes to forget one, at most half.
const MOVE_EVERY: Duration = Duration::from_millis(4);
/// Moves for ten seconds: a restore that has not ended by then has less to gain.
const MOVES_MOST: u32 = 2_500;
/// perf_event_open(2), `PERF_TYPE_SOFTWARE`.
const SOFTWARE: u64 = 1;
/// The same, `PERF_COUNT_SW_DUMMY`.
const DUMMY: u64 = 9;
/// The same: size of the oldest form of its attributes, `PERF_ATTR_SIZE_VER0`, which all kernels take.
const SIZE: u64 = 64;
/// The same: the bits `disabled`, `exclude_kernel` and `exclude_hv`.
const FLAGS: u64 = 1 | 1 << 5 | 1 << 6;
/// The same, `PERF_FLAG_FD_CLOEXEC`.
const CLOSE_ON_EXEC: libc::c_ulong = 8;

/// Keeps the kernel ready for CRIU for as long as this value exists. The kernel is ready within some twenty
/// milliseconds, in the background.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct GracePeriods {
    /// The threads end when these are dropped.
    _ends: Vec<Sender<()>>,
}

impl GracePeriods {
    /// Begins the warm-up for a dump.
    pub fn for_dump() -> Self {
        Self { _ends: begin("netmig-count", hold_event).into_iter().collect() }
    }

    /// Begins the warm-up for a restore.
    pub fn for_restore() -> Self {
        let move_on = begin("netmig-move", keep_moving);
        Self { _ends: move_on.into_iter().chain(begin("netmig-count", hold_event)).collect() }
    }
}

/// Runs this in a thread of its own, until what is returned is dropped.
fn begin(name: &str, work: fn(&Receiver<()>) -> io::Result<()>) -> Option<Sender<()>> {
    let (end, ended) = mpsc::channel();
    let body = move || {
        if let Err(error) = work(&ended) {
            tracing::debug!(%error, "CRIU will wait for the kernel");
        }
    };
    thread::Builder::new().name(name.to_owned()).spawn(body).ok().map(|_| end)
}

fn hold_event(ended: &Receiver<()>) -> io::Result<()> {
    let _event = event_of_this_thread()?;
    // Nothing is ever sent.
    let _ = ended.recv();
    Ok(())
}

/// Returns an event that counts nothing.
fn event_of_this_thread() -> io::Result<OwnedFd> {
    // `struct perf_event_attr`: type and size, config, sample_period, sample_type, read_format, flags, and
    // two more.
    let attributes: [u64; 8] = [SOFTWARE | SIZE << 32, DUMMY, 0, 0, 0, FLAGS, 0, 0];
    // SAFETY: perf_event_open(2) reads the attributes, which are as long as they say and outlive the call; the
    // other arguments are numbers: this thread, on any processor, in no group.
    let event = unsafe {
        libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), 0, -1, -1, CLOSE_ON_EXEC)
    };
    match i32::try_from(event) {
        // SAFETY: the descriptor is new, and nobody else's.
        Ok(event @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(event) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Moves this process into the cgroup in which it is, again and again.
fn keep_moving(ended: &Receiver<()>) -> io::Result<()> {
    let place = fs::read_to_string("/proc/self/cgroup")?;
    let here = cgroup::directory(&place).map_err(io::Error::other)?;
    let mut members = OpenOptions::new().write(true).open(here.join("cgroup.procs"))?;
    for _ in 0..MOVES_MOST {
        // Somebody who has moved it elsewhere meanwhile has the last word.
        if fs::read_to_string("/proc/self/cgroup")? != place {
            break;
        }
        members.write_all(b"0")?;
        match ended.recv_timeout(MOVE_EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// Needs CAP_PERFMON; says so where it has none.
    #[test]
    fn an_event_is_held_until_the_end() {
        let events = || {
            let targets = fs::read_dir("/proc/self/fd").unwrap().flatten();
            let links = targets.filter_map(|entry| fs::read_link(entry.path()).ok());
            links.filter(|link| link.to_string_lossy().contains("perf_event")).count()
        };
        if let Err(e) = event_of_this_thread() {
            return println!("skipped: {e}");
        }
        let until = |count: usize| {
            let begun = Instant::now();
            while events() != count {
                assert!(begun.elapsed() < Duration::from_secs(10), "{} events", events());
                thread::sleep(Duration::from_millis(1));
            }
        };
        let one = GracePeriods::for_dump();
        until(1);
        let other = GracePeriods::for_restore();
        until(2);
        drop(one);
        until(1);
        drop(other);
        until(0);
    }

    #[test]
    fn the_process_stays_where_it_is_and_the_thread_ends() {
        let place = fs::read("/proc/self/cgroup").unwrap();
        let (end, ended) = mpsc::channel();
        let moving = thread::spawn(move || keep_moving(&ended));
        thread::sleep(MOVE_EVERY * 5);
        drop(end);
        // Only where there are cgroups, and this process may write to them.
        if let Err(e) = moving.join().unwrap() {
            println!("not moved: {e}");
        }
        assert_eq!(fs::read("/proc/self/cgroup").unwrap(), place);
    }
}
