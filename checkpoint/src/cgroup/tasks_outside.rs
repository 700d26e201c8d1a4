//! Processes of a container that are outside of its cgroup, and are moved into it.

use std::fs;
use std::path::Path;

use super::{Cgroup, Error};

impl Cgroup {
    /// Brings every descendant of a container's first process into the container's cgroup; returns how many
    /// were outside. crun moves the first one alone where it restores a container elsewhere. Such a process
    /// escapes the freezer and every limit, and CRIU cannot dump it again. A cgroup that is frozen, or told to be,
    /// freezes what comes.
    ///
    /// # Errors
    /// [`Error::Access`]. A process that has ended meanwhile is none.
    pub fn adopt_stragglers(&self, first: i32) -> Result<usize, Error> {
        let path = self.path.join("cgroup.procs");
        let mut brought = 0;
        loop {
            let inside = self.pids()?;
            let outside: Vec<i32> =
                descendants(first).into_iter().filter(|pid| !inside.contains(pid)).collect();
            if outside.is_empty() {
                return Ok(brought);
            }
            for pid in outside {
                match fs::write(&path, pid.to_string()) {
                    Ok(()) => brought += 1,
                    Err(e) if e.raw_os_error() == Some(nix::libc::ESRCH) => {}
                    Err(source) => return Err(Error::Access { path, source }),
                }
            }
        }
    }
}

/// Returns all descendants of a process (`children` in proc_pid_task(5)); those that end meanwhile may be
/// left out.
fn descendants(process: i32) -> Vec<i32> {
    let mut found = Vec::new();
    let mut next = vec![process];
    while let Some(process) = next.pop() {
        let children = children(process);
        found.extend(&children);
        next.extend(children);
    }
    found
}

fn children(process: i32) -> Vec<i32> {
    let tasks = Path::new("/proc").join(process.to_string()).join("task");
    let tasks = fs::read_dir(tasks).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn children_of_children_are_found() {
        let mut shell = Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let sleeper = loop {
            if let [sleeper] = descendants(pid)[..] {
                break sleeper;
            }
            assert!(std::time::Instant::now() < end, "it has no child");
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        let all = descendants(own);
        assert!(all.contains(&pid) && all.contains(&sleeper), "{all:?}");
        // SAFETY: kill(2) takes numbers alone, of processes of this test.
        unsafe { libc::kill(sleeper, libc::SIGKILL) };
        shell.kill().unwrap();
        shell.wait().unwrap();
        assert_eq!(descendants(i32::MAX), [0; 0]);
    }
}
