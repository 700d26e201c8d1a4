//! Reasons against a migration.

use serde::{Deserialize, Serialize};

/// One reason against a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// Stable short name in kebab case.
    pub code: String,
    /// A whole sentence: what is in the way, and what to do.
    pub message: String,
}
