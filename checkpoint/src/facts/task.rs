//! Facts about processes and their threads.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::{ContainerFacts, Error, Kind, optional, text};
use crate::procfs;

/// Lines of `/proc/PID/status` (proc_pid_status(5)) that are facts of a process.
const OF_PROCESS: &[(&str, Kind)] = &[
    ("Name", Kind::Process),
    ("Umask", Kind::Process),
    ("Threads", Kind::Process),
    ("Uid", Kind::Credentials),
    ("Gid", Kind::Credentials),
    ("Groups", Kind::Credentials),
    ("ShdPnd", Kind::Signals),
    ("SigIgn", Kind::Signals),
    ("SigCgt", Kind::Signals),
    ("THP_enabled", Kind::Process),
];
/// The same of each thread.
const OF_THREAD: &[(&str, Kind)] = &[
    ("SigPnd", Kind::Signals),
    ("SigBlk", Kind::Signals),
    ("CapInh", Kind::Credentials),
    ("CapPrm", Kind::Credentials),
    ("CapEff", Kind::Credentials),
    ("CapBnd", Kind::Credentials),
    ("CapAmb", Kind::Credentials),
    ("NoNewPrivs", Kind::Credentials),
    ("Seccomp", Kind::Credentials),
    ("Seccomp_filters", Kind::Credentials),
];
/// Whole files of a process that are one value.
const FILES: &[(&str, Kind)] = &[
    ("oom_score_adj", Kind::Limits),
    ("coredump_filter", Kind::Limits),
    ("personality", Kind::Process),
    ("cmdline", Kind::Process),
];
/// Links of `/proc/PID/ns` (namespaces(7)).
const NAMESPACES: &[&str] = &["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
/// Fields of `/proc/PID/stat` after the command (proc_pid_stat(5)), counted from the state, which is the
/// first: session, priority, nice, and further behind the real-time priority and the policy.
const STAT: &[(usize, &str, Kind)] = &[
    (16, "nice", Kind::Scheduling),
    (37, "real-time priority", Kind::Scheduling),
    (38, "policy", Kind::Scheduling),
];

/// Returns the namespaces of a process.
pub(super) fn namespaces(process: i32) -> Result<Vec<Option<u64>>, Error> {
    NAMESPACES
        .iter()
        .map(|name| {
            let path = format!("/proc/{process}/ns/{name}");
            match fs::metadata(&path) {
                Ok(namespace) => Ok(Some(namespace.ino())),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(Error::Read { path, source }),
            }
        })
        .collect()
}

/// Reads a process and its threads; gives its number inside the container, `None` for a process that has
/// none: one that has joined the container's cgroup from outside.
pub(super) fn read(
    process: i32,
    first: &[Option<u64>],
    into: &mut ContainerFacts,
) -> Result<Option<i32>, Error> {
    let status = text(format!("/proc/{process}/status"))?;
    let Some(number) = last(&status, "NSpid") else { return Ok(None) };
    let of = |what: &str| format!("{what} of process {number}");
    let unsure = procfs::timer_signals(process);
    lines(&status, OF_PROCESS, unsure, &of, into);
    for name in ["NSpgid", "NSsid"] {
        if let Some(value) = last(&status, name) {
            into.add(Kind::Process, of(&name[2..]), value.to_string());
        }
    }
    for (file, kind) in FILES {
        if let Some(value) = optional(format!("/proc/{process}/{file}"))? {
            into.add(*kind, of(file), value.replace('\0', " ").trim_end());
        }
    }
    if let Some(label) = optional(format!("/proc/{process}/attr/current"))? {
        into.add(Kind::Credentials, of("label"), label.trim_end_matches(['\0', '\n']));
    }
    limits(&text(format!("/proc/{process}/limits"))?, &of, into);
    let shared: Vec<&str> = NAMESPACES
        .iter()
        .zip(namespaces(process)?.iter().zip(first))
        .filter(|(_, (own, first))| own == first)
        .map(|(name, _)| *name)
        .collect();
    into.add(Kind::Namespaces, of("those shared with the first"), shared.join(" "));
    timers(&optional(format!("/proc/{process}/timers"))?.unwrap_or_default(), number, into);
    threads(process, number, into)?;
    Ok(Some(number))
}

fn threads(process: i32, number: i32, into: &mut ContainerFacts) -> Result<(), Error> {
    let unsure = procfs::timer_signals(process);
    let path = format!("/proc/{process}/task");
    let entries = fs::read_dir(&path).map_err(|source| Error::Read { path, source })?;
    for entry in entries.flatten() {
        let Some(thread) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let base = format!("/proc/{process}/task/{thread}");
        let status = text(format!("{base}/status"))?;
        let inside = last(&status, "NSpid").unwrap_or(number);
        let of = |what: &str| match inside == number {
            true => format!("{what} of process {number}"),
            false => format!("{what} of thread {inside} of process {number}"),
        };
        if inside != number {
            let name = field(&status, "Name").unwrap_or_default();
            into.add(Kind::Process, of("Name"), name);
        }
        lines(&status, OF_THREAD, unsure, &of, into);
        // The sets of processors of two hosts can be compared only where both have the same ones.
        if let Some(allowed) = field(&status, "Cpus_allowed_list") {
            into.add(Kind::Scheduling, of("processors"), processors(allowed));
        }
        let stat = text(format!("{base}/stat"))?;
        let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
        let fields: Vec<&str> = behind.split_whitespace().collect();
        for (at, name, kind) in STAT {
            if let Some(value) = fields.get(*at) {
                into.add(*kind, of(name), *value);
            }
        }
        // SAFETY: ioprio_get(2) takes numbers alone; 1 is IOPRIO_WHO_PROCESS.
        let priority = unsafe { libc::syscall(libc::SYS_ioprio_get, 1, thread) };
        into.add(Kind::Scheduling, of("I/O priority"), priority.to_string());
        if let Some(slack) = optional(format!("/proc/{thread}/timerslack_ns"))? {
            into.add(Kind::Scheduling, of("timer slack"), slack.trim());
        }
    }
    Ok(())
}

/// Returns a set of processors: "all" where it is all that this host has.
fn processors(allowed: &str) -> String {
    let online = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let all = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    if [online.trim(), all.trim()].contains(&allowed) {
        "all".to_owned()
    } else {
        allowed.to_owned()
    }
}

/// Lines of `/proc/PID/limits`.
fn limits(text: &str, of: &impl Fn(&str) -> String, into: &mut ContainerFacts) {
    for line in text.lines().skip(1) {
        // "Max open files            1024                 524288               files"
        let Some((name, values)) = line.split_once("  ") else { continue };
        let values: Vec<&str> = values.split_whitespace().take(2).collect();
        into.add(Kind::Limits, of(name.trim()), values.join(" "));
    }
}

/// Reads the POSIX timers (proc_pid_timers(5)): which there are, and how each notifies.
fn timers(text: &str, process: i32, into: &mut ContainerFacts) {
    let mut id = "";
    for line in text.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        match name {
            "ID" => id = value.trim(),
            // Its number and value are told together, and the value is an address of the process's own.
            "signal" | "ClockID" => {
                into.add(
                    Kind::Timer,
                    format!("{name} of timer {id} of process {process}"),
                    value.trim(),
                );
            }
            _ => {}
        }
    }
}

/// Adds lines of a status file. Of signals that wait, those in `timers` are left out: timers go on while the original is
/// frozen.
fn lines(
    status: &str,
    wanted: &[(&str, Kind)],
    timers: u64,
    of: &impl Fn(&str) -> String,
    into: &mut ContainerFacts,
) {
    for (name, kind) in wanted {
        let Some(value) = field(status, name) else { continue };
        let waiting = name.ends_with("Pnd").then(|| u64::from_str_radix(value, 16).ok()).flatten();
        let value = match waiting {
            Some(waiting) => format!("{:016x}", waiting & !timers),
            None => value.split_whitespace().collect::<Vec<_>>().join(" "),
        };
        into.add(*kind, of(name), value);
    }
}

/// Returns a field of a status file.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Returns the last number of a field: that of the innermost namespace.
fn last(status: &str, name: &str) -> Option<i32> {
    field(status, name)?.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_inside_the_container_is_the_last_one() {
        assert_eq!(last("Name:\tsh\nNSpid:\t4711\t7\n", "NSpid"), Some(7));
        assert_eq!(last("NSpid:\t\n", "NSpid"), None);
        assert_eq!(field("Seccomp_filters:\t1\nSeccomp:\t2\n", "Seccomp"), Some("2"));
    }

    #[test]
    fn limits_are_read_by_name() {
        let mut read = ContainerFacts::default();
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max open files            1024                 524288               files     \n";
        limits(text, &|what| what.to_owned(), &mut read);
        let facts: Vec<_> = read.facts.values().collect();
        assert_eq!(facts, ["1024 524288"]);
        assert_eq!(read.facts.keys().next().unwrap().object, "Max open files");
    }

    #[test]
    fn timers_are_told_by_their_numbers() {
        let mut read = ContainerFacts::default();
        timers("ID: 0\nsignal: 14/0000\nnotify: signal/pid.7\nClockID: 1\n", 7, &mut read);
        assert_eq!(read.facts.len(), 2);
    }
}
