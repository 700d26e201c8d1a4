//! Processes by their numbers, told from later ones of the same number.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Numbers of capabilities (`include/uapi/linux/capability.h`).
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
/// The name of podman's monitor of containers.
const CONMON: &str = "conmon";

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

/// Returns the number that a process has in the innermost of its process namespaces: the last one of the
/// line `NSpid` (proc_pid_status(5)).
#[must_use]
pub fn inner_pid(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_ascii_whitespace().last()?.parse().ok()
}

/// Kills the monitor of a container (conmon), so that nobody notices the container's end and starts it again
/// by its restart policy. A number that is another process's by now, or nobody's, is left alone.
///
/// # Errors
/// The kernel refuses.
pub fn kill_monitor(pid: i32, container: &str) -> io::Result<()> {
    if pid <= 1 {
        return Ok(());
    }
    // SAFETY: pidfd_open(2) takes numbers alone.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if pidfd < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) };
    }
    // SAFETY: the kernel has just made this descriptor for us alone; it fits into an int.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd as i32) };
    // Looked at after the descriptor was opened: it is the process that is killed.
    if !is_monitor(pid, container) {
        return Ok(());
    }
    let no_info = std::ptr::null::<libc::siginfo_t>();
    let number = pidfd.as_raw_fd();
    // SAFETY: pidfd_send_signal(2) with a descriptor of ours and no further information.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, number, libc::SIGKILL, no_info, 0) };
    match sent {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(error),
        },
    }
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

/// Returns whether a process is conmon with this container's ID among its arguments.
fn is_monitor(pid: i32, container: &str) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    name.trim() == CONMON
        && arguments.split(|byte| *byte == 0).any(|word| word == container.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    const ID: &str = "c0ffee0123456789c0ffee0123456789c0ffee0123456789c0ffee0123456789";

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
    fn only_the_monitor_of_that_container_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let conmon = dir.path().join(CONMON);
        std::fs::copy("/bin/sh", &conmon).unwrap();
        let mut child = Command::new(&conmon)
            .args(["-c", "read line", "-u", ID])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        while !is_monitor(pid, ID) {
            std::thread::yield_now();
        }
        kill_monitor(pid, &ID.replace('c', "d")).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        kill_monitor(pid, ID).unwrap();
        assert!(!child.wait().unwrap().success());
        kill_monitor(pid, ID).unwrap();
        kill_monitor(0, ID).unwrap();
    }
}
