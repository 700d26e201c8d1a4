//! Checks that a refused or rolled-back migration leaves both hosts, the container and its clients as they were.

use std::time::Duration;

use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::lab::Lab;
use crate::snapshot::Snapshot;

/// The time limit for a host until it is as before.
const SETTLES: Duration = Duration::from_secs(10);
/// The files that an agent keeps from its first run on: its identity, its peers' numbers, its locks, its cache of
/// podman's properties, and the directory for notes of containers with flows (not the notes).
const OWN_STATE: &[&str] = &[
    "identity.pem",
    "peers.json",
    "lock",
    "peers.lock",
    "containers.lock",
    "migrations.lock",
    "lazy-pages/",
    "lazy-pages.log",
    "journal/",
    "spool/",
    "engine.json",
    "places/",
    "places/0",
    "turns/",
    "turns/0",
    "carried/",
    "",
];

/// The state of the two hosts of a migration.
pub(super) struct Untouched<'a> {
    hosts: [(&'a Host, Snapshot); 2],
    container: Option<(String, String)>,
}

impl<'a> Untouched<'a> {
    /// Records the state of both hosts, and of the container on the source if it has to go on.
    pub(super) fn look(
        lab: &'a Lab,
        source: &str,
        destination: &str,
        container: &str,
    ) -> Result<Self> {
        let (source, destination) = (lab.host(source)?, lab.host(destination)?);
        Ok(Self {
            hosts: [(source, source.snapshot()?), (destination, destination.snapshot()?)],
            container: Some((container.to_owned(), process(source, container)?)),
        })
    }

    /// Waits until both hosts are as before, and checks that the container is the same process.
    pub(super) fn check(&self) -> Result<()> {
        for (host, before) in &self.hosts {
            before.await_return(host, SETTLES, without_own_state)?;
        }
        if let Some((name, before)) = &self.container {
            let now = process(self.hosts[0].0, name)?;
            ensure!(*before == now, "the container was {before} and is {now}");
        }
        Ok(())
    }
}

/// Returns a container's state, its process, and the sizes of its UDP sockets' receive buffers.
fn process(host: &Host, container: &str) -> Result<String> {
    let state =
        host.podman(["inspect", "--format", "{{.State.Status}} {{.State.Pid}}", container])?;
    let pid = state.trim().rsplit(' ').next().unwrap_or_default();
    let network = format!("--net=/proc/{pid}/ns/net");
    let sockets = host.run(["nsenter", &network, "ss", "-Huanm"])?;
    // skmem:(r0,rb212992,t0,…), as ss(8) prints it.
    let buffers: Vec<&str> = sockets.split([',', '(']).filter(|w| w.starts_with("rb")).collect();
    ensure!(!buffers.is_empty(), "no UDP socket of {container} is seen: {sockets}");
    Ok(format!("{} {}", state.trim(), buffers.join(" ")))
}

/// Removes the files of [`OWN_STATE`] from a snapshot.
pub(crate) fn without_own_state(mut snapshot: Snapshot) -> Snapshot {
    for directory in ["/var/lib/netmig/", "/run/netmig/"] {
        for name in OWN_STATE {
            snapshot = snapshot.without_file(&format!("{directory}{name}"));
        }
    }
    snapshot
}
