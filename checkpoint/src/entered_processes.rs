//! Processes that have entered a container from outside, as `podman exec` starts them.
//!
//! Such a process has a parent outside, so that it is none of those that CRIU finds below the container's first process. An
//! engine's own list of sessions is not enough: it names sessions that have ended long ago, too.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;

use crate::cgroup::Cgroup;
use crate::procfs;

/// Characters of a command line that are shown.
const SHOWN: usize = 80;
/// The options of conmon for the ID of a container, and for that of a container or exec session (conmon(8)).
const CONTAINER: &str = "-c";
const SESSION: &str = "-u";

/// A process that has entered a container. Shown, it begins with who has started it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entered {
    /// Its ID, as seen from the host.
    pub pid: i32,
    /// Its command line, shortened.
    pub command: String,
    /// The ID of the exec session, where the parent is the monitor of one.
    pub session: Option<String>,
}

impl fmt::Display for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, command, session } = self;
        match session {
            Some(id) => write!(f, "podman exec (session {id})")?,
            None => f.write_str("podman exec or another program outside")?,
        }
        write!(f, ", which runs {command:?} (process {pid})")
    }
}

/// Returns a process of a container that has entered it from outside. `first` is the container's first process. Blocks the
/// calling thread, for some microseconds for each process. What cannot be read has not entered.
#[must_use]
pub fn find(cgroup: &Cgroup, first: i32) -> Option<Entered> {
    let pids = cgroup.pids().unwrap_or_default();
    let (pid, parent) = entered(&pids, first, procfs::parent)?;
    let session = session(&arguments(parent)).map(str::to_owned);
    Some(Entered { pid, command: arguments(pid).join(" ").chars().take(SHOWN).collect(), session })
}

/// Returns the exec sessions of a container whose monitors are at work. A monitor is there before the runtime looks whether the
/// container is frozen, and as long as the session's process is. Blocks the calling thread, for some microseconds for each
/// process of the host.
#[must_use]
pub fn sessions(container: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| session_of(&arguments(pid), container).map(str::to_owned)).collect()
}

/// Returns the ID of the exec session of a container that a conmon with these arguments was started for.
fn session_of<'a>(conmon: &'a [String], container: &str) -> Option<&'a str> {
    let is_of = conmon.windows(2).find(|pair| pair[0] == CONTAINER)?[1] == container;
    session(conmon).filter(|session| is_of && *session != container)
}

/// Returns a process whose parent is not among the others, and its parent. One that has ended meanwhile has no parent.
fn entered(pids: &[i32], first: i32, parent: impl Fn(i32) -> Option<i32>) -> Option<(i32, i32)> {
    let all: BTreeSet<i32> = pids.iter().copied().collect();
    let others = all.iter().filter(|pid| **pid != first);
    let parents = others.filter_map(|pid| Some((*pid, parent(*pid)?)));
    parents.into_iter().find(|(_, parent)| !all.contains(parent))
}

/// Returns the ID of the exec session that a conmon with these arguments was started for.
fn session(conmon: &[String]) -> Option<&str> {
    let (program, _) = conmon.split_first()?;
    let mut pairs = conmon.windows(2);
    let id = pairs.find(|pair| pair[0] == SESSION).map(|pair| pair[1].as_str())?;
    (program.ends_with("conmon") && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

fn arguments(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let all = bytes.split(|byte| *byte == 0).filter(|argument| !argument.is_empty());
    all.map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_parent_outside_has_entered() {
        // 10 is the container's first process, 9 its monitor, 30 that of an exec session.
        let tree = |pid| match pid {
            10 => Some(9),
            11 | 12 => Some(10),
            13 => Some(12),
            31 => Some(30),
            32 => Some(31),
            _ => None,
        };
        assert_eq!(entered(&[10, 11, 12, 13], 10, tree), None);
        assert_eq!(entered(&[10, 11, 31, 32], 10, tree), Some((31, 30)));
        assert_eq!(entered(&[10, 99], 10, tree), None, "it has ended");
    }

    #[test]
    fn a_session_is_named_by_its_monitor() {
        let conmon =
            |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let words =
            conmon(&["/usr/bin/conmon", "--api-version", "1", "-c", "a7", "-u", "b8", "-e"]);
        assert_eq!(session(&words), Some("b8"));
        assert_eq!(session_of(&words, "a7"), Some("b8"));
        assert_eq!(session_of(&words, "a8"), None, "another container's");
        let container = conmon(&["/usr/bin/conmon", "-c", "a7", "-u", "a7"]);
        assert_eq!(session_of(&container, "a7"), None, "the container's own monitor");
        for other in [&["/usr/bin/conmon", "-u"][..], &["/usr/bin/nsenter", "-u", "b8"], &[]] {
            assert_eq!(session(&conmon(other)), None, "{other:?}");
        }
    }
}
