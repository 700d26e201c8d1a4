//! Who has a lock of [`byte_lock`](crate::byte_lock): the kernel does not tell a process that asks for the lock, but shows
//! each open file's locks (`/proc/PID/fdinfo/FD`, proc_pid_fdinfo(5)).

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::unistd::{SysconfVar, sysconf};

/// Characters of a command line that are shown.
const SHOWN: usize = 120;

/// A process that has a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pid: i32,
    command: String,
    started: Option<SystemTime>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, command, started } = self;
        write!(f, "{command:?} (process {pid}")?;
        if let Some(started) = started {
            write!(f, ", started {}", humantime::format_rfc3339_seconds(*started))?;
        }
        f.write_str(")")
    }
}

/// Returns the process that has a place of a file; `None` if nobody has, or the kernel does not show it.
pub(crate) fn find(file: &Path, place: i64) -> Option<Holder> {
    let file = fs::canonicalize(file).ok()?;
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let pid = pids.find(|pid| holds(*pid, &file, place))?;
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let words: Vec<_> = words.map(String::from_utf8_lossy).collect();
    let command = words.join(" ").chars().take(SHOWN).collect();
    Some(Holder { pid, command, started: started(pid) })
}

fn holds(pid: i32, file: &Path, place: i64) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut of_file =
        descriptors.filter(|entry| fs::read_link(entry.path()).is_ok_and(|path| path == file));
    of_file.any(|entry| {
        let info = format!("/proc/{pid}/fdinfo/{}", entry.file_name().to_string_lossy());
        fs::read_to_string(info).is_ok_and(|text| text.lines().any(|line| is_lock(line, place)))
    })
}

/// Returns whether a line of `fdinfo` tells of a lock of this one byte, such as
/// `lock: 1: OFDLCK ADVISORY WRITE -1 00:19:7 5 5`.
fn is_lock(line: &str, place: i64) -> bool {
    let Some(words) = line.strip_prefix("lock:") else { return false };
    let mut ends = words.split_ascii_whitespace().rev().map_while(|word| word.parse::<i64>().ok());
    words.contains("OFDLCK") && ends.next() == Some(place) && ends.next() == Some(place)
}

/// Returns when a process was started: field 22 of `/proc/PID/stat` (proc_pid_stat(5)), in ticks since boot.
fn started(pid: i32) -> Option<SystemTime> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks: u64 = fields.split_ascii_whitespace().nth(19)?.parse().ok()?;
    let per_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
    let after_boot = Duration::from_millis(ticks.checked_mul(1000)?.checked_div(per_second)?);
    let age = Duration::try_from_secs_f64(uptime).ok()?.checked_sub(after_boot)?;
    SystemTime::now().checked_sub(age)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::byte_lock;

    #[test]
    fn whoever_has_a_lock_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locks");
        let lock = byte_lock::try_take(&path, 7).unwrap().unwrap();
        let holder = find(&path, 7).unwrap();
        assert_eq!(holder.pid, i32::try_from(std::process::id()).unwrap());
        let age = SystemTime::now().duration_since(holder.started.unwrap()).unwrap_or_default();
        assert!(age < Duration::from_secs(24 * 3600), "started {age:?} ago");
        let said = holder.to_string();
        assert!(said.contains(&format!("(process {}, started 2", holder.pid)), "{said}");
        assert_eq!(find(&path, 8), None);
        drop(lock);
        assert_eq!(find(&path, 7), None);
    }

    #[test]
    fn other_lines_are_no_locks() {
        assert!(is_lock("lock:\t1: OFDLCK ADVISORY  WRITE -1 00:19:7 5 5", 5));
        for line in [
            "pos:\t5",
            "lock:\t1: OFDLCK ADVISORY  WRITE -1 00:19:7 5 6",
            "lock:\t1: POSIX ADVISORY  WRITE 12 00:19:7 5 5",
            "lock:\t1: OFDLCK ADVISORY  WRITE -1 00:19:7 0 EOF",
            "lock:",
        ] {
            assert!(!is_lock(line, 5), "{line}");
        }
    }
}
