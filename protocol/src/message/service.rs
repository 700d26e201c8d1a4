//! The systemd unit of a container.

use serde::{Deserialize, Serialize};

/// The capability to have a container run by a systemd unit.
pub const SERVICES: &str = "services";

/// A systemd unit that runs the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The unit's name.
    pub unit: String,
    /// The command lines with which the source's unit starts: those of the destination's have to be the same.
    pub start: Vec<Vec<String>>,
    /// Files that make the unit, to be written at the destination; none if it has the unit.
    pub files: Vec<UnitFile>,
}

/// A file that makes a unit: a source of Quadlet's, or settings that are added to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitFile {
    /// The path, below the directory of Quadlet's files.
    pub path: String,
    /// The whole content.
    pub content: String,
}
