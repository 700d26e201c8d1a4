//! The hosts that this host knows: one small file for each, which people may read and edit.
//!
//! ```toml
//! version = 1
//! fingerprint = "SHA256:…"
//! paired = "2026-11-21T05:00:00Z"
//! destination = "192.0.2.2:7472"    # containers may be moved there; its agent-server's address
//! [source]                          # it may move containers here, with these permissions
//! names = ["*"]
//! ```
//!
//! The two roles of a host are independent: a host that joins a server may move containers there, and nothing else.

mod name;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::name::Name;
use super::{FORM, Fingerprint, Timestamp};
use crate::permissions::Permissions;
use state::peer_address::Destination;
use state::private_file::{self, StateLock};
use state::versioned_file::{self, Toml};

/// Maximum number of peers: a mark in the kernel has one byte for a peer's number.
const MOST: usize = 255;
const SUFFIX: &str = ".toml";

/// A host that this one knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The name by which this host knows it.
    pub name: Name,
    /// The fingerprint of its certificate.
    pub fingerprint: Fingerprint,
    /// When it was paired.
    pub paired: Timestamp,
    /// The address of its agent-server, if containers may be moved there.
    pub destination: Option<Destination>,
    /// Its permissions, if it may move containers here.
    pub source: Option<Permissions>,
}

/// The content of a peer's file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    fingerprint: Fingerprint,
    paired: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<Destination>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Permissions>,
}

/// The peers of this host cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] versioned_file::Error),
    /// There are too many peers.
    #[error("this host knows {MOST} peers already; remove one first")]
    TooMany,
}

/// The peers in a state directory. Their files are read anew each time.
#[derive(Clone, Debug)]
pub struct Peers {
    state: PathBuf,
}

impl Peers {
    /// Returns the peers in a state directory.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self { state: state.to_owned() }
    }

    fn directory(&self) -> PathBuf {
        self.state.join("peers")
    }

    fn path(&self, name: &Name) -> PathBuf {
        self.directory().join(format!("{name}{SUFFIX}"))
    }

    /// Returns all peers, ordered by their names.
    ///
    /// # Errors
    /// [`Error::File`], if a file cannot be used or is damaged.
    pub fn all(&self) -> Result<Vec<Peer>, Error> {
        let mut peers = Vec::new();
        for name in self.names()? {
            peers.extend(self.get(&name)?);
        }
        Ok(peers)
    }

    /// Finds the peer with a certificate. A damaged file hides the peer that it describes, and no other.
    ///
    /// # Errors
    /// [`Error::File`], if the peer is not found, and a file cannot be used or is damaged.
    pub fn find(&self, fingerprint: Fingerprint) -> Result<Option<Peer>, Error> {
        let mut outcome = Ok(None);
        for name in self.names()? {
            match self.get(&name) {
                Ok(Some(peer)) if peer.fingerprint == fingerprint => return Ok(Some(peer)),
                Ok(_) => {}
                Err(e) => outcome = Err(e),
            }
        }
        outcome
    }

    /// Returns the peer with a name.
    ///
    /// # Errors
    /// [`Error::File`], if its file cannot be used or is damaged.
    pub fn get(&self, name: &Name) -> Result<Option<Peer>, Error> {
        let Some(record) = versioned_file::read::<Toml, Record>(&self.path(name), FORM)? else {
            return Ok(None);
        };
        Ok(Some(Peer {
            name: name.clone(),
            fingerprint: record.fingerprint,
            paired: record.paired,
            destination: record.destination,
            source: record.source,
        }))
    }

    /// Allows the host with a certificate to move containers here.
    ///
    /// # Errors
    /// [`Error`], if there are too many peers, or a file cannot be used.
    pub fn add_source(
        &self,
        lock: &StateLock,
        fingerprint: Fingerprint,
        wish: &str,
    ) -> Result<Peer, Error> {
        self.change(lock, fingerprint, wish, |peer| {
            peer.source.get_or_insert_with(Permissions::of_new_peer);
        })
    }

    /// Adds the host with a certificate as a destination.
    ///
    /// # Errors
    /// As [`Peers::add_source`].
    pub fn add_destination(
        &self,
        lock: &StateLock,
        fingerprint: Fingerprint,
        wish: &str,
        address: Destination,
    ) -> Result<Peer, Error> {
        self.change(lock, fingerprint, wish, |peer| peer.destination = Some(address))
    }

    /// Replaces the permissions of a peer; returns whether it may move containers here at all.
    ///
    /// # Errors
    /// [`Error::File`], if its file cannot be used.
    pub fn permit(
        &self,
        lock: &StateLock,
        name: &Name,
        permissions: Permissions,
    ) -> Result<bool, Error> {
        let peer = self.get(name)?.filter(|peer| peer.source.is_some());
        let Some(peer) = peer else { return Ok(false) };
        self.write(lock, &Peer { source: Some(permissions), ..peer }).map(|()| true)
    }

    /// Takes the right to move containers here from a peer; returns whether it had that right.
    ///
    /// # Errors
    /// [`Error::File`], if its file cannot be used.
    pub fn remove_source(&self, lock: &StateLock, name: &Name) -> Result<bool, Error> {
        let peer = self.get(name)?.filter(|peer| peer.source.is_some());
        let Some(peer) = peer else { return Ok(false) };
        self.write(lock, &Peer { source: None, ..peer }).map(|()| true)
    }

    /// Removes a peer as a destination. Returns whether it was one.
    ///
    /// # Errors
    /// [`Error::File`], if its file cannot be used.
    pub fn remove_destination(&self, lock: &StateLock, name: &Name) -> Result<bool, Error> {
        let peer = self.get(name)?.filter(|peer| peer.destination.is_some());
        let Some(peer) = peer else { return Ok(false) };
        self.write(lock, &Peer { destination: None, ..peer }).map(|()| true)
    }

    /// Changes the peer with a certificate. A new peer gets a free name.
    fn change(
        &self,
        lock: &StateLock,
        fingerprint: Fingerprint,
        wish: &str,
        change: impl FnOnce(&mut Peer),
    ) -> Result<Peer, Error> {
        let mut peer = match self.find(fingerprint)? {
            Some(known) => known,
            None => Peer {
                name: self.free_name(&Name::like(wish))?,
                fingerprint,
                paired: Timestamp::now(),
                destination: None,
                source: None,
            },
        };
        change(&mut peer);
        self.write(lock, &peer)?;
        Ok(peer)
    }

    fn free_name(&self, wish: &Name) -> Result<Name, Error> {
        let taken = self.names()?;
        if taken.len() >= MOST {
            return Err(Error::TooMany);
        }
        let all = (2..MOST + 2).map(|number| wish.numbered(number));
        std::iter::once(wish.clone())
            .chain(all)
            .find(|name| !taken.contains(name))
            .ok_or(Error::TooMany)
    }

    /// Writes a peer's file, or removes it if the peer has no role left.
    fn write(&self, _lock: &StateLock, peer: &Peer) -> Result<(), Error> {
        let path = self.path(&peer.name);
        if peer.source.is_none() && peer.destination.is_none() {
            private_file::remove(&path).map_err(versioned_file::Error::from)?;
            return Ok(());
        }
        let record = Record {
            fingerprint: peer.fingerprint,
            paired: peer.paired,
            destination: peer.destination.clone(),
            source: peer.source.clone(),
        };
        Ok(versioned_file::write::<Toml, _>(&path, FORM, &record)?)
    }

    /// Returns the names of all peers' files, in order.
    fn names(&self) -> Result<Vec<Name>, Error> {
        let directory = self.directory();
        let unread =
            |e| Error::from(versioned_file::Error::from(private_file::Error::of(&directory)(e)));
        let entries = match fs::read_dir(&directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(unread)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.map_err(unread)?.file_name();
            let name = file.to_str().and_then(|text| text.strip_suffix(SUFFIX));
            names.extend(name.and_then(|name| name.parse::<Name>().ok()));
        }
        names.sort();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(byte: u8) -> Fingerprint {
        Fingerprint([byte; 32])
    }

    fn address() -> Destination {
        "192.0.2.2:7472".parse().unwrap()
    }

    #[test]
    fn a_peer_keeps_its_name_and_both_roles() {
        let dir = tempfile::tempdir().unwrap();
        let (peers, lock) = (Peers::new(dir.path()), private_file::lock(dir.path()).unwrap());
        assert!(peers.all().unwrap().is_empty());
        peers.add_source(&lock, print(1), "b").unwrap();
        let both = peers.add_destination(&lock, print(1), "other", address()).unwrap();
        assert_eq!((both.name.as_str(), both.source.is_some()), ("b", true));
        assert_eq!(peers.all().unwrap(), std::slice::from_ref(&both));
        assert_eq!(peers.find(print(1)).unwrap(), Some(both.clone()));
        assert_eq!(both.source, Some(Permissions::of_new_peer()));
        let more = Permissions { memory: Some(1 << 30), ..Permissions::of_new_peer() };
        assert!(peers.permit(&lock, &both.name, more.clone()).unwrap());
        peers.add_source(&lock, print(1), "b").unwrap();
        assert_eq!(peers.get(&both.name).unwrap().unwrap().source, Some(more));

        assert!(peers.remove_source(&lock, &both.name).unwrap());
        assert!(!peers.remove_source(&lock, &both.name).unwrap());
        assert_eq!(peers.find(print(1)).unwrap().unwrap().destination, Some(address()));
        assert!(peers.remove_destination(&lock, &both.name).unwrap());
        assert_eq!(peers.find(print(1)).unwrap(), None);
    }

    #[test]
    fn two_hosts_of_one_name_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (peers, lock) = (Peers::new(dir.path()), private_file::lock(dir.path()).unwrap());
        let names: Vec<String> = (1..4)
            .map(|n| peers.add_source(&lock, print(n), "Web Host").unwrap().name.to_string())
            .collect();
        assert_eq!(names, ["web-host", "web-host-2", "web-host-3"]);
    }

    #[test]
    fn a_name_from_elsewhere_stays_inside_the_directory() {
        for (wish, name) in [
            ("../../etc/passwd", "etc-passwd"),
            ("", "host"),
            ("\u{202e}\n", "host"),
            (".hidden", "hidden"),
            (&"x".repeat(5000), &"x".repeat(63)),
        ] {
            assert_eq!(Name::like(wish).as_str(), name);
        }
        for bad in ["../b", "", "B", "a/b", &"x".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
        assert_eq!(Name::like(&"x".repeat(63)).numbered(12).as_str().len(), 63);
    }

    #[test]
    fn a_damaged_file_is_named_and_hides_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let (peers, lock) = (Peers::new(dir.path()), private_file::lock(dir.path()).unwrap());
        peers.add_source(&lock, print(1), "b").unwrap();
        peers.add_source(&lock, print(2), "a").unwrap();
        for rubbish in [&b"fingerprint = 1"[..], b"\xff", b"unknown = true\n"] {
            private_file::replace(&dir.path().join("peers/a.toml"), rubbish).unwrap();
            let refused = peers.all().unwrap_err().to_string();
            assert!(refused.contains("peers/a.toml"), "{refused}");
            assert!(peers.find(print(1)).unwrap().is_some());
            assert!(peers.find(print(2)).is_err());
        }
    }

    #[test]
    fn the_256th_peer_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (peers, lock) = (Peers::new(dir.path()), private_file::lock(dir.path()).unwrap());
        state::directories::create_private(&peers.directory()).unwrap();
        for number in 0..MOST {
            fs::write(peers.path(&format!("h{number}").parse::<Name>().unwrap()), "").unwrap();
        }
        assert!(matches!(peers.free_name(&Name::like("b")), Err(Error::TooMany)));
        drop(lock);
    }
}
