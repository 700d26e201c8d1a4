//! The state of a container by its cgroup. podman would have to be waited for during a migration.

use std::fs;
use std::path::PathBuf;

use crate::error::Result;
use crate::host::Host;
use crate::lab::{Lab, cgroup};

/// The state of a container on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It has no process.
    Absent,
    /// All its processes are frozen.
    Frozen,
    /// It runs.
    Running,
}

/// Returns the state of the container with this ID. A running copy takes precedence over a frozen one.
pub(crate) fn state(host: &Host, id: &str) -> State {
    let mut state = State::Absent;
    for cgroup in cgroups(host, id) {
        let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
        if events.contains("populated 1") && state != State::Running {
            state = if events.contains("frozen 1") { State::Frozen } else { State::Running };
        }
    }
    state
}

/// Returns the names of the hosts on which the container runs.
pub(crate) fn runs_on<'a>(lab: &'a Lab, id: &str) -> Vec<&'a str> {
    let runs = |host: &&Host| state(host, id) == State::Running;
    lab.hosts().iter().filter(runs).map(Host::name).collect()
}

/// Returns the container's process IDs in this machine's PID namespace.
pub(crate) fn processes(host: &Host, id: &str) -> Vec<i32> {
    cgroups(host, id).iter().flat_map(|path| cgroup::processes(path)).collect()
}

/// Returns the container's cgroups on a host, without that of conmon.
pub(crate) fn cgroups(host: &Host, id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![host.path("/sys/fs/cgroup")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            // A scope of systemd has a suffix.
            let plain = name.strip_suffix(".scope").unwrap_or(&name);
            if plain.ends_with(id) && !name.contains("conmon") {
                found.push(entry.path());
            }
            directories.push(entry.path());
        }
    }
    found
}

/// Asks podman for the ID of a container.
pub(crate) fn id(host: &Host, name: &str) -> Result<String> {
    host.podman(["inspect", "--format", "{{.Id}}", name])
}
