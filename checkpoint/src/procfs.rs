//! Facts about one process from `/proc/PID` (proc_pid(5)).

use std::fs;

/// Numbers of capabilities (`include/uapi/linux/capability.h`).
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// Returns when a process was started, in clock ticks since boot: field 22 of `/proc/PID/stat`
/// (proc_pid_stat(5)). A zombie has ended, and has none.
#[must_use]
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Returns the parent of a process: field 4 of `/proc/PID/stat` (proc_pid_stat(5)). `None` for a process that is gone.
#[must_use]
pub fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Returns the threads of a process, the first one first; none for a process that is gone.
#[must_use]
pub fn threads(process: i32) -> Vec<i32> {
    let entries = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let mut threads: Vec<i32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    threads.sort_by_key(|thread| (*thread != process, *thread));
    threads
}

/// Returns between which addresses a process has its arguments and its environment: fields 48 and 51 of `/proc/PID/stat`
/// (proc_pid_stat(5)). `None` for a process that is gone or has none.
#[must_use]
pub fn arguments(pid: i32) -> Option<(u64, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split_ascii_whitespace();
    let start = fields.nth(45)?.parse().ok()?;
    let end = fields.nth(2)?.parse().ok()?;
    (start > 0 && start < end).then_some((start, end))
}

/// Returns the number that a process has in the innermost of its process namespaces: the last one of the
/// line `NSpid` (proc_pid_status(5)).
#[must_use]
pub fn inner_pid(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_ascii_whitespace().last()?.parse().ok()
}

/// Returns the signals that wait for a process and for its first thread (`ShdPnd` and `SigPnd`, proc_pid_status(5)), but for
/// those of [`timer_signals`]; none for a process that is gone.
#[must_use]
pub fn sent_signals(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let sets = status.lines().filter_map(|line| {
        let set = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(set.trim(), 16).ok()
    });
    sets.fold(0, |all, set| all | set) & !timer_signals(pid)
}

/// Returns the signals that timers of a process may send: those of setitimer(2), and those of its own
/// (proc_pid_timers(5)). Timers go on while a process is frozen, so nobody can tell when such a signal came.
#[must_use]
pub fn timer_signals(pid: i32) -> u64 {
    let timers = fs::read_to_string(format!("/proc/{pid}/timers")).unwrap_or_default();
    // `signal: 34/00007f…`
    let own = timers.lines().filter_map(|line| {
        line.strip_prefix("signal: ")?.split('/').next()?.trim().parse::<i32>().ok()
    });
    let bit = |signal: i32| 1_u64.checked_shl((signal - 1).unsigned_abs()).unwrap_or(0);
    own.chain([libc::SIGALRM, libc::SIGVTALRM, libc::SIGPROF])
        .fold(0, |all, signal| all | bit(signal))
}

/// Returns whether a process, or a program that it starts, may change its network namespace: by
/// CAP_NET_ADMIN, or by CAP_SYS_ADMIN, with which `/proc/sys` can be made writable (capabilities(7)).
#[must_use]
pub fn may_administer_networks(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let sets = status.lines().filter_map(|line| {
        let set = line.strip_prefix("CapPrm:").or_else(|| line.strip_prefix("CapBnd:"))?;
        u64::from_str_radix(set.trim(), 16).ok()
    });
    sets.fold(0, |all, set| all | set) & (1 << CAP_NET_ADMIN | 1 << CAP_SYS_ADMIN) != 0
}

/// Returns whether a thread has given up gaining privileges (`NoNewPrivs`, proc_pid_status(5)); not one that is gone.
#[must_use]
pub fn has_no_new_privileges(process: i32, thread: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/task/{thread}/status"));
    let has = |line: &str| line.strip_prefix("NoNewPrivs:").is_some_and(|bit| bit.trim() == "1");
    status.is_ok_and(|status| status.lines().any(has))
}

/// Returns the anonymous and shared-memory pages of a process that are in memory, in bytes (proc_pid_status(5)); 0
/// for a process that is gone.
#[must_use]
pub fn resident_memory(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .filter_map(|line| line.strip_prefix("RssAnon:").or(line.strip_prefix("RssShmem:")))
        .filter_map(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .map(|kib| kib << 10)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_lie_where_the_kernel_says() {
        let own = i32::try_from(std::process::id()).unwrap();
        let (start, end) = arguments(own).unwrap();
        let length = fs::read("/proc/self/cmdline").unwrap().len() as u64;
        assert!(end - start >= length, "{start:x}-{end:x}");
        assert_eq!(arguments(i32::MAX), None);
    }
    use std::process::Command;

    #[test]
    fn a_process_has_a_start_time_and_a_dead_one_none() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(own).is_some_and(|ticks| ticks > 0));
        let mut child = Command::new("/bin/true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        assert_eq!(start_time(pid), None);
    }

    #[test]
    fn resident_memory_of_this_process_is_plausible() {
        let own = i32::try_from(std::process::id()).unwrap();
        let bytes = resident_memory(own);
        assert!(bytes > 100_000 && bytes < 1 << 36, "{bytes}");
        assert_eq!(resident_memory(i32::MAX), 0);
    }
}
