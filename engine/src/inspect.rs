//! A container as its engine describes it: plain data, the same for every engine.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// One line of the list of running containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The full ID, 64 hexadecimal digits.
    pub id: String,
    /// The name.
    pub name: String,
    /// The image's name.
    pub image: String,
    /// The ports published on the host.
    pub ports: Vec<PublishedPort>,
    /// The names of its networks.
    pub networks: Vec<String>,
    /// For how long it has been up, in the engine's words.
    pub status: String,
}

/// A container, as far as moving it needs to know it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    /// The full ID, 64 hexadecimal digits.
    pub id: String,
    /// The name.
    pub name: String,
    /// The image it was made from.
    pub image: Image,
    /// Its first process, as seen from the host; 0 when it does not run.
    pub pid: i32,
    /// The process that watches it (podman: conmon); 0 when there is none.
    pub monitor_pid: i32,
    /// What it is doing.
    pub state: State,
    /// The OCI runtime.
    pub runtime: Runtime,
    /// The OCI bundle: the directory of `config.json` (podman: `userdata`).
    pub bundle: PathBuf,
    /// The storage driver; only `overlay` has layers of its own.
    pub storage_driver: String,
    /// The overlay's writable layer.
    pub upper: Option<PathBuf>,
    /// The mounted root file system.
    pub merged: Option<PathBuf>,
    /// A root file system that belongs to no image (`--rootfs`).
    pub external_rootfs: Option<PathBuf>,
    /// What is mounted on `/dev/shm`, when the container has its own.
    pub shm: Option<PathBuf>,
    /// The file of its output, when the log driver writes one.
    pub log: Option<PathBuf>,
    /// The log driver.
    pub log_driver: String,
    /// The network mode: `bridge`, `host`, `none`, `container:ID`, …
    pub network_mode: String,
    /// The networks that it is on.
    pub networks: Vec<Network>,
    /// Its network namespace, as a path.
    pub netns: Option<PathBuf>,
    /// The ports published on the host.
    pub ports: Vec<PublishedPort>,
    /// Volumes and bind mounts; not what the engine itself mounts.
    pub mounts: Vec<Mount>,
    /// Destinations of `--tmpfs` mounts; their content is in CRIU's images.
    pub tmpfs: Vec<PathBuf>,
    /// Host devices given to it.
    pub devices: Vec<PathBuf>,
    /// Whether it was made with all privileges.
    pub privileged: bool,
    /// When the engine starts it again by itself.
    pub restart: RestartPolicy,
    /// The pod that it is in, by ID.
    pub pod: Option<String>,
    /// Containers that it depends on, by ID.
    pub dependencies: Vec<String>,
    /// Memory limit in bytes.
    pub memory_limit: Option<u64>,
    /// Memory in use, in bytes.
    pub memory_in_use: u64,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether its standard input is open.
    pub stdin: bool,
    /// Stages of OCI hooks that its bundle asks for, such as `prestart`.
    pub hooks: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the bundle.
    pub annotations: BTreeMap<String, String>,
    /// Whether the engine's init runs as its first process.
    pub init: bool,
    /// Whether it runs systemd.
    pub systemd: bool,
    /// Whether it has a health check.
    pub health_check: bool,
    /// Whether it is removed when it stops (`--rm`).
    pub auto_remove: bool,
    /// Whether it has a user namespace of its own.
    pub user_namespace: bool,
    /// Whether the engine runs without root.
    pub rootless: bool,
    /// Namespace modes that are not the container's own, such as `pid host`.
    pub shared_namespaces: Vec<String>,
    /// The cgroup mode: `default`, `disabled`, `split`, `no-conmon`.
    pub cgroups: String,
}

/// An image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// The name by which the container was made.
    pub name: String,
    /// The ID: the digest of its configuration, 64 hexadecimal digits.
    pub id: String,
}

/// What a container is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Running,
    /// Its cgroup is frozen by the engine.
    Paused,
    /// Anything else, in the engine's words.
    Other(String),
    /// Not told.
    #[default]
    Unknown,
}

/// An OCI runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Runtime {
    /// The name by which the engine knows it: `crun`, `runc`.
    pub name: String,
    /// The program, when the engine tells.
    pub path: Option<PathBuf>,
}

/// A container's place on one of the engine's networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// The network's name.
    pub name: String,
    /// The network's driver: `bridge`, `macvlan`, …; empty when not told.
    pub driver: String,
    /// The container's addresses, IPv4 and IPv6, with the length of their network's prefix.
    pub addresses: Vec<(IpAddr, u8)>,
    /// The container's MAC address.
    pub mac: Option<String>,
    /// Its gateways.
    pub gateways: Vec<IpAddr>,
}

/// A port of the host that leads to a port of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedPort {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The host's address; `None` is every address.
    pub host_ip: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
    /// The container's port.
    pub container_port: u16,
}

/// A volume or a bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its kind.
    pub kind: MountKind,
    /// The volume's name.
    pub name: Option<String>,
    /// Where it is on the host.
    pub source: PathBuf,
    /// Where it is in the container.
    pub destination: PathBuf,
    /// Whether the container may write.
    pub writable: bool,
}

/// Kinds of mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// A directory or file of the host.
    Bind,
    /// A volume of the engine.
    Volume,
    /// Anything else, in the engine's words.
    Other(String),
}

/// When the engine starts a container again by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestartPolicy {
    /// `no`, `always`, `on-failure`, `unless-stopped`.
    pub name: String,
    /// How often at most; 0 is without limit.
    pub maximum_retries: u64,
}

/// Returns whether this is a container's or an image's full ID: 64 lower-case hexadecimal digits.
#[must_use]
pub fn is_full_id(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns whether this can be a container's name or a part of its ID: engines allow
/// `[a-zA-Z0-9][a-zA-Z0-9_.-]*`. Longer ones than 255 bytes are refused too.
#[must_use]
pub fn is_name(name: &str) -> bool {
    name.len() <= 255
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_engine_gives_are_refused() {
        for name in ["a", "web-1", "A.b_c", &"f".repeat(64)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "-rf", "../x", "a b", "a;b", "$(x)", "é", "a\0", &"x".repeat(4096)] {
            assert!(!is_name(name), "{name:?}");
        }
        assert!(is_full_id(&"0a".repeat(32)));
        assert!(!is_full_id(&"0A".repeat(32)));
        assert!(!is_full_id(&"0a".repeat(31)));
    }
}
