//! The mounts of a container.

/// A container's files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Storage {
    /// Whether its root file system cannot be written to.
    pub read_only: bool,
    /// Whether its file systems in memory can be written to all the same.
    pub writable_memory: bool,
    /// Whether a crash of the host may lose what it wrote.
    pub volatile: bool,
    /// Room for shared memory, in bytes.
    pub shared_memory: i64,
    /// Whether shared memory is absent.
    pub without_shared_memory: bool,
    /// Whether other containers may not join its shared memory.
    pub private_shared_memory: bool,
    /// What is mounted beyond the engine's own files, such as `/etc/hosts`.
    pub mounts: Vec<Mount>,
    /// Volumes of the engine that are mounted.
    pub volumes: Vec<VolumeMount>,
    /// Destinations that the creator asked for.
    pub requested_mounts: Vec<String>,
    /// Directories in the container that are roots, too: the engine's own files are put into each.
    pub roots: Vec<String>,
}

/// Something that is mounted into a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// Where, in the container.
    pub destination: String,
    /// What.
    pub filesystem: Filesystem,
    /// Options as mount(8) and the OCI runtime specification write them.
    pub options: Vec<String>,
}

/// What can be mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Filesystem {
    /// `proc`.
    #[default]
    Proc,
    /// `sysfs`.
    Sysfs,
    /// A file system in memory.
    Tmpfs,
    /// `devpts`.
    Devpts,
    /// `mqueue`.
    Mqueue,
    /// The container's control group.
    Cgroup,
    /// A file or directory of the host, by its path.
    Host(String),
}

/// A volume that is mounted into a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeMount {
    /// The volume's name.
    pub volume: String,
    /// Whether the volume goes with the container that it was made for: the engine has chosen its name.
    pub is_anonymous: bool,
    /// Where, in the container.
    pub destination: String,
    /// Options as the container's creator and the engine have noted them.
    pub options: Vec<String>,
    /// Options with which the OCI runtime mounts it.
    pub mount_options: Vec<String>,
}
