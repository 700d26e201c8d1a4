//! The baseline: `podman container checkpoint --export`, a copy of the archive, and `podman container restore
//! --import`.

use std::fs;
use std::time::Instant;

use super::fixture::{self, Clients, NAME};
use crate::error::{Context, Result};
use crate::lab::{Lab, Runtime};

/// CRIU's options. Otherwise it would put the tasks into the cgroups of every hierarchy, which fails with hierarchies
/// of version 1. The runtime has created the cgroup already.
const OPTIONS: &str = "manage-cgroups=ignore\n";
/// The path of the archive on both hosts.
const ARCHIVE: &str = "/root/checkpoint.tar";

/// Moves a fresh container by podman under the default clients, and removes it. Returns the time in milliseconds from
/// the start of the checkpoint until a *new* connection to the destination is answered. Open connections are reset.
///
/// The archive is not compressed. This program copies it from file to file, which is faster than any network between
/// the hosts.
pub(super) fn measure(lab: &Lab, runtime: Runtime) -> Result<f64> {
    measure_with(lab, runtime, &[])
}

/// The same with further arguments of the server.
pub(super) fn measure_with(lab: &Lab, runtime: Runtime, serve: &[&str]) -> Result<f64> {
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let server = fixture::start(a, c, runtime, NAME, 7000, serve)?;
    [a, b].into_iter().try_for_each(|host| fixture::set_criu_options(host, OPTIONS))?;
    let clients = Clients::start(c, server)?;
    let began = Instant::now();
    let export = ["--tcp-established", "--compress", "none", "--export", ARCHIVE, NAME];
    a.podman(["container", "checkpoint"].into_iter().chain(export))?;
    fs::copy(a.path(ARCHIVE), b.path(ARCHIVE)).context(|| "copying a checkpoint")?;
    b.podman(["container", "restore", "--tcp-established", "--import", ARCHIVE])?;
    c.probe().wait_for_echo(b.port(7000), fixture::START_LIMIT)?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    drop(clients);
    for host in [a, b] {
        fixture::remove_criu_options(host)?;
        fixture::remove(host, NAME)?;
        let archive = host.path(ARCHIVE);
        fs::remove_file(&archive).context(|| format!("removing {}", archive.display()))?;
    }
    Ok(took)
}
