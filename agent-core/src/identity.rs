//! Who a host is to the migrations, and which number each of its peers has.
//!
//! Peers are numbered in the order in which they were met; a number is never given to another peer,
//! because marks in the kernel carry it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use netmig::peer::PeerNumber;

pub use crate::id::HostId;
use crate::private;

/// Size limit of the peers' file; 255 entries take less than 20 KiB.
const PEERS_LIMIT: u64 = 64 * 1024;

/// The peers' numbers could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the state directory failed.
    #[error(transparent)]
    File(#[from] private::Error),
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

/// The peer that has a number on this host, if one has.
pub fn peer_with_number(state: &Path, number: PeerNumber) -> Result<Option<HostId>, Error> {
    let _lock = private::lock(state)?;
    let peers = read_peers(&state.join("peers.json"))?;
    let named = peers.iter().find(|(_, taken)| **taken == number);
    Ok(named.and_then(|(name, _)| name.parse().ok()))
}

/// The number of `peer` on this host; a new peer gets the lowest free one.
pub fn peer_number(state: &Path, peer: HostId) -> Result<PeerNumber, Error> {
    let path = state.join("peers.json");
    let foreign = || Error::Foreign { path: path.clone() };
    let _lock = private::lock(state)?;
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
    private::replace(&path, &text)?;
    Ok(number)
}

/// The file of peers; empty if there is none.
fn read_peers(path: &Path) -> Result<BTreeMap<String, PeerNumber>, Error> {
    match private::read(path, PEERS_LIMIT)? {
        Some(text) => {
            serde_json::from_slice(&text).map_err(|_| Error::Foreign { path: path.to_owned() })
        }
        None => Ok(BTreeMap::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let path = dir.path().join("peers.json");
        private::replace(&path, b"\xff\x00rubbish").unwrap();
        assert!(matches!(peer_number(dir.path(), HostId([1; 16])), Err(Error::Foreign { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"\xff\x00rubbish");
    }

    #[test]
    fn the_256th_peer_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let peers: BTreeMap<String, PeerNumber> = (1..=255u8)
            .map(|n| (HostId([n; 16]).to_string(), PeerNumber::new(n).unwrap()))
            .collect();
        let text = serde_json::to_vec(&peers).unwrap();
        private::replace(&dir.path().join("peers.json"), &text).unwrap();
        let refused = peer_number(dir.path(), HostId([0; 16]));
        assert!(matches!(refused, Err(Error::TooManyPeers { .. })));
    }
}
