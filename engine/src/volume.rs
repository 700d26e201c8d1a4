//! Volumes of an engine, as far as moving them needs to know them.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The driver of volumes that are directories of the host.
pub const LOCAL: &str = "local";

/// A volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// The name.
    pub name: String,
    /// The driver.
    pub driver: String,
    /// Options of the driver; a plain directory has none.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it goes with the container that it was made for.
    pub is_anonymous: bool,
    /// The directory of its files.
    pub data: PathBuf,
    /// When it was made, in the engine's words: two volumes of one name differ in it.
    pub created: String,
}

impl Volume {
    /// Returns whether it is a directory of the engine's own and nothing else.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.driver == LOCAL && self.options.is_empty()
    }
}

/// A container that has a volume mounted, running or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeUser {
    /// The full ID.
    pub id: String,
    /// The name.
    pub name: String,
    /// Whether it runs, or is paused.
    pub is_running: bool,
}
