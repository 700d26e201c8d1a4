//! Containers in situations that a move has to know of.

use std::time::{Duration, Instant};

use crate::build::PROBE;
use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::pace;

/// How long a container may take to get into its situation, or to say something.
const LIMIT: Duration = Duration::from_secs(20);

/// Starts a container in a situation (see `testbed::situation`).
pub(super) fn start(host: &Host, name: &str, situation: &str, options: &[&str]) -> Result<()> {
    let run = ["run", "--detach", "--name", name];
    let line = [&run[..], options, &["probe:1", PROBE, "situation", situation]].concat();
    host.podman(line)?;
    says(host, name, "ready")
}

/// Waits until a container has said something.
pub(super) fn says(host: &Host, name: &str, words: &str) -> Result<()> {
    let deadline = Instant::now() + pace::patience(LIMIT);
    loop {
        let log = host.podman(["logs", name])?;
        if log.contains(words) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{name} does not say {words:?}, but {log:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes a container.
pub(super) fn remove(host: &Host, name: &str) -> Result<()> {
    host.podman(["rm", "--force", "--time", "0", name]).map(drop)
}
