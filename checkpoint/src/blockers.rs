//! Obstacles in a container's processes: what CRIU cannot dump or restore.
//!
//! All obstacles are reported at once, each with what to do about it. The codes are stable: programs may depend on
//! them. Each subject has a file of its own. All of them look at one snapshot of the container's processes.

mod deleted_files;
mod descriptors;
mod epoll;
mod findings;
mod inode_names;
mod process_attributes;
mod process_snapshot;
mod socket_families;
mod unix_names;
mod watches;

use std::path::PathBuf;
use std::time::Duration;

use self::findings::Found;
use self::process_snapshot::Processes;
use crate::cgroup::Cgroup;
use crate::mountinfo::Mounts;

/// How often a process in which something was found is looked at again, and how long it runs in between.
const MORE_LOOKS: usize = 3;
const BETWEEN_LOOKS: Duration = Duration::from_millis(7);

/// An obstacle to the move, or something that will differ after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A stable name, in kebab case.
    pub code: &'static str,
    /// What it is and what to do, with the object's name.
    pub message: String,
}

/// All findings of one look at a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Everything that stands in the way.
    pub blockers: Vec<Finding>,
    /// What will differ after the move, although the container can be moved.
    pub warnings: Vec<Finding>,
    /// Files and directories in the container that are watched, by which CRIU finds them
    /// (`irmap-scan-path`, criu(8)): a watch itself does not tell.
    pub watched: Vec<PathBuf>,
}

/// The container whose processes are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The container's name, for messages.
    pub name: &'a str,
    /// Its first process, as seen from the host.
    pub pid: i32,
}

/// Looks at the processes of a container of this host, which are those in `cgroup`. Blocks the calling thread.
#[must_use]
pub fn look(subject: &Subject<'_>, cgroup: &Cgroup) -> Findings {
    let mut findings = Findings::default();
    let processes = Processes::look(&cgroup.pids().unwrap_or_default(), subject.pid);
    findings.blockers.extend(lasting(subject.name, cgroup, &processes, subject.pid));
    let mounts = Mounts::of_process(subject.pid);
    let mut found = Found::new(subject.name);
    // Both look for names of what they know the number of; one search does for both.
    let mut search = inode_names::Search::new(subject.pid, &mounts);
    let watches = watches::Watches::read(&processes, &mounts, &mut search);
    let sockets = unix_names::Bound::read(subject.pid, &mut search);
    search.run();
    findings.watched = watches.check(&search, &mut found);
    sockets.check(&search, &mut found);
    findings.blockers.extend(found.into_findings());
    findings
}

/// Finds obstacles in the processes themselves. The processes run meanwhile: a descriptor that is closed between two
/// reads of one look would count as closed for good. So an obstacle must be found again by the next look.
fn lasting(name: &str, cgroup: &Cgroup, first: &Processes, first_pid: i32) -> Vec<Finding> {
    let look = |processes: &Processes| {
        let mut found = Found::new(name);
        process_attributes::find_traced(processes, &mut found);
        process_attributes::find_namespaces(processes, &mut found);
        process_attributes::find_other_users(processes, &mut found);
        descriptors::check(processes, &mut found);
        socket_families::check(processes, &mut found);
        epoll::check(processes, &mut found);
        descriptors::find_message_queues(processes, &mut found);
        deleted_files::check(processes, &mut found);
        found
    };
    let mut lasting = look(first);
    for _ in 0..MORE_LOOKS {
        if lasting.is_empty() {
            break;
        }
        std::thread::sleep(BETWEEN_LOOKS);
        lasting.keep(&look(&Processes::look(&cgroup.pids().unwrap_or_default(), first_pid)));
    }
    lasting.into_findings()
}
