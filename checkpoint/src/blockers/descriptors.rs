//! Descriptors of kinds that CRIU cannot carry over, POSIX message queues (mq_overview(7)) among them.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::statfs::{FsType, statfs};

use super::findings::Found;
use super::process_snapshot::Processes;

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

/// O_DIRECT (open(2)); of a pipe: every write is a packet of its own (pipe(2)).
const PACKETS: u32 = 0o40_000;

/// MQUEUE_MAGIC (ipc/mqueue.c).
const MQUEUE: FsType = FsType(0x1980_0202);
/// Where engines show the queues of a container.
const SHOWN: &str = "root/dev/mqueue";
/// What to do about a message queue.
const QUEUE_ADVICE: &str =
    "CRIU cannot save it: end the programs that use it, and remove it (mq_unlink(3))";

pub(super) fn check(processes: &Processes, found: &mut Found<'_>) {
    for (process, descriptor) in processes.descriptors() {
        if let Some((code, advice)) = obstacle(&descriptor.target) {
            found.add(process, code, format!("has {} open", descriptor.target), advice);
        } else if descriptor.target.starts_with("pipe:")
            && is_of_packets(&process.info(descriptor.number))
        {
            let what = format!("has a pipe of packets open (descriptor {})", descriptor.number);
            found.add(process, "packet-pipe", what, "CRIU cannot save it: close it");
        }
    }
}

/// Finds message queues, open or not: CRIU knows neither their descriptors nor their contents.
pub(super) fn find_message_queues(processes: &Processes, found: &mut Found<'_>) {
    let mut open = BTreeSet::new();
    for (process, descriptor) in processes.descriptors() {
        // A queue has a name and no directory, and so have few other files that are open.
        if !descriptor.target.starts_with('/') {
            continue;
        }
        let path = process.path(format!("fd/{}", descriptor.number));
        let is_queue = statfs(&path).is_ok_and(|system| system.filesystem_type() == MQUEUE);
        if is_queue {
            let what = format!("has the message queue {} open", descriptor.target);
            found.add(process, "message-queue", what, QUEUE_ADVICE);
            open.insert(descriptor.target.as_str());
        }
    }
    // A queue and its messages stay when nobody has it open.
    let Some(first) = processes.first() else { return };
    let shown = first.path(SHOWN);
    if !statfs(&shown).is_ok_and(|system| system.filesystem_type() == MQUEUE) {
        return;
    }
    for queue in fs::read_dir(shown).into_iter().flatten().flatten().take(16) {
        let name = format!("/{}", queue.file_name().to_string_lossy());
        if !open.contains(name.as_str()) {
            found.add_general(
                "message-queue",
                format!("has the message queue {name}"),
                QUEUE_ADVICE,
            );
        }
    }
}

/// Returns whether a pipe is one of packets, by its lines in proc_pid_fdinfo(5).
fn is_of_packets(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    flags
        .and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok())
        .is_some_and(|flags| flags & PACKETS != 0)
}

/// Returns the code and the advice for a descriptor that CRIU cannot carry over.
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
