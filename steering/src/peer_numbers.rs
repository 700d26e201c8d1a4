//! Who a host is to the migrations, and which number each of its peers has.
//!
//! A peer gets a number when something is about to be made for it, since marks in the kernel carry it: the
//! lowest that is free. It keeps it. Only when all are taken, one whose peer needs nothing of this host any
//! more is given to another ([`crate::tunnels::allot`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use netmig::peer_number::PeerNumber;
use serde::{Deserialize, Serialize};

pub use state::id::HostId;
use state::json_files;
use state::private_file;

/// Version of the peers' file.
const VERSION: u32 = 1;
/// Seconds for which a number stays its peer's although nothing seems to need it: from its allotment to a
/// tunnel or a journal it takes some seconds.
const KEPT: u64 = 3600;
/// Seconds after which it is noted that a number was used again.
const NOTED: u64 = 600;

/// The peers' numbers could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lock of the state directory failed.
    #[error(transparent)]
    File(#[from] private_file::Error),
    /// The file could not be used.
    #[error(transparent)]
    Note(#[from] json_files::Error),
    /// All 255 numbers are taken.
    #[error(
        "this host has flows of 255 other hosts, or had within the last hour, and cannot tell more of \
         them apart (see {path}); try again when some of these flows have ended"
    )]
    TooManyPeers {
        /// The file that lists them.
        path: PathBuf,
    },
    /// Nothing was ever made for the peer.
    #[error("this host has no tunnel to the host {host}, and never had one")]
    NoNumber {
        /// The peer.
        host: HostId,
    },
}

/// The number of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Form")]
struct Allotted {
    number: PeerNumber,
    /// When something was last about to be made for the peer, in seconds since 1970.
    used: u64,
}

/// How it is written: first there was the number alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Form {
    Number(PeerNumber),
    Used { number: PeerNumber, used: u64 },
}

impl From<Form> for Allotted {
    fn from(form: Form) -> Self {
        match form {
            Form::Number(number) => Self { number, used: 0 },
            Form::Used { number, used } => Self { number, used },
        }
    }
}

/// The peers by their identities.
type Peers = BTreeMap<String, Allotted>;

/// Returns the peer that has a number on this host, if one has.
///
/// # Errors
/// [`Error`], if the peers' file cannot be read.
pub fn peer_with_number(state: &Path, number: PeerNumber) -> Result<Option<HostId>, Error> {
    let peers = read(&path(state))?;
    let named = peers.iter().find(|(_, peer)| peer.number == number);
    Ok(named.and_then(|(name, _)| name.parse().ok()))
}

/// Returns the number of a peer on this host, if it has one.
///
/// # Errors
/// [`Error`], if the peers' file cannot be read.
pub fn find_number(state: &Path, peer: HostId) -> Result<Option<PeerNumber>, Error> {
    Ok(read(&path(state))?.get(&peer.to_string()).map(|peer| peer.number))
}

/// Returns the number of a peer for which this host has made something.
///
/// # Errors
/// [`Error::NoNumber`], or the file cannot be read.
pub fn number(state: &Path, peer: HostId) -> Result<PeerNumber, Error> {
    find_number(state, peer)?.ok_or(Error::NoNumber { host: peer })
}

/// Returns the number of `peer`, for which something is about to be made; a new one gets the lowest free number.
/// Agents use [`crate::tunnels::allot`].
///
/// # Errors
/// [`Error::TooManyPeers`], or the file cannot be read or written.
pub fn allot(state: &Path, peer: HostId) -> Result<PeerNumber, Error> {
    let path = path(state);
    let _lock = private_file::lock(state)?;
    let mut peers = read(&path)?;
    let now = now();
    if let Some(known) = peers.get_mut(&peer.to_string()) {
        let number = known.number;
        if known.used.abs_diff(now) > NOTED {
            known.used = now;
            json_files::write(&path, VERSION, &peers)?;
        }
        return Ok(number);
    }
    let taken: BTreeSet<_> = peers.values().map(|peer| peer.number).collect();
    let mut all = (1..=u8::MAX).filter_map(PeerNumber::new);
    let number = all
        .find(|number| !taken.contains(number))
        .ok_or_else(|| Error::TooManyPeers { path: path.clone() })?;
    peers.insert(peer.to_string(), Allotted { number, used: now });
    json_files::write(&path, VERSION, &peers)?;
    Ok(number)
}

/// Does the same when all are taken: the number of the peer that was used longest ago, of those that are not
/// `needed` and that have not been used lately, is the new one's.
///
/// # Errors
/// [`Error::TooManyPeers`], or the file cannot be read or written.
pub fn take_over(
    state: &Path,
    peer: HostId,
    needed: &BTreeSet<PeerNumber>,
) -> Result<PeerNumber, Error> {
    let path = path(state);
    let _lock = private_file::lock(state)?;
    let mut peers = read(&path)?;
    let now = now();
    let free = |peer: &&Allotted| {
        // A clock that was set back tells nothing.
        !needed.contains(&peer.number) && peer.used.abs_diff(now) > KEPT
    };
    let oldest = peers.values().filter(free).min_by_key(|peer| (peer.used, peer.number)).copied();
    let Some(Allotted { number, .. }) = oldest else { return Err(Error::TooManyPeers { path }) };
    peers.retain(|_, other| other.number != number);
    peers.insert(peer.to_string(), Allotted { number, used: now });
    json_files::write(&path, VERSION, &peers)?;
    Ok(number)
}

fn path(state: &Path) -> PathBuf {
    state.join("peers.json")
}

/// Returns the file of peers; empty if there is none.
fn read(path: &Path) -> Result<Peers, Error> {
    Ok(json_files::read(path, VERSION)?.unwrap_or_default())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8) -> PeerNumber {
        PeerNumber::new(number).unwrap()
    }

    /// Makes a file in which all numbers are taken, by hosts with these bytes, that were last used so many seconds ago.
    fn full(state: &Path, ago: impl Fn(u8) -> u64) {
        let entry = |n: u8| {
            let allotted = Allotted { number: peer(n), used: now() - ago(n) };
            (HostId([n; 16]).to_string(), allotted)
        };
        let peers: Peers = (1..=255).map(entry).collect();
        json_files::write(&path(state), VERSION, &peers).unwrap();
    }

    #[test]
    fn peers_keep_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let first = allot(dir.path(), HostId([1; 16])).unwrap();
        let second = allot(dir.path(), HostId([2; 16])).unwrap();
        assert_ne!(first, second);
        assert_eq!(first, allot(dir.path(), HostId([1; 16])).unwrap());
        assert_eq!(first, number(dir.path(), HostId([1; 16])).unwrap());
        assert_eq!(peer_with_number(dir.path(), second).unwrap(), Some(HostId([2; 16])));
        assert_eq!(peer_with_number(dir.path(), peer(9)).unwrap(), None);
        assert!("0".repeat(31).parse::<HostId>().is_err());
        assert!("é".repeat(16).parse::<HostId>().is_err());
    }

    #[test]
    fn to_look_a_number_up_allots_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find_number(dir.path(), HostId([1; 16])).unwrap(), None);
        assert!(matches!(number(dir.path(), HostId([1; 16])), Err(Error::NoNumber { .. })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn numbers_of_the_first_form_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("{{\"{}\": 7}}", HostId([1; 16]));
        private_file::replace(&path(dir.path()), text.as_bytes()).unwrap();
        assert_eq!(number(dir.path(), HostId([1; 16])).unwrap(), peer(7));
        assert_eq!(allot(dir.path(), HostId([1; 16])).unwrap(), peer(7));
        assert_eq!(allot(dir.path(), HostId([2; 16])).unwrap(), peer(1));
    }

    #[test]
    fn foreign_files_are_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.json");
        private_file::replace(&path, b"\xff\x00rubbish").unwrap();
        for refused in [allot(dir.path(), HostId([1; 16])), number(dir.path(), HostId([1; 16]))] {
            assert!(matches!(refused, Err(Error::Note(json_files::Error::Damaged { .. }))));
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"\xff\x00rubbish");
    }

    #[test]
    fn the_256th_peer_gets_the_number_that_nothing_has_needed_for_longest() {
        let dir = tempfile::tempdir().unwrap();
        full(dir.path(), |n| 100_000 + u64::from(n));
        let new = HostId([0; 16]);
        assert!(matches!(allot(dir.path(), new), Err(Error::TooManyPeers { .. })));
        let needed: BTreeSet<_> = (200..=255).map(peer).collect();
        assert_eq!(take_over(dir.path(), new, &needed).unwrap(), peer(199));
        assert_eq!(number(dir.path(), new).unwrap(), peer(199));
        assert_eq!(find_number(dir.path(), HostId([199; 16])).unwrap(), None);
        assert_eq!(number(dir.path(), HostId([198; 16])).unwrap(), peer(198));
    }

    #[test]
    fn numbers_that_are_needed_or_were_used_lately_stay_their_peers() {
        let dir = tempfile::tempdir().unwrap();
        full(dir.path(), |n| if n < 128 { 5 } else { 100_000 });
        let needed: BTreeSet<_> = (128..=255).map(peer).collect();
        let refused = take_over(dir.path(), HostId([0; 16]), &needed);
        assert!(matches!(refused, Err(Error::TooManyPeers { .. })));
        assert_eq!(number(dir.path(), HostId([7; 16])).unwrap(), peer(7));
        // Used again: it is not given away any more.
        allot(dir.path(), HostId([200; 16])).unwrap();
        let all_but = |n| (128..=255).filter(|&other| other != n).map(peer).collect();
        assert!(take_over(dir.path(), HostId([0; 16]), &all_but(200)).is_err());
        assert_eq!(take_over(dir.path(), HostId([0; 16]), &all_but(201)).unwrap(), peer(201));
    }
}
