//! Open files that CRIU cannot carry over.

use std::fs;
use std::path::Path;

/// A process's file that stands in the way.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OpenFile {
    pub(super) pid: i32,
    pub(super) code: &'static str,
    pub(super) target: String,
    pub(super) advice: &'static str,
}

/// What a link in `/proc/PID/fd` starts with, the finding's code, and what to do.
const UNMOVABLE: [(&str, &str, &str); 8] = [
    ("anon_inode:[io_uring]", "io-uring", "CRIU cannot save io_uring: turn it off in the program"),
    ("anon_inode:bpf", "bpf", "CRIU cannot save BPF programs: close them"),
    ("anon_inode:[perf_event]", "perf-event", "CRIU cannot save performance counters"),
    ("anon_inode:[userfaultfd]", "userfaultfd", "CRIU cannot save userfaultfd"),
    ("anon_inode:kvm", "kvm", "virtual machines cannot be moved this way"),
    ("/dev/kvm", "kvm", "virtual machines cannot be moved this way"),
    ("/dev/nvidia", "gpu", "the device's state stays on this host"),
    ("/dev/dri/", "gpu", "the device's state stays on this host"),
];

/// Most processes that are looked at; above that the rest is taken on trust.
const MOST_PIDS: usize = 10_000;

/// One finding for each process and code. Processes that have ended meanwhile are passed over.
pub(super) fn unmovable(pids: &[i32]) -> Vec<OpenFile> {
    let mut found: Vec<OpenFile> = Vec::new();
    for &pid in pids.iter().take(MOST_PIDS) {
        let Ok(links) = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")) else {
            continue;
        };
        for link in links.flatten() {
            let Ok(target) = fs::read_link(link.path()) else { continue };
            let target = target.to_string_lossy().into_owned();
            let Some((_, code, advice)) =
                UNMOVABLE.iter().find(|(start, ..)| target.starts_with(start))
            else {
                continue;
            };
            if !found.iter().any(|file| file.pid == pid && file.code == *code) {
                found.push(OpenFile { pid, code, target, advice });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_userfaultfd_is_found() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(unmovable(&[own, i32::MAX]), []);
        // SAFETY: the call takes a number only and returns a new file descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | 1) };
        if fd < 0 {
            eprintln!("skipped: this kernel has no userfaultfd for us");
            return;
        }
        let found = unmovable(&[own]);
        assert_eq!(found.iter().map(|f| f.code).collect::<Vec<_>>(), ["userfaultfd"]);
        // SAFETY: the descriptor was opened above and belongs to nobody else.
        unsafe { libc::close(i32::try_from(fd).unwrap()) };
    }
}
