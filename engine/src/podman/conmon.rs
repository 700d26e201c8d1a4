//! conmon, which tells podman when a container ends.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The name of conmon's program.
const CONMON: &str = "conmon";

/// Kills the conmon of a container, so that podman does not notice the container's end and start it again by
/// its restart policy. Another process that has the number by now is left alone.
///
/// # Errors
/// The kernel refuses.
pub(super) fn kill(pid: i32, container: &str) -> io::Result<()> {
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
    if !is_conmon(pid, container) {
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

/// Returns whether a process is conmon with this container's ID among its arguments.
fn is_conmon(pid: i32, container: &str) -> bool {
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
    fn only_the_conmon_of_that_container_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let conmon = dir.path().join(CONMON);
        std::fs::copy("/bin/sh", &conmon).unwrap();
        let mut child = Command::new(&conmon)
            .args(["-c", "read line", "-u", ID])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        while !is_conmon(pid, ID) {
            std::thread::yield_now();
        }
        kill(pid, &ID.replace('c', "d")).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        kill(pid, ID).unwrap();
        assert!(!child.wait().unwrap().success());
        kill(pid, ID).unwrap();
        kill(0, ID).unwrap();
    }
}
