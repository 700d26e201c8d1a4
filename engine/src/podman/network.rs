//! The engine's networks.

use super::command::Overdue;
use super::{Error, Podman};

/// The network that podman always has.
pub(super) const DEFAULT: &str = "podman";
/// podman's exit status when there is no such network (podman-network-exists(1)).
const ABSENT: i32 = 1;

impl Podman {
    /// Whether there is a network of that name.
    ///
    /// # Errors
    /// [`Error`] when podman cannot tell.
    pub async fn has_network(&self, name: &str) -> Result<bool, Error> {
        if name == DEFAULT {
            return Ok(true);
        }
        let args = ["network", "exists", "--", name];
        let output = self.output(&args, self.deadlines.query, Overdue::Kill).await?;
        match output.status {
            0 => Ok(true),
            ABSENT => Ok(false),
            status => Err(self.failure(&args, status, &output.stderr)),
        }
    }
}
