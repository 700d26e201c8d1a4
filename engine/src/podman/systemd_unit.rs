//! A service manager that would start a container again where it was.
//!
//! A unit notices that its container has gone, and starts another one beside the one that was moved. The
//! unit is found by podman's label, by the cgroup of conmon, and by that of a `podman run` which is attached to
//! the container: conmon's socket tells who is at its other end (sock_diag(7)).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use checkpoint::unix_diag::{self, UnixSocket};

use crate::inspect::Container;

/// Label by which podman knows the unit that runs a container (podman-auto-update(1)).
const LABEL: &str = "PODMAN_SYSTEMD_UNIT";
/// Units that run no container: netmig's own and podman's, below which containers are made that stay.
const NOT_ITS_OWN: [&str; 5] = [
    "agent-server.service",
    "netmig-recover.service",
    "podman.service",
    "podman-restart.service",
    "podman-auto-update.service",
];
/// The engine's program.
const PODMAN: &str = "podman";

/// Returns the unit of a service manager that runs a container, if one does.
pub(super) fn unit(container: &Container) -> Option<String> {
    if let Some(unit) = container.labels.get(LABEL).filter(|unit| !unit.is_empty()) {
        return Some(unit.clone());
    }
    unit_of(container.monitor_pid).or_else(|| attached(container.monitor_pid))
}

/// The service in whose cgroup a process is.
fn unit_of(pid: i32) -> Option<String> {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    service(&cgroups)
}

/// The innermost service that the text of a `/proc/PID/cgroup` names.
fn service(cgroups: &str) -> Option<String> {
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let is_one = |name: &&str| name.ends_with(".service") && !name.starts_with("user@");
    let unit = path.split('/').rfind(is_one)?;
    (!NOT_ITS_OWN.contains(&unit)).then(|| unit.to_owned())
}

/// The service of a podman that is attached to the container of this conmon.
fn attached(monitor: i32) -> Option<String> {
    let podmans: Vec<(i32, String)> = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == PODMAN
        })
        .filter_map(|pid| Some((pid, unit_of(pid)?)))
        .collect();
    if podmans.is_empty() {
        return None;
    }
    let peers = unix_peers().unwrap_or_default();
    let far: Vec<u64> =
        sockets(monitor).into_iter().filter_map(|socket| peers.get(&socket).copied()).collect();
    podmans
        .into_iter()
        .find(|(pid, _)| sockets(*pid).iter().any(|socket| far.contains(socket)))
        .map(|(_, unit)| unit)
}

/// The sockets that a process has open, by their inodes.
fn sockets(pid: i32) -> Vec<u64> {
    let entries = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"));
    entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter_map(|target| {
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        })
        .collect()
}

/// The other end of each connected unix socket of this network namespace, by inode.
fn unix_peers() -> io::Result<BTreeMap<u64, u64>> {
    let pair = |socket: UnixSocket| Some((socket.inode.into(), socket.peer?.into()));
    Ok(unix_diag::list()?.into_iter().filter_map(pair).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_found_in_cgroups() {
        let found = |path: &str| service(&format!("1:name=x:/y\n0::{path}\n"));
        assert_eq!(found("/system.slice/w.service"), Some("w.service".to_owned()));
        assert_eq!(found("/system.slice/w.service/libpod-payload-1"), Some("w.service".to_owned()));
        let user = "/user.slice/user-0.slice/user@0.service/app.slice/w.service";
        assert_eq!(found(user), Some("w.service".to_owned()));
        for none in [
            "/user.slice/user-0.slice/user@0.service/user.slice/libpod-conmon-1.scope",
            "/machine.slice/libpod-conmon-1.scope",
            "/system.slice/agent-server.service",
            "/system.slice/podman.service",
            "/",
        ] {
            assert_eq!(found(none), None, "{none}");
        }
    }
}
