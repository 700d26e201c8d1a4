//! Authentication of hosts. There is no certificate authority: each host has a key and a self-signed certificate of
//! its own, and knows its peers by the fingerprints of their certificates.
//!
//! ```text
//! STATE/identity.pem             this host's certificate and private key      (identity)
//! STATE/peers/NAME.toml          one peer: fingerprint, what it may do        (peers)
//! STATE/invitations/HASH.toml    an issued join token, hashed                 (invitation)
//! ```
//!
//! The last two name the version of their form ([`state::versioned_file`]). All of them have mode 0600 and are
//! read anew for every handshake, so that a running server refuses a removed peer. Two hosts are paired by a join
//! [`Token`], which carries the server's fingerprint to the client and a secret back.

mod fingerprint;
mod identity;
pub mod invitation;
pub mod list;
pub mod peers;
mod timestamp;
mod tls;
mod token;
mod verify;

use std::path::Path;

pub use fingerprint::Fingerprint;
pub use identity::{Error as IdentityError, Identity};
pub use peers::{Name, Peer, Peers};
pub use timestamp::Timestamp;
pub use tls::{Purpose, Servers, client};
pub use token::{Secret, Token};
pub use verify::{Expected, Refused};

/// The version of the form of peers' and invitations' files.
const FORM: u32 = 1;

/// This host's identity and its peers.
#[derive(Debug)]
pub struct Trust {
    /// This host's key and certificate.
    pub identity: Identity,
    /// The hosts that it knows.
    pub peers: Peers,
}

impl Trust {
    /// Reads this host's identity from the state directory, and creates one on first use.
    ///
    /// # Errors
    /// As [`Identity::open`].
    pub fn open(state: &Path) -> Result<Self, IdentityError> {
        Ok(Self { identity: Identity::open(state)?, peers: Peers::new(state) })
    }
}
