//! What a container needs of its host, read from its description.
//!
//! A destination judges a container by these needs and by nothing that its source claims beside them: the engine's
//! records are written from the same description. A description cannot express what a container may never have.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::description::{Apparmor, Confinement, Description, DeviceRule, Filesystem};

/// What podman gives every container (`containers.conf(5)`, `default_capabilities`).
const DEFAULT_CAPABILITIES: [&str; 11] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// What even the superuser of an ordinary container may not change or read.
const PROTECTED: [&str; 4] = ["/proc/kcore", "/proc/sys", "/proc/sysrq-trigger", "/sys/firmware"];

/// What a container takes from its host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Why it has to be called privileged: whole sentences; empty for an ordinary container.
    pub privileged: BTreeSet<String>,
    /// Namespaces that it shares with the host, such as `pid`.
    pub shared_namespaces: BTreeSet<String>,
    /// Files and directories of the host that it sees.
    pub mounts: BTreeSet<PathBuf>,
    /// Devices of the host.
    pub devices: BTreeSet<PathBuf>,
    /// Capabilities beyond those that podman gives every container, without `CAP_`.
    pub capabilities: BTreeSet<String>,
    /// Its own limit of memory, in bytes.
    pub memory_limit: Option<u64>,
}

impl Needs {
    /// Returns what a container needs.
    #[must_use]
    pub fn of(description: &Description) -> Self {
        let confinement = &description.confinement;
        let mounts =
            description.storage.mounts.iter().filter_map(|mount| match &mount.filesystem {
                Filesystem::Host(source) => Some(source.into()),
                _ => None,
            });
        let nodes = confinement.devices.iter().map(|device| &device.path);
        let devices = nodes.chain(&confinement.requested_devices).map(PathBuf::from);
        let memory = description.resources.memory.limit;
        let shared = confinement.namespaces;
        let namespaces =
            [("pid", shared.host_pid), ("ipc", shared.host_ipc), ("uts", shared.host_uts)];
        let namespaces = namespaces.into_iter().filter(|(_, is_hosts)| *is_hosts);
        Self {
            privileged: privileges(description),
            shared_namespaces: namespaces.map(|(kind, _)| kind.to_owned()).collect(),
            mounts: mounts.collect(),
            devices: devices.collect(),
            capabilities: capabilities(description),
            memory_limit: memory.and_then(|limit| u64::try_from(limit).ok()),
        }
    }
}

fn privileges(description: &Description) -> BTreeSet<String> {
    let confinement = &description.confinement;
    let mut found = BTreeSet::new();
    let mut say = |is_so: bool, what: &str| {
        if is_so {
            found.insert(what.to_owned());
        }
    };
    say(confinement.privileged, "it is privileged");
    let filter = confinement.seccomp.as_ref();
    let is_open = filter.is_none_or(|filter| {
        matches!(filter.default_action.as_str(), "" | "SCMP_ACT_ALLOW" | "SCMP_ACT_LOG")
    });
    say(is_open, "no filter limits its system calls");
    say(confinement.apparmor == Apparmor::Unconfined, "AppArmor does not confine it");
    say(confinement.all_devices || may_use_any_device(confinement), "it may use every device");
    say(is_unprotected(description), "it sees files of the kernel's where nothing protects them");
    let hidden = || confinement.masked_paths.iter().chain(&confinement.readonly_paths);
    if let Some(path) = PROTECTED.into_iter().find(|path| !hidden().any(|hidden| hidden == path)) {
        say(true, &format!("{path} is not protected from it"));
    }
    found
}

/// Returns whether it sees the kernel's settings by another way than that on which paths are masked, or could
/// change control groups of others.
fn is_unprotected(description: &Description) -> bool {
    let sees_all_groups = description.confinement.namespaces.host_cgroup;
    description.storage.mounts.iter().any(|mount| {
        let has = |option: &str| mount.options.iter().any(|other| other == option);
        let can_change = has("rw") || !has("ro");
        match mount.filesystem {
            Filesystem::Proc => mount.destination != "/proc",
            Filesystem::Sysfs => mount.destination != "/sys" || can_change,
            Filesystem::Cgroup => sees_all_groups && can_change,
            _ => false,
        }
    })
}

/// Returns whether it may use others than those that it has.
fn may_use_any_device(confinement: &Confinement) -> bool {
    let rules = &confinement.device_rules;
    // Runtimes read no rule at all, and a first rule that allows, as "everything".
    let begins_with_none = rules.first().is_some_and(|rule| {
        let is_of_all =
            matches!(rule.kind.as_str(), "" | "a") && rule.major.or(rule.minor).is_none();
        !rule.allow && is_of_all && "rwm".chars().all(|access| rule.access.contains(access))
    });
    let is_named = |rule: &&DeviceRule| {
        confinement.devices.iter().any(|device| {
            device.kind == rule.kind
                && Some(device.major) == rule.major
                && Some(device.minor) == rule.minor
        })
    };
    !begins_with_none || rules.iter().filter(|rule| rule.allow).any(|rule| !is_named(&rule))
}

fn capabilities(description: &Description) -> BTreeSet<String> {
    let sets = &description.process.capabilities;
    let all = [&sets.bounding, &sets.effective, &sets.permitted, &sets.inheritable, &sets.ambient];
    let names = all.into_iter().flatten().map(|name| name.strip_prefix("CAP_").unwrap_or(name));
    names.filter(|name| !DEFAULT_CAPABILITIES.contains(name)).map(str::to_owned).collect()
}
