//! Who a host is, and which number each of its peers has.
//!
//! A host makes a random identity when it first runs. Peers are numbered in the order in which they
//! were met; a number is never given to another peer, because marks in the kernel carry it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use netmig::peer::PeerNumber;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

/// Size limit of the peers' file; 255 entries take less than 20 KiB.
const PEERS_LIMIT: u64 = 64 * 1024;

/// Random identity of a host, 128 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostId(pub [u8; 16]);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A text that is no identity.
#[derive(Debug, thiserror::Error)]
#[error("not the identity of a host")]
pub struct InvalidHostId;

impl FromStr for HostId {
    type Err = InvalidHostId;

    fn from_str(text: &str) -> Result<Self, InvalidHostId> {
        let mut id = [0; 16];
        if text.len() != 2 * id.len() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(InvalidHostId);
        }
        for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| InvalidHostId)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| InvalidHostId)?;
        }
        Ok(Self(id))
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostId({self})")
    }
}

/// Identity or peers of this host could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the state directory failed.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A file of the state directory holds something that netmig did not write.
    #[error("{path} is not a file that netmig wrote; move it away and run again")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// All 255 numbers are taken.
    #[error("this host knows 255 peers already; remove {path} once none of them carries flows")]
    TooManyPeers {
        /// The file that lists them.
        path: PathBuf,
    },
}

/// 16 bytes from the kernel's random source.
pub fn random_id() -> io::Result<[u8; 16]> {
    let mut id = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut id)?;
    Ok(id)
}

/// Reads this host's identity from `state`, making one on first use.
pub fn host_id(state: &Path) -> Result<HostId, Error> {
    let path = state.join("host-id");
    let file = |source| Error::File { path: path.clone(), source };
    let _lock = lock(state)?;
    match fs::read(&path) {
        Ok(bytes) => {
            bytes.try_into().map(HostId).map_err(|_| Error::Foreign { path: path.clone() })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let id = HostId(random_id().map_err(file)?);
            write_whole(&path, &id.0).map_err(file)?;
            Ok(id)
        }
        Err(e) => Err(file(e)),
    }
}

/// The peer that has a number on this host, if one has.
pub fn peer_with_number(state: &Path, number: PeerNumber) -> Result<Option<HostId>, Error> {
    let _lock = lock(state)?;
    let peers = read_peers(&state.join("peers.json"))?;
    let named = peers.iter().find(|(_, taken)| **taken == number);
    Ok(named.and_then(|(name, _)| name.parse().ok()))
}

/// The number of `peer` on this host; a new peer gets the lowest free one.
pub fn peer_number(state: &Path, peer: HostId) -> Result<PeerNumber, Error> {
    let path = state.join("peers.json");
    let file = |source| Error::File { path: path.clone(), source };
    let foreign = || Error::Foreign { path: path.clone() };
    let _lock = lock(state)?;
    let mut peers = read_peers(&path)?;
    if let Some(number) = peers.get(&peer.to_string()) {
        return Ok(*number);
    }
    let number = (1..=255)
        .filter_map(PeerNumber::new)
        .find(|n| !peers.values().any(|taken| taken == n))
        .ok_or_else(|| Error::TooManyPeers { path: path.clone() })?;
    peers.insert(peer.to_string(), number);
    let text = serde_json::to_vec_pretty(&peers).map_err(|_| foreign())?;
    write_whole(&path, &text).map_err(file)?;
    Ok(number)
}

/// The file of peers; empty if there is none.
fn read_peers(path: &Path) -> Result<BTreeMap<String, PeerNumber>, Error> {
    let file = |source| Error::File { path: path.to_owned(), source };
    match File::open(path) {
        Ok(f) => {
            let mut text = String::new();
            f.take(PEERS_LIMIT).read_to_string(&mut text).map_err(file)?;
            serde_json::from_str(&text).map_err(|_| Error::Foreign { path: path.to_owned() })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(e) => Err(file(e)),
    }
}

/// Replaces a file in one step, durably: either the old content is there or the new one.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    if let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Agents of both roles share the state directory; one at a time may change it.
fn lock(state: &Path) -> Result<Flock<File>, Error> {
    let path = state.join("lock");
    let file = |source| Error::File { path: path.clone(), source };
    let handle = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(file)?;
    Flock::lock(handle, FlockArg::LockExclusive).map_err(|(_, errno)| file(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(host_id(dir.path()).unwrap(), host_id(dir.path()).unwrap());
    }

    #[test]
    fn peers_keep_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let first = peer_number(dir.path(), HostId([1; 16])).unwrap();
        let second = peer_number(dir.path(), HostId([2; 16])).unwrap();
        assert_ne!(first, second);
        assert_eq!(first, peer_number(dir.path(), HostId([1; 16])).unwrap());
        assert_eq!(peer_with_number(dir.path(), second).unwrap(), Some(HostId([2; 16])));
        assert_eq!(peer_with_number(dir.path(), PeerNumber::new(9).unwrap()).unwrap(), None);
        assert!("0".repeat(31).parse::<HostId>().is_err());
        assert!("é".repeat(16).parse::<HostId>().is_err());
    }

    #[test]
    fn foreign_files_are_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("peers.json"), b"\xff\x00rubbish").unwrap();
        fs::write(dir.path().join("host-id"), b"short").unwrap();
        assert!(peer_number(dir.path(), HostId([1; 16])).is_err());
        assert!(matches!(host_id(dir.path()), Err(Error::Foreign { .. })));
        assert_eq!(fs::read(dir.path().join("host-id")).unwrap(), b"short");
    }

    #[test]
    fn the_256th_peer_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let peers: BTreeMap<String, PeerNumber> = (1..=255u8)
            .map(|n| (HostId([n; 16]).to_string(), PeerNumber::new(n).unwrap()))
            .collect();
        fs::write(dir.path().join("peers.json"), serde_json::to_vec(&peers).unwrap()).unwrap();
        let refused = peer_number(dir.path(), HostId([0; 16]));
        assert!(matches!(refused, Err(Error::TooManyPeers { .. })));
    }
}
