//! A systemd unit that is offered together with its container.

use services::UnitName;

/// A systemd unit that is to run the container at the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedService {
    /// The unit's name.
    pub unit: UnitName,
    /// The command lines with which the source's unit starts.
    pub start: Vec<Vec<String>>,
    /// Files that make the unit; none if the destination has it.
    pub files: Vec<OfferedUnitFile>,
}

/// A file that makes a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedUnitFile {
    /// The path, below the directory of such files: a name, or a name in a directory of drop-in files.
    pub path: String,
    /// The whole content.
    pub content: String,
}
