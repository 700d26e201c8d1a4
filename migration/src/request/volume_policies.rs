//! What becomes of volumes.

use std::collections::BTreeMap;

/// What becomes of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VolumePolicy {
    /// Its files are copied to a volume of the same name at the destination.
    #[default]
    Copy,
    /// A container that has it is not moved.
    Refuse,
}

/// What becomes of each volume of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumePolicies {
    others: VolumePolicy,
    named: BTreeMap<String, VolumePolicy>,
}

impl VolumePolicies {
    /// Returns what becomes of volumes by their names, and of all others. Of two that say so of the same the later one counts.
    pub fn new(all: impl IntoIterator<Item = (Option<String>, VolumePolicy)>) -> Self {
        let mut policies = Self::default();
        for (name, policy) in all {
            match name {
                Some(name) => drop(policies.named.insert(name, policy)),
                None => policies.others = policy,
            }
        }
        policies
    }

    /// Returns what becomes of a volume.
    #[must_use]
    pub fn of(&self, name: &str) -> VolumePolicy {
        self.named.get(name).copied().unwrap_or(self.others)
    }

    /// Returns the names of which something is said.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        self.named.keys().map(String::as_str)
    }
}
