//! Processes that have entered the container while it is being moved, as `podman exec` starts them.
//!
//! Such a process has a parent outside, so that it is none of those that CRIU finds below the container's first process.
//! Sessions that are open when the move is planned are refused then (`exec-session`).

use std::collections::BTreeSet;
use std::fs;

use checkpoint::cgroup::Cgroup;
use checkpoint::procfs;

/// Characters of a command line that an error shows.
const SHOWN: usize = 80;
/// The option of conmon for the ID of an exec session (conmon(8)).
const SESSION: &str = "-u";

/// A process has entered the container.
#[derive(Debug, thiserror::Error)]
#[error(
    "{name} was entered while it was being moved: by {session}, which runs {command:?} (process {pid}); end that, and \
     move the container again"
)]
pub struct Entered {
    name: String,
    session: String,
    command: String,
    pid: i32,
}

/// Fails if a process of a frozen container has entered it from outside. Blocks the calling thread, for some microseconds for
/// each process.
///
/// # Errors
/// [`Entered`].
pub fn check(name: &str, cgroup: &Cgroup, first: i32) -> Result<(), Entered> {
    // What cannot be read is noticed by those who need it.
    let pids = cgroup.pids().unwrap_or_default();
    let Some((pid, parent)) = entered(&pids, first, procfs::parent) else { return Ok(()) };
    let session = match session(&arguments(parent)) {
        Some(id) => format!("podman exec (session {id})"),
        None => "podman exec or another program outside".to_owned(),
    };
    let command: String = arguments(pid).join(" ").chars().take(SHOWN).collect();
    Err(Entered { name: name.to_owned(), session, command, pid })
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
        for other in [&["/usr/bin/conmon", "-u"][..], &["/usr/bin/nsenter", "-u", "b8"], &[]] {
            assert_eq!(session(&conmon(other)), None, "{other:?}");
        }
    }
}
