//! What of a container cannot be moved, and what will differ afterwards.
//!
//! Everything that stands in the way is named at once, each with what to do about it. The codes
//! are stable: programs may depend on them. Each subject has a file of its own; all of them look at one
//! [snapshot](processes) of the container's processes.

mod declared;
mod deleted;
mod descriptors;
mod epoll;
mod found;
mod inodes;
mod landlock;
mod message_queues;
mod mounts;
mod namespaces;
mod processes;
mod service;
mod socket_families;
mod traced;
mod unix_diag;
mod unix_names;
mod watches;

use std::path::PathBuf;
use std::time::Duration;

pub use self::landlock::{MAYBE_LANDLOCK, is_there as has_landlock};

use self::found::Found;
use self::mounts::Mounts;
use self::processes::Processes;
use crate::cgroup::Cgroup;
use crate::container::{Container, State};

/// How often a process in which something was found is looked at again, and how long it runs in between.
const MORE_LOOKS: usize = 3;
const BETWEEN_LOOKS: Duration = Duration::from_millis(7);

/// One thing that stands in the way, or that will differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A stable name, in kebab case.
    pub code: &'static str,
    /// What it is and what to do, with the object's name.
    pub message: String,
}

/// What was found.
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

/// Looks at a container. It must run on the container's host, since it looks into `/proc`.
#[must_use]
pub fn look(container: &Container) -> Findings {
    let mut findings = Findings {
        blockers: declared::findings(container),
        warnings: declared::warnings(container),
        watched: Vec::new(),
    };
    if container.state == State::Running {
        running(container, &mut findings);
    }
    findings
}

/// What only the container's processes show.
fn running(container: &Container, findings: &mut Findings) {
    let cgroup = match Cgroup::of_pid(container.pid, &container.id) {
        Ok(cgroup) => cgroup,
        Err(error) => {
            findings.blockers.push(Finding { code: "cgroup", message: error.to_string() });
            return;
        }
    };
    if let Some(unit) = service::unit(container) {
        let name = &container.name;
        findings.blockers.push(Finding {
            code: "service-unit",
            message: format!(
                "{name} is run by {unit}, which would start another {name} here after the move; stop the \
                 unit, start {name} by podman without it (podman run --detach), and move it then"
            ),
        });
    }
    let processes = Processes::look(&cgroup.pids().unwrap_or_default(), container.pid);
    findings.blockers.extend(lasting(&container.name, &cgroup, &processes, container.pid));
    let mounts = Mounts::of_process(container.pid);
    let mut found = Found::new(&container.name);
    // Both look for names of what they know the number of; one search does for both.
    let mut search = inodes::Search::new(container.pid, &mounts);
    let watches = watches::Watches::read(&processes, &mounts, &mut search);
    let sockets = unix_names::Bound::read(container.pid, &mut search);
    search.run();
    findings.watched = watches.check(&search, &mut found);
    sockets.check(&search, &mut found);
    findings.blockers.extend(found.into_findings());
    findings.blockers.extend(landlock::finding(container, &processes));
}

/// What of the processes themselves stands in the way. They run meanwhile: a descriptor that is closed between
/// two reads of a look would be taken for one that was closed for good. So what is found must be found again.
fn lasting(name: &str, cgroup: &Cgroup, first: &Processes, first_pid: i32) -> Vec<Finding> {
    let look = |processes: &Processes| {
        let mut found = Found::new(name);
        traced::check(processes, &mut found);
        namespaces::check(processes, &mut found);
        descriptors::check(processes, &mut found);
        socket_families::check(processes, &mut found);
        epoll::check(processes, &mut found);
        message_queues::check(processes, &mut found);
        deleted::check(processes, &mut found);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_container_without_cgroup_is_an_obstacle() {
        let container = Container {
            id: "a7".repeat(32),
            state: State::Running,
            network_mode: "bridge".into(),
            ..Container::default()
        };
        let found = look(&container).blockers;
        assert_eq!(found.last().map(|finding| finding.code), Some("cgroup"));
    }
}
