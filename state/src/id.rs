//! Identities of hosts and of migrations, 16 bytes each.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The identity of a host: the first half of its certificate's fingerprint (`protocol::trust::Fingerprint`),
/// which the handshake proves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostId(pub [u8; 16]);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A text that is not the identity of a host.
#[derive(Debug, thiserror::Error)]
#[error("not the identity of a host")]
pub struct InvalidHostId;

impl FromStr for HostId {
    type Err = InvalidHostId;

    fn from_str(text: &str) -> Result<Self, InvalidHostId> {
        parse(text).map(Self).ok_or(InvalidHostId)
    }
}

fn parse(text: &str) -> Option<[u8; 16]> {
    let mut id = [0; 16];
    if text.len() != 2 * id.len() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).ok()?;
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(id)
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostId({self})")
    }
}

/// The identity of a migration: random bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MigrationId(pub [u8; 16]);

impl MigrationId {
    /// Returns a new identity from the kernel's random source.
    ///
    /// # Errors
    /// The random source cannot be read.
    pub fn random() -> std::io::Result<Self> {
        random_id().map(Self)
    }
}

impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A text that is not the identity of a migration.
#[derive(Debug, thiserror::Error)]
#[error("not the identity of a migration")]
pub struct InvalidMigrationId;

impl FromStr for MigrationId {
    type Err = InvalidMigrationId;

    fn from_str(text: &str) -> Result<Self, InvalidMigrationId> {
        parse(text).map(Self).ok_or(InvalidMigrationId)
    }
}

impl fmt::Debug for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MigrationId({self})")
    }
}

/// Returns 16 bytes from the kernel's random source.
///
/// # Errors
/// The random source cannot be read.
pub fn random_id() -> io::Result<[u8; 16]> {
    let mut id = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut id)?;
    Ok(id)
}
