//! Reads the progress of migrations from the files of a lab host: journals, arrived images, and podman's process ID.

use std::fs;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::host::Host;

/// The directory with the journals of migrations that have not ended.
const JOURNALS: &str = "/var/lib/netmig/journal";

/// Returns the texts of a host's journals.
pub(crate) fn journals(host: &Host) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(host.path(JOURNALS)).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_to_string(entry.path()).ok())
}

/// Returns whether any journal of a host has a record of this name.
pub(crate) fn has_record(host: &Host, record: &str) -> bool {
    let wanted = format!("\"{record}\"");
    journals(host).any(|text| text.contains(&wanted))
}

/// Returns the `interruption` record of the source's journal.
pub(super) fn interruption_record(host: &Host) -> Result<serde_json::Value> {
    journals(host)
        .find_map(|text| {
            let line = text.lines().find(|line| line.contains("\"interruption\""))?;
            serde_json::from_str(line).ok()
        })
        .ok_or_else(|| Error::Check("no journal has an interruption record".to_owned()))
}

/// Returns the cgroup of the interrupted container, as the source's journal names it.
pub(crate) fn interrupted_cgroup(host: &Host) -> Result<PathBuf> {
    let record = interruption_record(host)?;
    let path = record["cgroup"].as_str().map(|path| host.path(path));
    path.ok_or_else(|| Error::Check("the journal names no cgroup".to_owned()))
}

/// Returns whether the last image that CRIU writes has arrived at a host.
pub(super) fn dump_has_arrived(host: &Host) -> bool {
    let arrivals = fs::read_dir(host.path("/run/netmig")).into_iter().flatten().flatten();
    arrivals
        .filter_map(|entry| fs::metadata(entry.path().join("images/inventory.img")).ok())
        .any(|image| image.len() > 0)
}

/// Returns the process ID, in the host's PID namespace, of the podman that imports a container.
pub(crate) fn importing_podman(host: &Host) -> Option<i32> {
    fs::read_dir(host.path("/run/netmig")).into_iter().flatten().flatten().find_map(|entry| {
        let text = fs::read_to_string(entry.path().join("stage/podman.pid")).ok()?;
        text.split(' ').next()?.parse().ok()
    })
}
