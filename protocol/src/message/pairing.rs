//! Pairing by a token.

use serde::{Deserialize, Serialize};
use state::peer_text::PeerText;

use crate::trust::Secret;

/// What an invited host presents.
#[derive(Debug, Serialize, Deserialize)]
pub struct Join {
    /// The token's secret.
    pub secret: Secret,
    /// The host's name, from which the server derives the peer's name.
    pub name: PeerText,
}

/// The answer to a valid [`Join`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Joined {
    /// The server's host name, from which the client derives the peer's name.
    pub name: PeerText,
    /// The name by which the server knows the client.
    pub called: PeerText,
}
