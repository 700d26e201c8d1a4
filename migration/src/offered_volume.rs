//! A volume that is offered together with its container.

use std::collections::BTreeMap;

use engine::description;

/// A volume that is offered together with its container. The fields are those of [`protocol::message::Volume`], which
/// describes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the wire form describes the fields")]
pub struct OfferedVolume {
    pub name: String,
    pub is_anonymous: bool,
    pub labels: BTreeMap<String, String>,
    pub mounts: Vec<VolumeMount>,
    pub entries: u64,
    pub length: u64,
    pub disk: u64,
    pub has_devices: bool,
}

/// A mount of such a volume in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the wire form describes the fields")]
pub struct VolumeMount {
    pub destination: String,
    pub options: Vec<String>,
    pub mount_options: Vec<String>,
}

impl OfferedVolume {
    /// Returns its mounts as a part of the container's description.
    pub fn described(&self) -> impl Iterator<Item = description::VolumeMount> + '_ {
        self.mounts.iter().map(|mount| description::VolumeMount {
            volume: self.name.clone(),
            is_anonymous: self.is_anonymous,
            destination: mount.destination.clone(),
            options: mount.options.clone(),
            mount_options: mount.mount_options.clone(),
        })
    }
}
