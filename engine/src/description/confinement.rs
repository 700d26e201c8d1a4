//! What a container may not do, and which privileges it has on its host.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a container may not do, and what of its host it is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// Whether its creator called it privileged.
    pub privileged: bool,
    /// Whether it gets all devices of its host.
    pub all_devices: bool,
    /// Whether its programs cannot gain privileges.
    pub no_new_privileges: bool,
    /// The filter of its system calls.
    pub seccomp: Option<Seccomp>,
    /// Its AppArmor profile.
    pub apparmor: Apparmor,
    /// Its SELinux labels.
    pub selinux: SelinuxLabels,
    /// Paths in it that cannot be seen.
    pub masked_paths: Vec<String>,
    /// Paths in it that cannot be changed.
    pub readonly_paths: Vec<String>,
    /// Device nodes that it has.
    pub devices: Vec<Device>,
    /// Devices of the host that its creator asked for.
    pub requested_devices: Vec<String>,
    /// Which devices it may use; the last rule that fits counts.
    pub device_rules: Vec<DeviceRule>,
    /// Kernel parameters of its namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Which namespaces are the host's. It always has a mount and a network namespace for itself.
    pub namespaces: Namespaces,
    /// What its creator wrote, for people.
    pub requested: Requested,
}

/// Namespaces that a container shares with its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Its processes' numbers.
    pub host_pid: bool,
    /// Its System V and POSIX message queues.
    pub host_ipc: bool,
    /// Its host name.
    pub host_uts: bool,
    /// Its view of control groups.
    pub host_cgroup: bool,
}

/// What a creator wrote, as engines show it. It has no effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requested {
    /// The filter of system calls: `unconfined` or the name of a file.
    pub seccomp: String,
    /// The AppArmor profile.
    pub apparmor: String,
    /// The SELinux label.
    pub label: String,
    /// The limit of processes.
    pub pids_limit: String,
    /// Processors.
    pub cpus: String,
    /// Memory nodes.
    pub mems: String,
    /// Whether all ports of the image were to be published.
    pub all_ports: bool,
}

/// An AppArmor profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Apparmor {
    /// None: the host does not use AppArmor.
    #[default]
    Absent,
    /// The engine's own, of this version.
    Default(String),
    /// None, by the creator's wish.
    Unconfined,
}

/// SELinux labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelinuxLabels {
    /// Whether labels are disabled for it.
    pub disabled: bool,
    /// The categories of the engine's ordinary labels for its processes and its files.
    pub categories: Option<(u16, u16)>,
}

/// A device node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Where it is in the container.
    pub path: String,
    /// `c`, `b`, `u` or `p`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Mode, with the type's bits.
    #[serde(rename = "fileMode")]
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

/// Whether devices may be used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceRule {
    /// Whether they may.
    pub allow: bool,
    /// `c`, `b` or `a`; empty for all.
    #[serde(rename = "type")]
    pub kind: String,
    /// Major number; `None` for all.
    pub major: Option<i64>,
    /// Minor number; `None` for all.
    pub minor: Option<i64>,
    /// Any of `rwm`.
    pub access: String,
}

/// A filter of system calls, in the words of the OCI runtime specification
/// (<https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#seccomp>).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Seccomp {
    /// What happens to a call without a rule.
    pub default_action: String,
    /// The error of such a call.
    pub default_errno_ret: Option<u32>,
    /// Architectures.
    pub architectures: Vec<String>,
    /// Flags of the filter.
    pub flags: Vec<String>,
    /// Rules.
    pub syscalls: Vec<Syscall>,
}

/// A rule for system calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Syscall {
    /// The calls.
    pub names: Vec<String>,
    /// What happens to them.
    pub action: String,
    /// The error that they return.
    pub errno_ret: Option<u32>,
    /// Conditions.
    pub args: Vec<SyscallArgument>,
}

/// A condition for an argument of a system call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SyscallArgument {
    /// The argument, from 0.
    pub index: u32,
    /// What it is compared with.
    pub value: u64,
    /// A second value, for a comparison of a part.
    pub value_two: u64,
    /// The comparison.
    pub op: String,
}
