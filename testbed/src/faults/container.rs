//! A container as the kernel of its host knows it, by its cgroup: podman would have to be waited for.

use std::fs;
use std::path::PathBuf;

use crate::error::Result;
use crate::host::Host;
use crate::lab::{Lab, cgroup};

/// A container on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// No process of it is there.
    Absent,
    /// All of its processes are frozen.
    Frozen,
    /// It runs.
    Running,
}

/// What a container with this ID does on a host. Of several copies a running one counts.
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

/// The hosts of a lab on which the container does not stand still.
pub(crate) fn runs_on<'a>(lab: &'a Lab, id: &str) -> Vec<&'a str> {
    let runs = |host: &&Host| state(host, id) == State::Running;
    lab.hosts().iter().filter(runs).map(Host::name).collect()
}

/// The container's processes on a host, as this machine numbers them.
pub(crate) fn processes(host: &Host, id: &str) -> Vec<i32> {
    cgroups(host, id).iter().flat_map(|path| cgroup::processes(path)).collect()
}

/// The container's cgroups on a host, without that of its conmon.
pub(crate) fn cgroups(host: &Host, id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![host.path("/sys/fs/cgroup")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            // systemd's scopes have a suffix.
            let plain = name.strip_suffix(".scope").unwrap_or(&name);
            if plain.ends_with(id) && !name.contains("conmon") {
                found.push(entry.path());
            }
            directories.push(entry.path());
        }
    }
    found
}

/// The ID of a container, from the podman of its host.
pub(crate) fn id(host: &Host, name: &str) -> Result<String> {
    host.podman(["inspect", "--format", "{{.Id}}", name])
}
