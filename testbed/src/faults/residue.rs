//! Finds what a migration leaves on a host and should not leave.

use std::collections::BTreeSet;
use std::fs;

use crate::error::{Context, Result};
use crate::host::Host;

/// The directories in which agents keep the state of a migration.
const DIRECTORIES: &[&str] = &["/var/lib/netmig/journal", "/var/lib/netmig/spool", "/run/netmig"];
/// The files that may stay there: locks, a guardian's log, the cache of podman's properties, and the files of the
/// reconciler of moved flows.
const KEPT: &[&str] = &[
    "lock",
    "peers.lock",
    "containers.lock",
    "migrations.lock",
    "lazy-pages",
    "lazy-pages.log",
    "places",
    "turns",
    "recover.log",
    "engine.json",
    "keeper.lock",
    "keeper.log",
    "carried",
];
/// The programs that run only during a migration.
const PASSING: &[&str] = &["agent-client", "netmig-shim", "podman", "crun", "runc", "criu"];

/// Lists the command lines of the processes that belong to a migration under way.
pub(super) fn running_programs(host: &Host) -> Result<Vec<String>> {
    let listed = host.run(["ps", "-eo", "args="])?;
    let is_passing = |line: &&str| {
        let program = line.split_whitespace().next().unwrap_or_default();
        let name = program.rsplit('/').next().unwrap_or_default();
        // A guardian, or the shim in a runtime's place.
        let ours = line.contains(" --watch ") || program.starts_with("/run/netmig/");
        // The reconciler of moved flows may stay.
        (ours || PASSING.contains(&name)) && name != "conmon" && !line.ends_with(" keep")
    };
    Ok(listed.lines().filter(is_passing).map(str::to_owned).collect())
}

/// Lists the files, processes, mounts and rules of migrations on a host.
pub(super) fn list(host: &Host) -> Result<BTreeSet<String>> {
    let mut seen = BTreeSet::new();
    let mut note = |text: String| seen.insert(format!("{}: {text}", host.name()));
    for directory in DIRECTORIES {
        for entry in fs::read_dir(host.path(directory)).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !KEPT.contains(&name.as_str()) {
                note(format!("{directory}/{name}"));
            }
        }
    }
    for process in running_programs(host)? {
        note(format!("process {process}"));
    }
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", host.init()))
        .context(|| "reading a host's mounts")?;
    for line in mounts.lines().filter(|line| line.contains(" /run/netmig")) {
        note(format!("mount {}", line.split(' ').nth(4).unwrap_or_default()));
    }
    let ruleset = host.run(["nft", "list", "ruleset"])?;
    for line in ruleset.lines().filter(|line| line.contains("comment \"netmig hold")) {
        note(format!("rule {}", line.trim()));
    }
    Ok(seen)
}
