//! Containers that this host has flows of which lead to another host, by name: notes in the volatile
//! directory, since flows do not survive a reboot either.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use netmig::flow::{Conntrack, Exchange};
use netmig::table::Table;
use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::directories::{Directories, create_private};
use crate::forward;
use crate::peers::PeerLock;
use crate::private;

/// Directory of the notes, below that for volatile things.
const DIRECTORY: &str = "carried";

/// A container that came here or went from here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Its ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// When it last did, in seconds since 1970.
    pub moved: u64,
    /// What this host exchanges for it at its tunnels.
    #[serde(default, skip_serializing_if = "Exchange::is_empty")]
    pub exchange: Exchange,
}

impl Carried {
    /// A container that comes or goes now.
    #[must_use]
    pub fn new(id: &str, name: &str, addresses: &[IpAddr], exchange: Exchange) -> Self {
        Self {
            id: id.to_owned(),
            name: name.to_owned(),
            addresses: addresses.to_vec(),
            moved: now(),
            exchange,
        }
    }

    /// Notes it, in place of what was noted of it before.
    pub fn note(&self, directories: &Directories) -> Result<(), Cause> {
        let directory = directories.run.join(DIRECTORY);
        create_private(&directory)?;
        let path = directory.join(format!("{}.json", self.id));
        Ok(private::replace(&path, &serde_json::to_vec(self)?)?)
    }

    /// Notes it, and has the kernel exchange these addresses for it and no others.
    pub async fn note_and_apply(&self, directories: &Directories) -> Result<(), Cause> {
        let _lock = PeerLock::take(&directories.run).await?;
        self.note(directories)?;
        self.apply()
    }

    /// Has the kernel exchange its addresses; changes nothing where nothing is missing. The caller
    /// holds the [`PeerLock`].
    pub fn apply(&self) -> Result<(), Cause> {
        Ok(Table::open()?.exchange(&self.id.parse()?, &self.exchange)?)
    }

    /// Seconds since it last moved.
    #[must_use]
    pub fn age(&self) -> u64 {
        now().saturating_sub(self.moved)
    }
}

/// All notes, latest first.
pub fn all(directories: &Directories) -> Result<Vec<Carried>, Cause> {
    let entries = match fs::read_dir(directories.run.join(DIRECTORY)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let text = fs::read(entry?.path())?;
        // One that was being written when this host lost power.
        all.extend(serde_json::from_slice::<Carried>(&text).ok());
    }
    all.sort_by_key(|carried| std::cmp::Reverse(carried.moved));
    Ok(all)
}

/// The addresses by which this host knows a container that it has a note of, or else those given.
pub fn known_as(
    directories: &Directories,
    id: &str,
    given: &[IpAddr],
) -> Result<Vec<IpAddr>, Cause> {
    let note = all(directories)?.into_iter().find(|note| note.id == id);
    Ok(note.map_or_else(|| given.to_vec(), |note| note.addresses))
}

/// Forgets the containers without any flow that is led to another host, and for which no new ones will
/// be.
pub async fn forget_ended(directories: &Directories) -> Result<(), Cause> {
    let _lock = PeerLock::take(&directories.run).await?;
    let mut conntrack = Conntrack::open()?;
    let forwarded = forward::all(directories)?;
    for Carried { id, addresses, .. } in all(directories)? {
        if forwarded.iter().any(|note| note.id == id && note.away().is_some()) {
            continue;
        }
        let flows = conntrack.dump(&addresses)?;
        let led = flows
            .iter()
            .any(|flow| flow.leads_to(&addresses).is_some() || flow.anchor(&addresses).is_some());
        if !led {
            Table::open()?.end_exchange(&id.parse()?)?;
            fs::remove_file(directories.run.join(DIRECTORY).join(format!("{id}.json")))?;
        }
    }
    Ok(())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_moves_again_has_one_note() {
        let directory = tempfile::tempdir().unwrap();
        let directories =
            Directories { state: directory.path().join("s"), run: directory.path().join("r") };
        assert_eq!(all(&directories).unwrap(), []);
        let id = "c".repeat(64);
        let address = "10.88.0.2".parse().unwrap();
        for name in ["web", "renamed"] {
            Carried::new(&id, name, &[address], Exchange::default()).note(&directories).unwrap();
        }
        let notes = all(&directories).unwrap();
        assert_eq!(notes.len(), 1);
        assert_eq!((notes[0].name.as_str(), &notes[0].addresses[..]), ("renamed", &[address][..]));
        assert!(notes[0].age() < 100);
    }
}
