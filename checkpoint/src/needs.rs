//! What a container takes from its host, read from what an engine would build it from.
//!
//! A destination judges a container by this and by nothing that its source merely claims: the two
//! texts are the ones that podman is given. They are a peer's, so everything that this file does
//! not know to be harmless is named.

mod names;
mod text;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use crate::podman::{Info, Metadata};
use serde::de::{DeserializeOwned, Error as _};
use text::{Config, Mount, Spec};

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
/// File systems without a file of the host in them.
const KERNEL_MOUNTS: [&str; 7] =
    ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];
/// What even the superuser of an ordinary container may not change or read.
const PROTECTED: [&str; 4] = ["/proc/kcore", "/proc/sys", "/proc/sysrq-trigger", "/sys/firmware"];
/// Namespaces that every ordinary container has for itself.
const OWN_NAMESPACES: [&str; 5] = ["mount", "pid", "ipc", "uts", "network"];
/// Annotations that make a runtime read files or run programs of the host.
const ANNOTATIONS: [&str; 3] = ["run.oci.", "org.criu.", "org.systemd.property."];
/// podman's own of these, on every container.
const HARMLESS_ANNOTATIONS: [&str; 2] =
    ["org.systemd.property.KillSignal", "org.systemd.property.TimeoutStopUSec"];

/// What a container takes from its host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Why it has to be called privileged: whole sentences; empty for an ordinary container.
    pub privileged: BTreeSet<String>,
    /// Namespaces that it shares with the host or with another container, such as `network`.
    pub shared_namespaces: BTreeSet<String>,
    /// Files and directories of the host that it sees.
    pub mounts: BTreeSet<PathBuf>,
    /// Named volumes.
    pub volumes: BTreeSet<String>,
    /// Devices of the host.
    pub devices: BTreeSet<PathBuf>,
    /// Capabilities beyond those that podman gives every container, without `CAP_`.
    pub capabilities: BTreeSet<String>,
    /// Its own limit of memory, in bytes.
    pub memory_limit: Option<u64>,
    /// What no container from another host may have: short names, such as `OCI hooks`.
    pub forbidden: BTreeSet<String>,
}

impl Needs {
    /// Reads them. `info` tells which files are the engine's own on this host.
    ///
    /// # Errors
    /// When a text is not what podman and OCI write.
    pub fn read(metadata: &Metadata, info: &Info) -> Result<Self, serde_json::Error> {
        let config: Config = unambiguous(&metadata.config)?;
        let spec: Spec = unambiguous(&metadata.spec)?;
        let mut needs = Self::default();
        needs.look_at_mounts(
            &config,
            &spec,
            &[info.userdata(&config.id), info.volatile_userdata(&config.id)],
        );
        needs.look_at_devices(&spec);
        needs.look_at_confinement(&config, &spec);
        needs.look_at_namespaces(&config, &spec);
        needs.look_at_the_rest(&config, &spec);
        Ok(needs)
    }

    fn look_at_mounts(&mut self, config: &Config, spec: &Spec, own: &[PathBuf]) {
        for mount in &spec.mounts {
            if is_bind(mount) {
                if !own.iter().any(|dir| is_in(&mount.source, dir)) {
                    self.mounts.insert(mount.source.clone());
                }
            } else if !KERNEL_MOUNTS.contains(&mount.kind.as_str()) {
                self.forbidden.insert(format!("a mount of the type {:?}", mount.kind));
            }
        }
        self.mounts.extend(config.overlay_volumes.iter().flatten().map(|v| v.source.clone()));
        self.volumes.extend(config.named_volumes.iter().flatten().map(|v| v.name.clone()));
    }

    fn look_at_devices(&mut self, spec: &Spec) {
        let devices = &spec.linux.devices;
        self.devices.extend(devices.iter().flatten().map(|device| device.path.clone()));
        let rules = spec.linux.resources.devices.as_deref().unwrap_or_default();
        // Runtimes read no rule at all, and a first rule that allows, as "everything".
        if !rules.first().is_some_and(|rule| !rule.allow && rule.major.is_none()) {
            self.privileged.insert("it may use every device".into());
        }
        for rule in rules.iter().filter(|rule| rule.allow) {
            let named = devices.iter().flatten().any(|device| {
                device.kind == rule.kind
                    && Some(device.major) == rule.major
                    && Some(device.minor) == rule.minor
            });
            if !named {
                self.privileged.insert("it may use every device".into());
            }
        }
    }

    fn look_at_confinement(&mut self, config: &Config, spec: &Spec) {
        let annotated = spec.annotations.iter().flatten();
        let privileged = annotated.filter(|(name, _)| name.ends_with(".annotations.privileged"));
        if config.privileged || privileged.into_iter().any(|(_, value)| value == "TRUE") {
            self.privileged.insert("it is privileged".into());
        }
        if spec.linux.seccomp.as_ref().is_none_or(|s| s.default_action == "SCMP_ACT_ALLOW") {
            self.privileged.insert("no filter limits its system calls".into());
        }
        let hidden: BTreeSet<&str> =
            spec.linux.masked.iter().chain(&spec.linux.readonly).flatten().map(|p| &**p).collect();
        if let Some(open) = PROTECTED.iter().find(|path| !hidden.contains(*path)) {
            self.privileged.insert(format!("{open} is not protected from it"));
        }
        let sets = &spec.process.capabilities;
        let all = [&sets.bounding, &sets.effective, &sets.permitted, &sets.inheritable];
        for name in all.into_iter().chain([&sets.ambient]).flatten().flatten() {
            let name = name.strip_prefix("CAP_").unwrap_or(name);
            if !DEFAULT_CAPABILITIES.contains(&name) {
                self.capabilities.insert(name.to_owned());
            }
        }
    }

    fn look_at_namespaces(&mut self, config: &Config, spec: &Spec) {
        for kind in OWN_NAMESPACES {
            let own = spec.linux.namespaces.iter().filter(|ns| ns.kind == kind);
            // The network namespace has a path: the engine made it, and makes another one here.
            let own = own.filter(|ns| kind == "network" || ns.path.is_none());
            if own.count() != 1 {
                self.shared_namespaces.insert(kind.into());
            }
        }
        if !config.own_network || config.network_mode != "bridge" {
            self.shared_namespaces.insert("network".into());
        }
        for (kind, container) in config.other_containers() {
            if !container.is_empty() {
                self.shared_namespaces.insert(kind.into());
            }
        }
    }

    fn look_at_the_rest(&mut self, config: &Config, spec: &Spec) {
        let memory = spec.linux.resources.memory.as_ref().and_then(|memory| memory.limit);
        self.memory_limit = memory.and_then(|limit| u64::try_from(limit).ok());
        let mut forbid = |found: bool, what: &str| {
            if found {
                self.forbidden.insert(what.to_owned());
            }
        };
        forbid(spec.hooks.values().any(|list| !list.is_null()), "OCI hooks");
        forbid(!config.rootfs.as_os_str().is_empty(), "a root file system outside of an image");
        forbid(config.secrets.iter().chain(&config.env_secrets).any(is_something), "secrets");
        forbid(!config.pod.is_empty(), "a pod");
        forbid(config.dependencies.as_ref().is_some_and(|d| !d.is_empty()), "dependencies");
        forbid(
            !matches!(config.base_hosts_file.as_str(), "" | "none" | "image"),
            "a hosts file of the host",
        );
        forbid(!is_plain(Path::new(&config.timezone)), "a time zone outside of the database");
        forbid(!is_plain(Path::new(&config.cgroup_parent)), "a cgroup outside of the engine's");
        forbid(
            !matches!(config.health_log.as_str(), "" | "local" | "events_logger"),
            "a health log on the host",
        );
        forbid(!config.notify_socket.is_empty(), "a socket of the service manager");
        for (name, _) in spec.annotations.iter().flatten() {
            let risky = ANNOTATIONS.iter().any(|prefix| name.starts_with(prefix));
            if risky && !HARMLESS_ANNOTATIONS.contains(&name.as_str()) {
                forbid(true, &format!("the annotation {name}"));
            }
        }
    }
}

/// Reads a text that podman will read in the same way.
fn unambiguous<T: DeserializeOwned>(text: &[u8]) -> Result<T, serde_json::Error> {
    let value = serde_json::from_slice(text)?;
    if let Some(key) = names::ambiguous(&value) {
        return Err(serde_json::Error::custom(format_args!("{key:?} is spelt in another way")));
    }
    // From the text again: a tree has lost what was there twice.
    serde_json::from_slice(text)
}

fn is_bind(mount: &Mount) -> bool {
    mount.kind == "bind"
        || mount.options.iter().flatten().any(|option| matches!(option.as_str(), "bind" | "rbind"))
}

/// Whether `path` names something right in `dir`.
fn is_in(path: &Path, dir: &Path) -> bool {
    path.parent() == Some(dir)
        && matches!(path.components().next_back(), Some(Component::Normal(_)))
}

/// Whether a path stays where it begins.
fn is_plain(path: &Path) -> bool {
    !path.components().any(|part| part == Component::ParentDir)
}

fn is_something(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Null => false,
        serde_json::Value::Array(list) => !list.is_empty(),
        serde_json::Value::Object(map) => !map.is_empty(),
        _ => true,
    }
}
