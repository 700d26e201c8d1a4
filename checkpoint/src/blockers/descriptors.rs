//! Descriptors of kinds that CRIU cannot carry over.

use super::found::Found;
use super::processes::Processes;

/// What a descriptor's name starts with, the finding's code, and what to do.
const UNMOVABLE: [(&str, &str, &str); 11] = [
    ("anon_inode:[io_uring]", "io-uring", "CRIU cannot save io_uring: turn it off in the program"),
    ("anon_inode:bpf", "bpf", "CRIU cannot save BPF programs: close them"),
    ("anon_inode:[perf_event]", "perf-event", "CRIU cannot save performance counters"),
    ("anon_inode:[userfaultfd]", "userfaultfd", "CRIU cannot save userfaultfd"),
    (
        "anon_inode:seccomp notify",
        "seccomp-notify",
        "CRIU cannot save who decides about system calls of others: end it",
    ),
    (
        "anon_inode:[landlock-ruleset]",
        "landlock",
        "CRIU cannot save rules of Landlock: turn it off in the program",
    ),
    ("/secretmem", "secret-memory", "CRIU cannot save secret memory: turn it off in the program"),
    ("anon_inode:kvm", "kvm", "virtual machines cannot be moved this way"),
    ("/dev/kvm", "kvm", "virtual machines cannot be moved this way"),
    ("/dev/nvidia", "gpu", "the device's state stays on this host"),
    ("/dev/dri/", "gpu", "the device's state stays on this host"),
];

/// Anonymous inodes that CRIU dumps and restores (criu/files.c, `dump_one_file`).
const MOVABLE: [&str; 7] = [
    "anon_inode:[eventfd]",
    "anon_inode:[eventpoll]",
    "anon_inode:inotify",
    "anon_inode:[fanotify]",
    "anon_inode:[signalfd]",
    "anon_inode:[timerfd]",
    "anon_inode:[pidfd]",
];

pub(super) fn check(processes: &Processes, found: &mut Found<'_>) {
    for (process, descriptor) in processes.descriptors() {
        if let Some((code, advice)) = obstacle(&descriptor.target) {
            found.add(process, code, format!("has {} open", descriptor.target), advice);
        }
    }
}

/// Code and advice, if it is one.
fn obstacle(target: &str) -> Option<(&'static str, &'static str)> {
    let known = UNMOVABLE.iter().find(|(start, ..)| target.starts_with(start));
    if let Some((_, code, advice)) = known {
        return Some((code, advice));
    }
    let is_other = target.starts_with("anon_inode:") && !MOVABLE.contains(&target);
    is_other.then_some(("descriptor", "CRIU does not know this kind of descriptor: close it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_userfaultfd_is_found() {
        let own = i32::try_from(std::process::id()).unwrap();
        // SAFETY: the call takes a number only and returns a new file descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | 1) };
        if fd < 0 {
            eprintln!("skipped: this kernel has no userfaultfd for us");
            return;
        }
        let mut found = Found::new("web");
        check(&Processes::look(&[own], own), &mut found);
        let codes: Vec<_> = found.into_findings().iter().map(|f| f.code).collect();
        assert!(codes.contains(&"userfaultfd"), "{codes:?}");
        // SAFETY: the descriptor was opened above and belongs to nobody else.
        unsafe { libc::close(i32::try_from(fd).unwrap()) };
    }

    #[test]
    fn kinds_that_nobody_knows_are_obstacles() {
        assert_eq!(obstacle("anon_inode:[eventpoll]"), None);
        assert_eq!(obstacle("/etc/passwd"), None);
        assert_eq!(obstacle("anon_inode:[new]").map(|(code, _)| code), Some("descriptor"));
        assert_eq!(obstacle("/secretmem (deleted)").map(|(code, _)| code), Some("secret-memory"));
    }
}
