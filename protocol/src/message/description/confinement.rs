//! What a container may not do, and what of its host it is given.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a container may not do, and what of its host it is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Whether its creator called it privileged.
    pub privileged: bool,
    /// Whether it gets all devices of its host.
    pub all_devices: bool,
    /// Whether its programs cannot gain privileges.
    pub no_new_privileges: bool,
    /// The filter of its system calls.
    pub seccomp: Option<Seccomp>,
    /// The AppArmor profile.
    pub apparmor: Apparmor,
    /// The SELinux labels.
    pub selinux: SelinuxLabels,
    /// Paths in the container that cannot be seen.
    pub masked_paths: Vec<String>,
    /// Paths in the container that cannot be changed.
    pub readonly_paths: Vec<String>,
    /// Device nodes.
    pub devices: Vec<Device>,
    /// Devices of the host that its creator asked for.
    pub requested_devices: Vec<String>,
    /// The devices that it may use; the last rule that matches counts.
    pub device_rules: Vec<DeviceRule>,
    /// Kernel parameters of its namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Namespaces that it shares with its host.
    pub namespaces: Namespaces,
    /// What its creator wrote, for people.
    pub requested: Requested,
}

/// Namespaces that a container shares with its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// The PID namespace.
    pub host_pid: bool,
    /// The IPC namespace.
    pub host_ipc: bool,
    /// The UTS namespace.
    pub host_uts: bool,
    /// The cgroup namespace.
    pub host_cgroup: bool,
}

/// What a creator wrote, as engines show it. It has no effect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Apparmor {
    /// None: the host does not use AppArmor.
    #[default]
    Absent,
    /// The engine's own, of this version.
    Default(String),
    /// None, because the creator asked for none.
    Unconfined,
}

/// SELinux labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxLabels {
    /// Whether labels are disabled for the container.
    pub disabled: bool,
    /// The categories of the engine's ordinary labels for its processes and its files.
    pub categories: Option<(u16, u16)>,
}

/// A device node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The path in the container.
    pub path: String,
    /// `c`, `b`, `u` or `p`.
    pub kind: String,
    /// The major number.
    pub major: i64,
    /// The minor number.
    pub minor: i64,
    /// The mode, with the bits of the type.
    pub mode: Option<u32>,
    /// The owner's number.
    pub uid: Option<u32>,
    /// The group's number.
    pub gid: Option<u32>,
}

/// A rule that allows or denies devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Whether it allows them.
    pub allow: bool,
    /// `c`, `b` or `a`; empty for all.
    pub kind: String,
    /// The major number; `None` for all.
    pub major: Option<i64>,
    /// The minor number; `None` for all.
    pub minor: Option<i64>,
    /// Any of `rwm`.
    pub access: String,
}

/// A filter of system calls, in the words of the OCI runtime specification
/// (<https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#seccomp>).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seccomp {
    /// The action for a call without a rule.
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
pub struct Syscall {
    /// The calls.
    pub names: Vec<String>,
    /// The action.
    pub action: String,
    /// The error that they return.
    pub errno_ret: Option<u32>,
    /// Conditions.
    pub args: Vec<SyscallArgument>,
}

/// A condition for an argument of a system call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyscallArgument {
    /// The argument, from 0.
    pub index: u32,
    /// What it is compared with.
    pub value: u64,
    /// A second value, for a masked comparison.
    pub value_two: u64,
    /// The comparison.
    pub op: String,
}
