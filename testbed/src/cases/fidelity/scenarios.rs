//! Containers with a scenario that a migration has to recognise.

use std::time::{Duration, Instant};

use crate::cases::subject::{Clients, serve_by};
use crate::ensure;
use crate::error::Result;
use crate::faults::container_state;
use crate::host::Host;
use crate::lab::Lab;
use crate::programs::PROBE;
use crate::runner::Context;
use crate::slowdown;

/// The server of the test images and its image. It needs no privileges.
pub(super) const SERVER: [&str; 3] = ["probe:1", PROBE, "serve"];

/// The time limit for a container to set up its scenario or to print something.
const LIMIT: Duration = Duration::from_secs(20);

/// Starts a container with a scenario (see [`crate::scenario`]).
pub(super) fn start(host: &Host, name: &str, scenario: &str, options: &[&str]) -> Result<()> {
    let run = ["run", "--detach", "--name", name];
    let line = [&run[..], options, &["probe:1", PROBE, "scenario", scenario]].concat();
    host.podman(line)?;
    says(host, name, "ready")
}

/// Waits until the log of a container contains `words`.
pub(super) fn says(host: &Host, name: &str, words: &str) -> Result<()> {
    let deadline = Instant::now() + slowdown::limit(LIMIT);
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

/// Starts a server as `web` on `a` and migrates it to `b` and back under TCP and UDP traffic from `c`. Calls `check`
/// with the host and the container's ID before the first migration and after each.
pub(super) fn there_and_home(
    context: &Context,
    lab: &Lab,
    options: &[&str],
    command: &[&str],
    check: impl Fn(&Host, &str) -> Result<()>,
) -> Result<()> {
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    serve_by(a, "web", 7000, options, command, c)?;
    let id = container_state::id(a, "web")?;
    check(a, &id)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    for (from, to) in [("a", "b"), ("b", "a")] {
        let moved = lab.migrate("web", from, to)?;
        ensure!(moved.warnings.is_empty(), "{from} to {to}: {:?}", moved.warnings);
        check(lab.host(to)?, &id)?;
    }
    context.remark(clients.stop()?.gaps());
    Ok(())
}
