//! Containers that this host has flows of which lead to another host, by name: notes in the volatile
//! directory, since flows do not survive a reboot either.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use netmig::detour::Detour;
use netmig::flow::{Conntrack, Flow, TunnelNat};
use netmig::table::Table;
use serde::{Deserialize, Serialize};

use crate::port_forward;
use crate::steering_lock::SteeringLock;
use crate::tunnel_aliases::OfOthers;
use state::cause::Cause;
use state::container_lock::ContainerLock;
use state::directories::Directories;
use state::id::MigrationId;
use state::journal::{self, Record};
use state::json_files;
use state::private_file;

/// Directory of the notes, below that for volatile things.
const DIRECTORY: &str = "carried";
/// Version of their form.
const VERSION: u32 = 1;

/// A container that came here or went from here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedContainer {
    /// Its ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// When it last did, in seconds since 1970.
    pub moved: u64,
    /// What this host exchanges for it at its tunnels.
    #[serde(default, skip_serializing_if = "TunnelNat::is_empty")]
    pub exchange: TunnelNat,
    /// By which containers of its networks are led to this host instead of to each other. They stay in
    /// the note until they are lifted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub detours: Vec<Detour>,
}

impl MovedContainer {
    /// Makes the entry of a container that comes or goes now.
    #[must_use]
    pub fn new(id: &str, name: &str, addresses: &[IpAddr], exchange: TunnelNat) -> Self {
        Self {
            id: id.to_owned(),
            name: name.to_owned(),
            addresses: addresses.to_vec(),
            moved: now(),
            exchange,
            detours: Vec::new(),
        }
    }

    /// Writes the note in place of an earlier one of this container. Earlier detours stay noted.
    ///
    /// # Errors
    /// The lock cannot be taken, or the note cannot be read or written.
    pub async fn note(&self, directories: &Directories) -> Result<(), Cause> {
        let lock = SteeringLock::take(&directories.run).await?;
        self.note_locked(directories, &lock)
    }

    fn note_locked(&self, directories: &Directories, lock: &SteeringLock) -> Result<(), Cause> {
        let mut noted = self.clone();
        let earlier = find(directories, &self.id)?.map(|note| note.detours).unwrap_or_default();
        noted.detours.extend(earlier.into_iter().filter(|detour| !self.detours.contains(detour)));
        noted.write(directories, lock)
    }

    fn write(&self, directories: &Directories, _: &SteeringLock) -> Result<(), Cause> {
        Ok(json_files::write(&path(&directories.run, &self.id), VERSION, self)?)
    }

    /// Lifts those of its detours that are not `needed`.
    fn lift_unless(
        &mut self,
        directories: &Directories,
        lock: &SteeringLock,
        needed: impl Fn(&Detour) -> bool,
    ) -> Result<(), Cause> {
        let (needed, past): (Vec<_>, Vec<_>) = self.detours.drain(..).partition(needed);
        self.detours = needed;
        if past.is_empty() {
            return Ok(());
        }
        past.iter().try_for_each(Detour::remove)?;
        self.write(directories, lock)
    }

    /// Notes it, and has the kernel exchange these addresses for it and no others.
    ///
    /// # Errors
    /// [`AliasTaken`](crate::tunnel_aliases::AliasTaken), or the note or the table cannot be written.
    pub async fn note_and_apply(&self, directories: &Directories) -> Result<(), Cause> {
        let lock = SteeringLock::take(&directories.run).await?;
        OfOthers::read(directories, &self.id)?.check(&self.exchange)?;
        self.note_locked(directories, &lock)?;
        self.apply()
    }

    /// Has the kernel exchange the container's addresses; changes nothing where nothing is missing. The caller holds
    /// the [`SteeringLock`].
    ///
    /// # Errors
    /// The kernel refuses the rules.
    pub fn apply(&self) -> Result<(), Cause> {
        Ok(Table::open()?.set_tunnel_nat(&self.id.parse()?, &self.exchange)?)
    }

    /// Seconds since it last moved.
    #[must_use]
    pub fn age(&self) -> u64 {
        now().saturating_sub(self.moved)
    }
}

/// Returns all notes, latest first.
///
/// # Errors
/// A note cannot be read.
pub fn all(directories: &Directories) -> Result<Vec<MovedContainer>, Cause> {
    let noted = json_files::all::<MovedContainer>(&directories.run.join(DIRECTORY), VERSION)?;
    let mut all: Vec<MovedContainer> = noted.into_iter().map(|(_, carried)| carried).collect();
    all.sort_by_key(|carried| std::cmp::Reverse(carried.moved));
    Ok(all)
}

/// Returns where a container's note is, below the volatile directory.
fn path(run: &Path, id: &str) -> PathBuf {
    run.join(DIRECTORY).join(format!("{id}.json"))
}

/// Returns the note of a container, if there is one.
///
/// # Errors
/// A note cannot be read.
pub fn find(directories: &Directories, id: &str) -> Result<Option<MovedContainer>, Cause> {
    Ok(all(directories)?.into_iter().find(|note| note.id == id))
}

/// Returns the addresses by which this host knows a container: those of its note, or else those given.
///
/// # Errors
/// A note cannot be read.
pub fn known_as(
    directories: &Directories,
    id: &str,
    given: &[IpAddr],
) -> Result<Vec<IpAddr>, Cause> {
    let note = find(directories, id)?;
    Ok(note.map_or_else(|| given.to_vec(), |note| note.addresses))
}

/// Lets other containers reach a container by themselves again, which runs here now; returns their addresses.
///
/// # Errors
/// The lock cannot be taken, a note cannot be read or written, or a detour cannot be lifted.
pub async fn rejoin(directories: &Directories, id: &str) -> Result<Vec<IpAddr>, Cause> {
    let lock = SteeringLock::take(&directories.run).await?;
    let notes = all(directories)?;
    let Some(addresses) =
        notes.iter().find(|note| note.id == id).map(|note| note.addresses.clone())
    else {
        return Ok(Vec::new());
    };
    let is_led = |detour: &Detour| addresses.contains(&detour.towards);
    let mut others = Vec::new();
    for mut note in notes {
        if note.id == id {
            others.extend(note.detours.iter().filter(|d| is_led(d)).map(|detour| detour.sibling));
            note.lift_unless(directories, &lock, |detour| !is_led(detour))?;
        } else if note.detours.iter().any(is_led) {
            // It came back while this one was away, or both are away and their flows pass another host.
            let own = note.addresses.clone();
            let mut flows = Conntrack::open()?.dump(&own)?;
            flows.retain(|flow| flow.peers().next().is_some());
            let passes = |end| flows.iter().any(|flow| flow.other_end(&own) == Some(end));
            if !note.detours.iter().any(|detour| is_led(detour) && passes(detour.towards)) {
                note.lift_unless(directories, &lock, |detour| !is_led(detour))?;
                others.extend(own);
            }
        }
    }
    Ok(others)
}

/// Returns the notes of all containers but one.
///
/// # Errors
/// A note cannot be read.
pub fn others(directories: &Directories, id: &str) -> Result<Vec<MovedContainer>, Cause> {
    Ok(all(directories)?.into_iter().filter(|note| note.id != id).collect())
}

/// Returns the one of some containers that is away, and at the other end of a flow: this host is the anchor of both
/// ends.
#[must_use]
pub fn apart<'a>(flow: &Flow, others: &'a [MovedContainer]) -> Option<&'a MovedContainer> {
    others.iter().find(|other| flow.leads_to(&other.addresses).is_some())
}

/// Deletes the conntrack entries of flows between a container that runs here and others of its networks: the packets
/// of these are not routed.
///
/// # Errors
/// The conntrack table cannot be read or changed.
pub fn forget_between(container: &[IpAddr], others: &[IpAddr]) -> Result<(), Cause> {
    if others.is_empty() {
        return Ok(());
    }
    let mut conntrack = Conntrack::open()?;
    let mut flows = conntrack.dump(container)?;
    flows.retain(|flow| {
        flow.leads_to(container).is_none()
            && flow.anchor(container).is_none()
            && flow.other_end(container).is_some_and(|end| others.contains(&end))
    });
    if !flows.is_empty() {
        conntrack.delete(&flows)?;
    }
    Ok(())
}

/// Removes the notes of containers that have no flow led to another host and will have no new one. Containers that
/// are about to leave are left alone, unless by the migration that has `ended`.
///
/// # Errors
/// The lock cannot be taken, or notes or kernel state cannot be read or changed.
pub async fn forget_ended(
    directories: &Directories,
    ended: Option<MigrationId>,
) -> Result<(), Cause> {
    let lock = SteeringLock::take(&directories.run).await?;
    let notes = all(directories)?;
    if notes.is_empty() {
        return Ok(());
    }
    let marked = Conntrack::open()?.marked()?;
    let forwarded = port_forward::all(directories)?;
    for mut note in notes {
        if !note.detours.is_empty() && is_departing(directories, &note.id, ended)? {
            continue;
        }
        // The reconciler leaves alone what an agent works on.
        let free = ContainerLock::begin(directories, &note.id, &note.name);
        if ended.is_none() && free.is_err() {
            continue;
        }
        let addresses = note.addresses.clone();
        let of_container =
            |flow: &&Flow| flow.leads_to(&addresses).is_some() || flow.anchor(&addresses).is_some();
        let flows: Vec<&Flow> =
            marked.iter().map(|counted| &counted.flow).filter(of_container).collect();
        note.lift_unless(directories, &lock, |detour| {
            flows.iter().any(|flow| flow.other_end(&addresses) == Some(detour.sibling))
        })?;
        let id = &note.id;
        if forwarded.iter().any(|other| other.id == *id && other.away().is_some()) {
            continue;
        }
        if flows.is_empty() {
            Table::open()?.remove_tunnel_nat(&id.parse()?)?;
            private_file::remove(&path(&directories.run, id))?;
        }
    }
    Ok(())
}

/// Returns whether a migration other than `ended` is under way that takes a container from this host.
fn is_departing(
    directories: &Directories,
    id: &str,
    ended: Option<MigrationId>,
) -> Result<bool, Cause> {
    for path in journal::unfinished(&directories.state)? {
        // A journal that cannot be read might be one.
        let Ok(records) = journal::read(&path) else { return Ok(true) };
        if let Some(Record::Departure { migration, container, .. }) = records.first()
            && container == id
            && Some(*migration) != ended
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directories(directory: &tempfile::TempDir) -> Directories {
        let (state, run) = (directory.path().join("s"), directory.path().join("r"));
        let directories = Directories { state, run };
        directories.create().unwrap();
        directories
    }

    fn carried(name: &str) -> MovedContainer {
        let address = "10.88.0.2".parse().unwrap();
        MovedContainer::new(&"c".repeat(64), name, &[address], TunnelNat::default())
    }

    fn detour(index: u32) -> Detour {
        let address = "10.88.0.3".parse().unwrap();
        let (namespace, mac) = ("/run/netns/x".into(), [2; 6]);
        Detour { namespace, interface: index, mac, towards: address, sibling: address }
    }

    #[tokio::test]
    async fn a_container_that_moves_again_has_one_note() {
        let directory = tempfile::tempdir().unwrap();
        let directories = directories(&directory);
        assert_eq!(all(&directories).unwrap(), []);
        for name in ["web", "renamed"] {
            carried(name).note(&directories).await.unwrap();
        }
        let notes = all(&directories).unwrap();
        assert_eq!(notes.len(), 1);
        assert_eq!(
            (&notes[0].name, &notes[0].addresses),
            (&"renamed".into(), &carried("").addresses)
        );
        assert!(notes[0].age() < 100);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_note_is_lost_or_half_read_whoever_writes_at_the_same_time() {
        let directory = tempfile::tempdir().unwrap();
        let directories = directories(&directory);
        carried("web").note(&directories).await.unwrap();
        let writers = [0, 100].map(|first| {
            let directories = directories.clone();
            tokio::spawn(async move {
                for index in first..first + 20 {
                    let detours = vec![detour(index)];
                    let noted = MovedContainer { detours, ..carried("web") };
                    noted.note(&directories).await.unwrap();
                }
            })
        });
        while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
            assert_eq!(all(&directories).unwrap().len(), 1);
            tokio::task::yield_now().await;
        }
        for writer in writers {
            writer.await.unwrap();
        }
        assert_eq!(all(&directories).unwrap()[0].detours.len(), 40);
    }

    #[tokio::test]
    async fn a_note_of_a_later_version_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let directories = directories(&directory);
        carried("web").note(&directories).await.unwrap();
        let path = path(&directories.run, &"c".repeat(64));
        private_file::replace(&path, br#"{"version":9,"note":{}}"#).unwrap();
        let refused = all(&directories).unwrap_err().to_string();
        assert!(refused.contains("cccc.json") && refused.contains("later version"), "{refused}");
        assert!(carried("web").note(&directories).await.is_err(), "it is not replaced, either");
    }
}
