//! Epoll instances that wait for something which the process has no number for any more.
//!
//! The kernel keeps an entry as long as the file behind it is open anywhere (epoll(7)); CRIU has to find it
//! among the descriptors of the process (criu/eventpoll.c).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use super::findings::Found;
use super::process_snapshot::{Process, Processes};

const EPOLL: &str = "anon_inode:[eventpoll]";

/// An entry: the number under which it was added, and the inode (proc_pid_fdinfo(5)).
type Entry = (i32, u64);

pub(super) fn check(processes: &Processes, found: &mut Found<'_>) {
    // An instance that several processes share is dumped once, as the first of them has it.
    let mut seen: BTreeSet<Vec<Entry>> = BTreeSet::new();
    for (process, descriptor) in processes.descriptors() {
        if descriptor.target != EPOLL {
            continue;
        }
        let entries = entries(&process.info(descriptor.number));
        let lacking = entries.iter().find(|entry| !has(process, **entry)).copied();
        if let (true, Some((number, _))) = (seen.insert(entries), lacking) {
            found.add(
                process,
                "epoll-closed",
                format!("waits by epoll for descriptor {number}, which it has closed"),
                "another process has it open still: end that one, or restart this one",
            );
        }
    }
}

/// The lines `tfd:  N events: … ino:HEX sdev:HEX`.
fn entries(info: &str) -> Vec<Entry> {
    let entry = |line: &str| {
        let mut words = line.strip_prefix("tfd:")?.split_ascii_whitespace();
        let number = words.next()?.parse().ok()?;
        let inode = words.find_map(|word| word.strip_prefix("ino:"))?;
        Some((number, u64::from_str_radix(inode, 16).ok()?))
    };
    info.lines().filter_map(entry).collect()
}

/// Whether a process has what an entry means, under that number or another one.
fn has(process: &Process, (number, inode): Entry) -> bool {
    let is = |number: i32| {
        fs::metadata(process.path(format!("fd/{number}"))).is_ok_and(|file| file.ino() == inode)
    };
    is(number) || process.descriptors.iter().any(|descriptor| is(descriptor.number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read() {
        let info = "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1057\n\
                    tfd:        5 events:       19 data:                5  pos:0 ino:2a sdev:8\n\
                    tfd:       77 events:       19 data:                7  pos:0 ino:3f1 sdev:9\n";
        assert_eq!(entries(info), [(5, 0x2a), (77, 0x3f1)]);
    }
}
