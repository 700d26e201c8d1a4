//! Whether a cgroup has been frozen without a break.
//!
//! The kernel tells whoever polls `cgroup.events` of every change since that descriptor was read last (`kernfs_generic_poll` in
//! `fs/kernfs/file.c`). So tasks that ran between two looks are noticed even if they are frozen again. It tells of a change up to
//! 10 ms late (`CGROUP_FILE_NOTIFY_MIN_INTV` in `kernel/cgroup/cgroup.c`), also of the freeze itself. How often the tasks were
//! switched tells one from the other.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Cgroup, Error, value_of};

/// Most threads whose switches are counted: a thaw lets all of them run.
const MOST_THREADS: usize = 64;
/// The two lines of `/proc/PID/task/TID/status` that count switches (proc_pid_status(5)).
const SWITCHES: [&str; 2] = ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"];

/// Watches a frozen cgroup.
#[derive(Debug)]
pub struct FreezeWatch {
    events: File,
    processes: Vec<i32>,
    switches: u64,
    is_broken: AtomicBool,
}

impl Cgroup {
    /// Begins to watch a frozen cgroup. Returns `None` if it is not frozen, or gone.
    ///
    /// # Errors
    /// [`Error::Access`].
    pub fn watch_freeze(&self) -> Result<Option<FreezeWatch>, Error> {
        let path = self.path.join("cgroup.events");
        let watch = match File::open(&path) {
            Ok(events) => {
                let processes = self.pids()?;
                let switches = switches(&processes);
                FreezeWatch { events, processes, switches, is_broken: AtomicBool::new(false) }
            }
            Err(source) if is_gone(&source) => return Ok(None),
            Err(source) => return Err(Error::Access { path, source }),
        };
        match watch.is_frozen() {
            Ok(is_frozen) => Ok(is_frozen.then_some(watch)),
            Err(source) if is_gone(&source) => Ok(None),
            Err(source) => Err(Error::Access { path, source }),
        }
    }
}

impl FreezeWatch {
    /// Returns whether every task has been frozen since the watch began. A cgroup that is gone, or has no task any more, is not.
    #[must_use]
    pub fn is_unbroken(&self) -> bool {
        if self.is_broken.load(Ordering::Acquire) {
            return false;
        }
        let mut side = [PollFd::new(self.events.as_fd(), PollFlags::POLLPRI)];
        let is_unbroken = match poll(&mut side, PollTimeout::ZERO) {
            Ok(0) => true,
            // That may be late news of the freeze itself.
            Ok(_) => {
                self.is_frozen().is_ok_and(|frozen| frozen)
                    && switches(&self.processes) == self.switches
            }
            Err(_) => false,
        };
        if !is_unbroken {
            self.is_broken.store(true, Ordering::Release);
        }
        is_unbroken
    }

    /// Reads the state anew. What has changed before is not told again.
    fn is_frozen(&self) -> io::Result<bool> {
        let mut buffer = [0; 256];
        let read = self.events.read_at(&mut buffer, 0)?;
        let is = |key| value_of(&buffer[..read], key) == Some(true);
        Ok(is("frozen") && is("populated"))
    }
}

/// Returns how often threads of these processes have been switched; each thread that has run since was switched once more.
fn switches(processes: &[i32]) -> u64 {
    let threads = processes.iter().flat_map(|process| {
        fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten()
    });
    let of_thread = |thread: fs::DirEntry| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let counts = status.lines().filter_map(|line| {
            let count = SWITCHES.iter().find_map(|name| line.strip_prefix(name))?;
            count.trim().parse::<u64>().ok()
        });
        counts.sum::<u64>()
    };
    threads.take(MOST_THREADS).map(of_thread).sum()
}

/// Returns whether an error says that the cgroup was removed.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);
    const NOTICE: Duration = Duration::from_millis(50);

    /// Needs root, for a mount of cgroups; says so where it cannot have one.
    #[test]
    fn a_moment_in_which_it_runs_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (none, plain) = (None::<&str>, MsFlags::empty());
        let mounted = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
            .and_then(|()| mount(none, dir.path(), Some("cgroup2"), plain, none));
        let path = dir.path().join(format!("netmig-freeze-watch-{}", std::process::id()));
        if let Err(e) = mounted.map_err(Into::into).and_then(|()| fs::create_dir(&path)) {
            println!("skipped: {e}");
            return;
        }
        let mut task = Command::new("sleep").arg("1000").spawn().unwrap();
        let moved = fs::write(path.join("cgroup.procs"), task.id().to_string());
        let watched = moved.is_ok().then(|| {
            let cgroup = Cgroup::open(path.clone()).unwrap();
            assert!(cgroup.watch_freeze().unwrap().is_none(), "it runs");
            let freeze = || cgroup.freeze(Instant::now() + LIMIT).unwrap();
            freeze();
            let watch = cgroup.watch_freeze().unwrap().unwrap();
            sleep(2 * NOTICE);
            let at_first = watch.is_unbroken();
            freeze();
            sleep(NOTICE);
            let ordered_again = watch.is_unbroken();
            cgroup.thaw().unwrap();
            freeze();
            sleep(NOTICE);
            (at_first, ordered_again, watch.is_unbroken(), watch.is_unbroken())
        });
        task.kill().unwrap();
        task.wait().unwrap();
        let give_up = Instant::now() + LIMIT;
        while fs::remove_dir(&path).is_err() && Instant::now() < give_up {
            sleep(NOTICE);
        }
        match watched {
            Some(watched) => assert_eq!(watched, (true, true, false, false)),
            None => println!("skipped: {moved:?}"),
        }
    }
}
