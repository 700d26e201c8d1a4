//! All settings of a container, in words of no engine.
//!
//! A setting that this form has no place for travels in a message of its own before the
//! [`Offer`](super::Offer). That message needs a capability, and a container with such a setting is not
//! offered to an agent that does not name it.

mod confinement;
mod life;
mod network;
mod process;
mod resources;
mod storage;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use confinement::{
    Apparmor, Confinement, Device, DeviceRule, Namespaces, Requested, Seccomp, SelinuxLabels,
    Syscall, SyscallArgument,
};
pub use life::{Health, HealthCheck, Life, Log, StartupCheck};
pub use network::{Address, Connectivity, NetworkSettings, PortRange};
pub use process::{Capabilities, ConsoleSize, Limit, Process};
pub use resources::{BlockIo, Cpu, HugePages, Memory, Pids, Resources};
pub use storage::{Filesystem, Mount, Storage};

/// All settings of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The container's ID, 64 hexadecimal digits.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// When the container was created, as RFC 3339 writes it.
    pub created: String,
    /// The command that created it, for people.
    pub create_command: Vec<String>,
    /// The image.
    pub image: Image,
    /// The OCI runtime: `crun` or `runc`.
    pub runtime: String,
    /// The version of the OCI runtime specification with which it was started.
    pub specification: String,
    /// What runs in it.
    pub process: Process,
    /// The host name, if its creator set one.
    pub hostname: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations that its creator set.
    pub annotations: BTreeMap<String, String>,
    /// How it starts and stops.
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
    /// The time zone: a name of the database, `local` for that of the host, or empty.
    pub timezone: String,
}

/// An image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The ID, 64 hexadecimal digits.
    pub id: String,
    /// The name.
    pub name: String,
    /// The name by which the container's creator asked for it.
    pub requested: String,
}
