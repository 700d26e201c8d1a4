//! New connections to a container's old address: what each host does about them, as notes in the
//! volatile directory. The rules in the kernel follow the notes; whoever finds rules missing puts them
//! back from there ([`crate::reconciler`]).
//!
//! The host that the container left has a note that its ports lead [away](Role::Away), its new host one
//! that they are [taken](Role::Here) from there. A container that moves on takes its forwarding along:
//! its hosts tell each other, as for the flows that it has. A note ends by the user's order, or when
//! the container comes back. A reboot ends it as well, like the tunnel.

mod list;
mod note;

use std::net::IpAddr;

use netmig::flow::{Aliases, NoAlias};
use netmig::peer_number::PeerNumber;
use netmig::tunnel;

use crate::peer_numbers::{self, HostId};
use crate::steering_lock::SteeringLock;
use crate::tunnel_aliases;
use state::cause::Cause;
use state::container_lock::ContainerLock;
use state::directories::Directories;
use state::id::MigrationId;
use state::json_files;
use state::peer_address::{DEFAULT_PORT, Destination};

pub use self::list::{Forwarding, list};
pub use self::note::{Away, Note, Role};

/// Directory of the notes, below that for volatile things.
const DIRECTORY: &str = "forward";
/// Version of their form.
const VERSION: u32 = 1;

/// A host that leads new connections for a container to its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarder {
    /// The host.
    pub host: HostId,
    /// Addresses by which they come, where these differ from the container's own: each before the one
    /// that it stands for.
    pub readdressed: Vec<(IpAddr, IpAddr)>,
}

/// Returns all notes, ordered by the containers' names.
///
/// # Errors
/// A note cannot be read.
pub fn all(directories: &Directories) -> Result<Vec<Note>, Cause> {
    let noted = json_files::all::<Note>(&directories.run.join(DIRECTORY), VERSION)?;
    let mut all: Vec<Note> = noted.into_iter().map(|(_, note)| note).collect();
    all.sort_by(|a, b| (&a.name, &a.id, a.host).cmp(&(&b.name, &b.id, b.host)));
    Ok(all)
}

/// Returns whether a note needs the tunnel to a peer.
///
/// # Errors
/// A note, or the peers' file, cannot be read.
pub fn need(directories: &Directories, peer: PeerNumber) -> Result<bool, Cause> {
    for note in all(directories)? {
        if peer_numbers::find_number(&directories.state, note.host)? == Some(peer) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Chooses the notes of new connections that are taken here for a container.
pub fn here(id: &str) -> impl Fn(&Note) -> bool {
    move |note| note.id == id && note.role == Role::Here
}

/// Returns the hosts that lead new connections for a container here.
///
/// # Errors
/// A note cannot be read.
pub fn leading_here(directories: &Directories, id: &str) -> Result<Vec<Forwarder>, Cause> {
    let notes = all(directories)?.into_iter().filter(here(id));
    Ok(notes.map(|Note { host, readdressed, .. }| Forwarder { host, readdressed }).collect())
}

/// Removes the notes that `which` chooses, with their rules, and returns them.
///
/// # Errors
/// The lock cannot be taken, a note cannot be read or removed, or the kernel refuses.
pub async fn remove(
    directories: &Directories,
    which: impl Fn(&Note) -> bool,
) -> Result<Vec<Note>, Cause> {
    if !all(directories)?.iter().any(&which) {
        return Ok(Vec::new());
    }
    let _lock = SteeringLock::take(&directories.run).await?;
    let mut notes = all(directories)?;
    notes.retain(which);
    notes.iter().try_for_each(|note| note.remove(directories))?;
    Ok(notes)
}

/// Has new connections from other hosts follow containers whose addresses have changed, as they do when a container is
/// started again; returns the names of those that were followed. `addresses` tells a container's addresses, none for
/// one that does not run.
///
/// # Errors
/// The lock cannot be taken, a note cannot be read or written, or the kernel refuses the rules.
pub async fn follow(
    directories: &Directories,
    addresses: impl AsyncFn(&str) -> Vec<IpAddr>,
) -> Result<Vec<String>, Cause> {
    let mut followed = Vec::new();
    for seen in all(directories)?.into_iter().filter(|note| note.role == Role::Here) {
        let Some(moved) = seen.at(&addresses(&seen.id).await) else { continue };
        // What an agent works on is its own matter.
        let Ok(_free) = ContainerLock::begin(directories, &seen.id, &seen.name) else { continue };
        let lock = SteeringLock::take(&directories.run).await?;
        // It may have been removed meanwhile.
        if all(directories)?.contains(&seen) {
            moved.write(directories, &lock)?;
            moved.apply(&directories.state)?;
            followed.push(moved.name);
        }
    }
    Ok(followed)
}

/// Has the ports of a container lead to its new host, if its migration has a note about that: the move is decided.
///
/// # Errors
/// The lock cannot be taken, a note cannot be read or written, or the kernel refuses the rules.
pub async fn begin(directories: &Directories, migration: MigrationId) -> Result<(), Cause> {
    let of_this = |note: &Note| note.migration == migration && note.away().is_some();
    if !all(directories)?.iter().any(of_this) {
        return Ok(());
    }
    let lock = SteeringLock::take(&directories.run).await?;
    for mut note in all(directories)?.into_iter().filter(of_this) {
        if let Role::Away(away) = &mut note.role {
            away.in_force = true;
            note.write(directories, &lock)?;
            note.apply(&directories.state)?;
        }
    }
    Ok(())
}

/// Has the ports of a container that has moved from one other host to another lead to its new host; returns the names
/// of the containers whose ports lead there now.
///
/// # Errors
/// The new host has no number here, the lock cannot be taken, a note cannot be read or written, or the kernel refuses.
pub async fn lead_on(
    directories: &Directories,
    container: &[IpAddr],
    (from, to): (HostId, HostId),
) -> Result<Vec<String>, Cause> {
    let concerned = |note: &Note| {
        note.host == from
            && note.addresses.iter().any(|ip| container.contains(ip))
            && note.away().is_some_and(|away| away.in_force)
    };
    if !all(directories)?.iter().any(concerned) {
        return Ok(Vec::new());
    }
    let peer = peer_numbers::number(&directories.state, to)?;
    let known = tunnel::status(peer).await?.and_then(|status| status.address);
    let lock = SteeringLock::take(&directories.run).await?;
    let mut led = Vec::new();
    for mut note in all(directories)?.into_iter().filter(concerned) {
        let Role::Away(away) = &mut note.role else { continue };
        if let Some(address) = known {
            away.destination = Destination { host: address.to_string(), port: DEFAULT_PORT };
            away.hidden.push(host_alone(address));
        }
        note.host = to;
        note.write(directories, &lock)?;
        note.apply(&directories.state)?;
        led.push(note.name);
    }
    Ok(led)
}

/// Returns the sources that stand for this host at its peers: its address there, and of the other family one
/// that stands for it in its tunnels.
///
/// # Errors
/// [`NoAlias`].
pub fn stand_ins(own: IpAddr, aliases: &Aliases) -> Result<Vec<IpAddr>, NoAlias> {
    let other = aliases.of(tunnel_aliases::this_host(!own.is_ipv4()))?.address;
    Ok(vec![own, other])
}

/// Returns an address as a network of one address.
#[must_use]
pub fn host_alone(address: IpAddr) -> (IpAddr, u8) {
    (address, if address.is_ipv4() { 32 } else { 128 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_follows_a_container_to_its_new_addresses() {
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let all = |texts: &[&str]| texts.iter().map(|text| ip(text)).collect::<Vec<_>>();
        let note = Note {
            id: "c".repeat(64),
            name: "web".to_owned(),
            addresses: all(&["10.88.0.2", "fd00::2"]),
            readdressed: vec![(ip("198.18.0.1"), ip("10.88.0.2"))],
            host: HostId([1; 16]),
            migration: MigrationId([7; 16]),
            role: Role::Here,
        };
        assert_eq!(note.at(&all(&["fd00::2", "10.88.0.2"])), None, "nothing has changed");
        assert_eq!(note.at(&[]), None, "it does not run");
        assert_eq!(note.at(&all(&["10.88.0.9"])), None, "half of it");
        let moved = note.at(&all(&["10.88.0.9", "fd00::9"])).unwrap();
        assert_eq!(moved.addresses, all(&["10.88.0.9", "fd00::9"]));
        let ways = [(ip("198.18.0.1"), ip("10.88.0.9")), (ip("fd00::2"), ip("fd00::9"))];
        assert_eq!(moved.readdressed, ways);
        // Once more, and back to the first address.
        let back = moved.at(&all(&["10.88.0.9", "fd00::2"])).unwrap();
        assert_eq!(back.readdressed, ways[..1]);
    }

    #[tokio::test]
    async fn one_note_leads_away_and_one_of_each_host_leads_here() {
        let directory = tempfile::tempdir().unwrap();
        let directories =
            Directories { state: directory.path().join("s"), run: directory.path().join("r") };
        directories.create().unwrap();
        assert_eq!(all(&directories).unwrap(), []);
        let lock = SteeringLock::take(&directories.run).await.unwrap();
        let note = |host: u8, role| Note {
            id: "c".repeat(64),
            name: "web".to_owned(),
            addresses: vec!["10.88.0.2".parse().unwrap()],
            readdressed: vec![],
            host: HostId([host; 16]),
            migration: MigrationId([7; 16]),
            role,
        };
        let away = |in_force| {
            let (ports, hidden, stand_ins) = (vec![], vec![], vec![]);
            let destination = "b".parse().unwrap();
            Role::Away(Away { destination, ports, hidden, stand_ins, in_force })
        };
        for note in [note(1, away(false)), note(2, away(true)), note(1, Role::Here)] {
            note.write(&directories, &lock).unwrap();
            note.write(&directories, &lock).unwrap();
        }
        note(2, Role::Here).write(&directories, &lock).unwrap();
        let notes = all(&directories).unwrap();
        assert_eq!(notes.len(), 3);
        assert_eq!(notes.iter().filter(|n| n.away().is_some_and(|away| away.in_force)).count(), 1);
        let here = leading_here(&directories, &"c".repeat(64)).unwrap();
        let here: Vec<HostId> = here.into_iter().map(|forwarder| forwarder.host).collect();
        assert_eq!(here, [HostId([1; 16]), HostId([2; 16])]);
        assert!(leading_here(&directories, &"d".repeat(64)).unwrap().is_empty());
        assert!(!need(&directories, PeerNumber::new(1).unwrap()).unwrap());
        let peer = peer_numbers::allot(&directories.state, HostId([2; 16])).unwrap();
        assert!(need(&directories, peer).unwrap());
        assert!(!need(&directories, PeerNumber::new(200).unwrap()).unwrap());
    }
}
