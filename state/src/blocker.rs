//! Reasons why a migration is refused.

use serde::{Deserialize, Serialize};

use crate::peer_text::PeerText;

/// One reason against a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// Stable short name in kebab case.
    pub code: PeerText,
    /// A whole sentence: what is in the way, and what to do.
    pub message: PeerText,
}

impl Blocker {
    /// Makes one of a short name and a whole sentence.
    #[must_use]
    pub fn new(code: impl Into<PeerText>, message: impl Into<PeerText>) -> Self {
        Self { code: code.into(), message: message.into() }
    }
}
