//! Invitations: the server's side of join tokens. There is one file for each issued token, with the secret hashed. It
//! stays until a day after the token has expired, so that a host with an old token is told why it is refused.
//!
//! ```toml
//! version = 1
//! secret = "…"                        # SHA-256, hexadecimal
//! expires = "2026-11-21T06:00:00Z"
//! uses = 1
//! used_by = ["SHA256:…"]
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::token::SecretHash;
use super::{FORM, Fingerprint, Peer, Peers, Secret, Timestamp, peers};
use state::private_file;
use state::versioned_file::{self, Toml, read, write};

/// Maximum number of open invitations.
const MOST: usize = 64;
/// How long an expired invitation is kept.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// Maximum number of hosts that may use one token.
pub const USES_LIMIT: u32 = 255;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Invitation {
    secret: String,
    expires: Timestamp,
    uses: u32,
    used_by: Vec<Fingerprint>,
}

/// A secret is refused, or an invitation cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The secret is not that of a known token.
    #[error("this host has given out no such token; run agent-server invite for a new one")]
    Unknown,
    /// The token has expired.
    #[error("this token expired at {0}; run agent-server invite for a new one")]
    Expired(Timestamp),
    /// The token has been used as often as it may be.
    #[error("this token has been used; run agent-server invite for a new one")]
    Used,
    /// There are too many open invitations.
    #[error(
        "{MOST} invitations are open already; wait for them to expire, or remove files from {0}"
    )]
    TooMany(PathBuf),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] private_file::Error),
    /// A file is of a later version, or holds something else.
    #[error(transparent)]
    Read(#[from] versioned_file::Error),
    /// A file holds no hash of a secret.
    #[error("{path} is not an invitation; remove it")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The peer cannot be stored.
    #[error(transparent)]
    Peers(#[from] peers::Error),
    /// The random source cannot be read.
    #[error("cannot make a secret")]
    Random(#[source] io::Error),
}

impl Error {
    /// Returns whether the host that presented the secret is told the reason: it is about the token and not about
    /// this host's files.
    #[must_use]
    pub fn is_about_the_token(&self) -> bool {
        matches!(self, Self::Unknown | Self::Expired(_) | Self::Used)
    }
}

/// Creates an invitation with which `uses` hosts may join until `expires`, and returns its secret.
///
/// # Errors
/// [`Error`], if too many invitations are open, or a file cannot be used.
pub fn invite(state: &Path, expires: Timestamp, uses: u32) -> Result<Secret, Error> {
    let _lock = private_file::lock(state)?;
    let directory = directory(state);
    let mut open = 0;
    for path in files(&directory)? {
        match read::<Toml, Invitation>(&path, FORM)? {
            Some(old) if old.expires.after(REMEMBERED).has_passed() => {
                private_file::remove(&path)?;
            }
            Some(_) => open += 1,
            None => {}
        }
    }
    if open >= MOST {
        return Err(Error::TooMany(directory));
    }
    let secret = Secret::random().map_err(Error::Random)?;
    let hash = HEXLOWER.encode(&secret.hash().0);
    let path = directory.join(format!("{}.toml", &hash[..16]));
    let invitation = Invitation { secret: hash, expires, uses, used_by: Vec::new() };
    write::<Toml, _>(&path, FORM, &invitation)?;
    Ok(secret)
}

/// Pairs the host `joiner`, which presents the secret of an open invitation: it may move containers here, and gets
/// a name like `wish`. A host that has used the invitation before and is still known gets the same answer again,
/// because the first one may have been lost.
///
/// # Errors
/// [`Error`], if the secret is not that of an open invitation, or a file cannot be used.
pub fn redeem(
    state: &Path,
    secret: &Secret,
    joiner: Fingerprint,
    wish: &str,
) -> Result<Peer, Error> {
    let lock = private_file::lock(state)?;
    let presented = secret.hash();
    let mut found = None;
    for path in files(&directory(state))? {
        let Some(invitation) = read::<Toml, Invitation>(&path, FORM)? else { continue };
        let stored = HEXLOWER.decode(invitation.secret.as_bytes()).unwrap_or_default();
        let Ok(stored) = stored.try_into() else { return Err(Error::Damaged { path }) };
        // All invitations are compared, each in constant time.
        if SecretHash(stored) == presented {
            found = Some((path, invitation));
        }
    }
    let (path, mut invitation) = found.ok_or(Error::Unknown)?;
    let peers = Peers::new(state);
    if invitation.used_by.contains(&joiner)
        && let Some(known) = peers.find(joiner)?.filter(|peer| peer.source.is_some())
    {
        return Ok(known);
    }
    if invitation.used_by.len() >= invitation.uses as usize {
        return Err(Error::Used);
    }
    if invitation.expires.has_passed() {
        return Err(Error::Expired(invitation.expires));
    }
    // Before the peer is stored: a crash in between wastes the token, and does not allow it twice.
    invitation.used_by.push(joiner);
    write::<Toml, _>(&path, FORM, &invitation)?;
    Ok(peers.add_source(&lock, joiner, wish)?)
}

fn directory(state: &Path) -> PathBuf {
    state.join("invitations")
}

fn files(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(private_file::Error::of(directory))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(private_file::Error::of(directory))?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn print(byte: u8) -> Fingerprint {
        Fingerprint([byte; 32])
    }

    #[test]
    fn a_token_works_once_and_its_secret_is_not_stored() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path();
        let secret = invite(state, Timestamp::now().after(HOUR), 1).unwrap();
        let stored = fs::read_to_string(&files(&directory(state)).unwrap()[0]).unwrap();
        assert!(stored.contains(&HEXLOWER.encode(&secret.hash().0)), "{stored}");

        let peer = redeem(state, &secret, print(1), "a").unwrap();
        assert_eq!((peer.name.as_str(), peer.source.is_some()), ("a", true));
        // The answer was lost: the same host hears it again, another one does not.
        assert_eq!(redeem(state, &secret, print(1), "a").unwrap(), peer);
        assert!(matches!(redeem(state, &secret, print(2), "b"), Err(Error::Used)));
        // Removed, it cannot come back with the same token.
        let lock = private_file::lock(state).unwrap();
        Peers::new(state).remove_source(&lock, &peer.name).unwrap();
        drop(lock);
        assert!(matches!(redeem(state, &secret, print(1), "a"), Err(Error::Used)));
    }

    #[test]
    fn a_token_for_several_hosts() {
        let dir = tempfile::tempdir().unwrap();
        let secret = invite(dir.path(), Timestamp::now().after(HOUR), 2).unwrap();
        redeem(dir.path(), &secret, print(1), "a").unwrap();
        redeem(dir.path(), &secret, print(2), "b").unwrap();
        assert!(matches!(redeem(dir.path(), &secret, print(3), "c"), Err(Error::Used)));
    }

    #[test]
    fn expired_unknown_and_damaged_ones_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path();
        let secret = invite(state, Timestamp::now(), 1).unwrap();
        assert!(matches!(redeem(state, &secret, print(1), "a"), Err(Error::Expired(_))));
        let foreign = Secret::random().unwrap();
        assert!(matches!(redeem(state, &foreign, print(1), "a"), Err(Error::Unknown)));
        assert!(Peers::new(state).all().unwrap().is_empty());
        private_file::replace(&files(&directory(state)).unwrap()[0], b"secret = 1").unwrap();
        assert!(matches!(redeem(state, &secret, print(1), "a"), Err(Error::Read(_))));
    }

    #[test]
    fn invitations_do_not_pile_up() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..MOST {
            invite(dir.path(), Timestamp::now().after(HOUR), 1).unwrap();
        }
        assert!(matches!(invite(dir.path(), Timestamp::now(), 1), Err(Error::TooMany(_))));
    }
}
