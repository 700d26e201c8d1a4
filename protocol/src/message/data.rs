//! Bytes of archives and logs, and messages in messages.

use serde::{Deserialize, Serialize};

/// Bytes of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data(#[serde(with = "serde_bytes")] pub Vec<u8>);

/// A message that comes over a further connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbered {
    /// Its number, counted from 0.
    pub number: u64,
    /// The message, number and body.
    pub message: Data,
}
