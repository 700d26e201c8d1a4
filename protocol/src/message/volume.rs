//! Volumes of a container: what they are, and changes of their files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::tree::TreeRecord;

/// The capability to take volumes.
pub const VOLUMES: &str = "volumes";

/// A volume that comes with a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The engine's name for it.
    pub name: String,
    /// Whether it goes with the container that it was made for.
    pub is_anonymous: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Where the container has it.
    pub mounts: Vec<VolumeMount>,
    /// The number of files and directories in it.
    pub entries: u64,
    /// The length of all its files in bytes, holes included.
    pub length: u64,
    /// The bytes that they take of the source's disk.
    pub disk: u64,
    /// Whether there are device nodes in it.
    pub has_devices: bool,
}

/// A mount of a volume in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// The mount point in the container.
    pub destination: String,
    /// Options as the engine has noted them.
    pub options: Vec<String>,
    /// Options with which the OCI runtime mounts it.
    pub mount_options: Vec<String>,
}

/// A change of a volume's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeChange {
    /// The volume: its place among those that were offered, from 0.
    pub volume: u16,
    /// The change. Paths begin in the volume.
    pub record: TreeRecord,
}

/// The end of a pass over a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeEnd {
    /// The volume.
    pub volume: u16,
    /// The [`TreeDigest`](super::TreeDigest) of all records of this pass.
    pub digest: [u8; 16],
}
