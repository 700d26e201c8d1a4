//! What this host has for every command.

use agent_core::cause::Cause;
use agent_core::directories::Directories;
use agent_core::trust::Trust;
use checkpoint::podman::Podman;

/// What every migration of this host needs.
#[derive(Debug)]
pub struct Context {
    /// Where state is kept.
    pub directories: Directories,
    /// This host's identity and its peers.
    pub trust: Trust,
    /// The engine.
    pub podman: Podman,
}

impl Context {
    /// Makes the directories and reads this host's identity.
    pub fn open(directories: Directories) -> Result<Self, Cause> {
        directories.create()?;
        let trust = Trust::open(&directories.state)?;
        let podman = Podman::default().remembering(directories.run.join("engine.json"));
        Ok(Self { directories, trust, podman })
    }
}
