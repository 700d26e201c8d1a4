//! The files that a container sees.

use serde::{Deserialize, Serialize};

/// A container's files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// Whether the root filesystem is read-only.
    pub read_only: bool,
    /// Whether filesystems in memory are writable all the same.
    pub writable_memory: bool,
    /// Whether a crash of the host may lose what the container wrote.
    pub volatile: bool,
    /// The size of `/dev/shm` in bytes.
    pub shared_memory: i64,
    /// Whether there is no `/dev/shm`.
    pub without_shared_memory: bool,
    /// Whether other containers may not join its shared memory.
    pub private_shared_memory: bool,
    /// Mounts beyond those of the engine's own files, such as `/etc/hosts`.
    pub mounts: Vec<Mount>,
    /// Destinations that the creator asked for.
    pub requested_mounts: Vec<String>,
    /// Directories in the container that are roots as well: the engine's own files are put into each.
    pub roots: Vec<String>,
}

/// A mount of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The mount point in the container.
    pub destination: String,
    /// What is mounted.
    pub filesystem: Filesystem,
    /// Options as mount(8) and the OCI runtime specification write them.
    pub options: Vec<String>,
}

/// What can be mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Filesystem {
    /// `proc`.
    #[default]
    Proc,
    /// `sysfs`.
    Sysfs,
    /// `tmpfs`.
    Tmpfs,
    /// `devpts`.
    Devpts,
    /// `mqueue`.
    Mqueue,
    /// The container's cgroup.
    Cgroup,
    /// A file or directory of the host, by its path.
    Host(String),
}
