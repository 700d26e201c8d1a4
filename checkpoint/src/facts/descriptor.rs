//! Facts about open files, the locks on them, and their watches.

use std::fs;

use super::{ContainerFacts, Error, Kind, text};

/// Lines of `/proc/PID/fdinfo/FD` (proc_pid_fdinfo(5)) that are equal on both hosts.
const LINES: &[&str] = &["pos", "eventfd-count", "sigmask", "clockid", "settime flags"];

/// Reads the open files of a process, whose number inside the container is `number`.
pub(super) fn read(process: i32, number: i32, into: &mut ContainerFacts) -> Result<(), Error> {
    let path = format!("/proc/{process}/fd");
    let entries = fs::read_dir(&path).map_err(|source| Error::Read { path, source })?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let link = fs::read_link(entry.path());
        let link = link.map(|link| link.to_string_lossy().into_owned()).unwrap_or_default();
        let info = text(format!("/proc/{process}/fdinfo/{name}"))?;
        let object = format!("{name} of process {number}");
        let mut value = target(&link);
        let mut watches = Vec::new();
        for line in info.lines() {
            let Some((key, rest)) = line.split_once(':') else { continue };
            let rest = rest.trim();
            match key {
                "flags" => value.push_str(&format!(" flags={:o}", flags(rest))),
                // A terminal's or pipe's position means nothing.
                "pos" if !link.starts_with('/') || link.starts_with("/dev/") => {}
                key if LINES.contains(&key) => {
                    value.push_str(&format!(" {key}={rest}"));
                }
                "lock" => into.add(Kind::Lock, format!("lock by {object}"), lock(rest)),
                // The number may be one that the process has closed since, and CRIU gives it another one.
                "tfd" => watches.push(format!(" epoll {}", epoll_entry(after_number(rest)))),
                "inotify wd" => watches.push(format!(" watch {}", watched(rest))),
                _ => {}
            }
        }
        // Their order is that of addresses in the kernel.
        watches.sort_unstable();
        value.extend(watches);
        into.add(Kind::Descriptor, object, value);
    }
    Ok(())
}

/// Returns what a descriptor leads to, without numbers that each kernel gives anew.
fn target(link: &str) -> String {
    match link.split_once(":[") {
        // pipe:[123], socket:[123]; an anonymous inode has a name there.
        Some((kind, number)) if number.trim_end_matches(']').parse::<u64>().is_ok() => {
            kind.to_owned()
        }
        _ => link.to_owned(),
    }
}

/// Returns the rest of a line that begins with a number.
fn after_number(line: &str) -> &str {
    line.trim_start().split_once(' ').map_or("", |(_, rest)| rest)
}

/// Returns flags of open(2), without O_LARGEFILE, which a 64-bit program is given or not by how the file was opened, and
/// without O_TMPFILE, which means something to open(2) alone: CRIU opens a file without a name in another way.
fn flags(octal: &str) -> u32 {
    const LARGE_FILE: u32 = 0o100_000;
    const WITHOUT_NAME: u32 = 0o20_000_000;
    const DIRECTORY: u32 = 0o200_000;
    let flags = u32::from_str_radix(octal, 8).unwrap_or(u32::MAX) & !LARGE_FILE;
    match flags & WITHOUT_NAME {
        0 => flags,
        _ => flags & !(WITHOUT_NAME | DIRECTORY),
    }
}

/// Returns an entry of epoll as [`watched`] does. The kernel adds EPOLLERR and EPOLLHUP to the events of every entry, and takes
/// them away, with all others, from one that has been told of once (EPOLLONESHOT). An entry that CRIU adds has them again:
/// its program may be told once more that a file has ended, and asks the file in any case.
fn epoll_entry(line: &str) -> String {
    const ERROR_OR_END: u32 = 0x18;
    const ONCE: u32 = 1 << 30;
    let entry = watched(line);
    let events = entry.strip_prefix("events ").and_then(|hex| u32::from_str_radix(hex, 16).ok());
    match events {
        Some(events) if events & ONCE != 0 => format!("events {:x}", events & !ERROR_OR_END),
        _ => entry,
    }
}

/// Returns a lock without its number, process, device and inode: "1: FLOCK  ADVISORY  WRITE 7 00:2a:17 0
/// EOF".
fn lock(line: &str) -> String {
    let fields: Vec<&str> = line.split_whitespace().skip(1).collect();
    let kept = fields.iter().take(3).chain(fields.iter().skip(5));
    kept.copied().collect::<Vec<_>>().join(" ")
}

/// Returns what is watched, without what names an inode or an address: a descriptor or watch by its number,
/// and the events.
fn watched(line: &str) -> String {
    let (front, _) = line.split_once("data:").unwrap_or((line, ""));
    let is_kept = |word: &&str| !word.contains(':') || word.starts_with("mask:");
    let words: Vec<&str> =
        front.split_whitespace().map(|word| word.trim_end_matches(':')).collect();
    words.into_iter().filter(is_kept).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_this_kernel_are_left_out() {
        assert_eq!(target("socket:[4711]"), "socket");
        assert_eq!(target("/var/log/x"), "/var/log/x");
        assert_eq!(target("anon_inode:[eventpoll]"), "anon_inode:[eventpoll]");
        assert_eq!(flags("0100001"), flags("01"));
        assert_ne!(flags("02004001"), flags("02000001"));
        assert_eq!(flags("022200002"), flags("02000002"), "O_TMPFILE");
        assert_ne!(flags("02200000"), flags("02000000"), "O_DIRECTORY alone");
        assert_eq!(
            lock("1: FLOCK  ADVISORY  WRITE 7 00:2a:17 0 EOF"),
            "FLOCK ADVISORY WRITE 0 EOF"
        );
        let epoll = "       5 events:       19 data:        5  pos:0 ino:61 sdev:9";
        assert_eq!(watched(after_number(epoll)), "events 19");
        assert_eq!(epoll_entry(after_number(epoll)), "events 19");
        let fired = "       5 events: c0000000 data:        5  pos:0 ino:61 sdev:9";
        let added_again = "       5 events: c0000018 data:        5  pos:0 ino:61 sdev:9";
        let waits = "       5 events: c0000019 data:        5  pos:0 ino:61 sdev:9";
        let entry = |line| epoll_entry(after_number(line));
        assert_eq!(entry(fired), entry(added_again));
        assert_ne!(entry(fired), entry(waits));
        assert_eq!(
            watched("1 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8"),
            "1 mask:800afce"
        );
    }
}
