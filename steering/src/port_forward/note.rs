//! The note of what this host does about new connections for one container.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use netmig::table::{Forward, ForwardedPort, RuleTag, Table};
use netmig::tunnel;
use serde::{Deserialize, Serialize};

use super::{DIRECTORY, VERSION};
use crate::peer_numbers::{self, HostId};
use crate::steering_lock::SteeringLock;
use state::cause::Cause;
use state::directories::Directories;
use state::id::MigrationId;
use state::peer_address::Destination;
use state::{json_files, private_file};

/// What this host does about new connections for a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The container's ID.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// The container's addresses.
    pub addresses: Vec<IpAddr>,
    /// Those by which new connections come from the other host, where they differ from the container's
    /// own: each before the one that it stands for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub readdressed: Vec<(IpAddr, IpAddr)>,
    /// The other host.
    pub host: HostId,
    /// The migration that this began with.
    pub migration: MigrationId,
    /// This host's part.
    pub role: Role,
}

/// A host's part in forwarding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The container was here: its ports lead to the other host.
    Away(Away),
    /// The container is here: new connections from the other host are its.
    Here,
}

/// Where ports lead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Away {
    /// The other host's agent-server.
    pub destination: Destination,
    /// The ports.
    pub ports: Vec<ForwardedPort>,
    /// Sources that get another address: an address and the length of the prefix.
    pub hidden: Vec<(IpAddr, u8)>,
    /// The addresses that they get, one of each family.
    pub stand_ins: Vec<IpAddr>,
    /// Whether the move is decided; before that there is no rule.
    pub in_force: bool,
}

impl Note {
    /// Writes the note in place of an earlier one of the same container and role, and of the same host for
    /// [`Role::Here`].
    ///
    /// # Errors
    /// The note cannot be written.
    pub fn write(&self, directories: &Directories, _: &SteeringLock) -> Result<(), Cause> {
        Ok(json_files::write(&self.path(directories), VERSION, self)?)
    }

    /// Returns where its ports lead, if they do.
    #[must_use]
    pub fn away(&self) -> Option<&Away> {
        if let Role::Away(away) = &self.role { Some(away) } else { None }
    }

    /// Adds the note's rules to the kernel; changes nothing where nothing is missing. The table and the tunnel have to
    /// exist, and the caller holds the [`SteeringLock`].
    ///
    /// # Errors
    /// The other host has no number here, or the kernel refuses the rules.
    pub fn apply(&self, state: &Path) -> Result<(), Cause> {
        let peer = peer_numbers::number(state, self.host)?;
        let tag = self.tag()?;
        match &self.role {
            Role::Here => {
                let by = |own: &IpAddr| self.readdressed.iter().find(|(_, here)| here == own);
                let plain = |own: &IpAddr| by(own).copied().unwrap_or((*own, *own));
                let addresses: Vec<_> = self.addresses.iter().map(plain).collect();
                Table::open()?.accept(&tag, peer, &addresses)?;
            }
            Role::Away(Away { in_force: false, .. }) => {}
            Role::Away(Away { ports, hidden, stand_ins, .. }) => {
                tunnel::carry_loopback(peer)?;
                let (ports, hidden) = (ports.clone(), hidden.clone());
                let forward = Forward { peer, ports, hidden, sources: stand_ins.clone() };
                Table::open()?.forward(&tag, &forward)?;
            }
        }
        Ok(())
    }

    /// Removes the note's rules, and then the note. Absent means done. The caller holds the [`SteeringLock`].
    ///
    /// # Errors
    /// The kernel refuses, or the note cannot be removed.
    pub fn remove(&self, directories: &Directories) -> Result<(), Cause> {
        let tag = self.tag()?;
        match &self.role {
            Role::Here => {
                // A host without a number was never led from.
                if let Some(peer) = peer_numbers::find_number(&directories.state, self.host)? {
                    Table::open()?.unaccept(&tag, peer)?;
                }
            }
            Role::Away(_) => Table::open()?.unforward(&tag)?,
        }
        private_file::remove(&self.path(directories))?;
        Ok(())
    }

    /// Returns the note for a container that has these addresses now; `None` if nothing changes, or it has none of
    /// a family in which new connections come.
    pub(super) fn at(&self, now: &[IpAddr]) -> Option<Self> {
        let (mut addresses, mut readdressed) = (Vec::new(), Vec::new());
        for four in [true, false] {
            let of_family = |ip: &&IpAddr| ip.is_ipv4() == four;
            let mut new = now.iter().filter(of_family);
            for old in self.addresses.iter().filter(of_family) {
                let new = *new.next()?;
                let by =
                    self.readdressed.iter().find(|(_, own)| own == old).map_or(*old, |(by, _)| *by);
                addresses.push(new);
                readdressed.extend((by != new).then_some((by, new)));
            }
        }
        let is_same = addresses.iter().all(|own| self.addresses.contains(own));
        (!is_same).then(|| Self { addresses, readdressed, ..self.clone() })
    }

    fn tag(&self) -> Result<RuleTag, Cause> {
        Ok(self.id.parse()?)
    }

    fn path(&self, directories: &Directories) -> PathBuf {
        let file = match &self.role {
            Role::Away(_) => format!("{}-away.json", self.id),
            Role::Here => format!("{}-{}.json", self.id, self.host),
        };
        directories.run.join(DIRECTORY).join(file)
    }
}
