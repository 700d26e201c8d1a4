//! A container's settings, independent of any engine.
//!
//! The source reads its engine's records into a [`Description`]. It refuses a container with a setting that has no place
//! here. The destination accepts a peer's description only if every part of it is
//! [valid](Description::validate), and then writes its own engine's records from it. The only paths of a host in it are
//! those of [`Filesystem::Host`], which a permission has to name.
//!
//! Collections are lists and maps of plain values. [`Description::validate`] bounds each of them.

mod confinement;
mod connectivity;
mod filesystem;
mod init_process;
mod lifecycle;
mod resources;
mod validate;

#[cfg(test)]
pub(crate) mod tests;

pub use confinement::{
    Apparmor, Confinement, Device, DeviceRule, Namespaces, Requested, Seccomp, SelinuxLabels,
    Syscall, SyscallArgument,
};
pub use connectivity::{Address, Connectivity, Network, Port};
pub use filesystem::{Filesystem, Mount, Storage, VolumeMount};
pub use init_process::{Capabilities, ConsoleSize, Limit, Process};
pub use lifecycle::{Health, HealthCheck, Life, Log, StartupCheck};
pub use resources::{BlockIo, Cpu, HugePages, Memory, Pids, Resources};
pub use validate::Invalid;

use std::collections::BTreeMap;

/// All settings of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// The container's ID, 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made, as RFC 3339 writes it.
    pub created: String,
    /// The command that made it, for people.
    pub create_command: Vec<String>,
    /// Its image.
    pub image: Image,
    /// The OCI runtime that runs it: `crun` or `runc`.
    pub runtime: String,
    /// Version of the OCI runtime specification by which it was started.
    pub specification: String,
    /// What runs in it.
    pub process: Process,
    /// Its host name, if its creator gave it one.
    pub hostname: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations that its creator gave it. Those that an engine or a runtime acts upon are settings.
    pub annotations: BTreeMap<String, String>,
    /// How it begins and ends.
    pub life: Life,
    /// How its health is checked.
    pub health: Health,
    /// Where its output goes.
    pub log: Log,
    /// What it may not do.
    pub confinement: Confinement,
    /// How much it may use.
    pub resources: Resources,
    /// Its files.
    pub storage: Storage,
    /// Its networks.
    pub connectivity: Connectivity,
    /// Its time zone: a name of the database, `local` for that of the host, or empty.
    pub timezone: String,
}

/// An image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Its ID, 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The name by which the container's creator asked for it.
    pub requested: String,
}
