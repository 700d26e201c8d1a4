//! The copy stands still until the decision is made.

use std::fs;
use std::time::Duration;

use super::{LIMIT, home, settled, until};
use crate::cases::subject::Clients;
use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::container;
use crate::faults::gate::{self, Gate};
use crate::host::Host;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] =
    &[Case::new("promise-copy-stands-still-before-the-commit", &["promise"], frozen).limit(240)];

/// How long the copy is watched.
const WATCHED: Duration = Duration::from_millis(1500);
/// Counters: one in memory that both sides carry, one in the root file system.
const COUNTERS: [&str; 2] = ["/dev/shm/count", "/count"];
/// Counts beside the server.
const COUNTING: &str = "netmig-probe serve & n=0; while :; do n=$((n+1)); echo $n > /dev/shm/count; \
                        echo $n > /count; sleep 0.02; done";

fn frozen(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    gate::install(b)?;
    lab.serve("b")?;
    let run = ["run", "--detach", "--name", "web"];
    let ports = ["--publish", "7000:7000/tcp", "--publish", "7000:7000/udp"];
    let id = a.podman([&run[..], &ports, &["probe:1", "sh", "-c", COUNTING]].concat())?;
    c.probe().wait_for_echo(a.port(7000), LIMIT)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    ensure!(advances(a, &id)?, "the original does not count");

    Gate::Restored.close(b)?;
    let words = ["migrate", "web", "b", "--max-interruption", "60"];
    let mut order = a.command("agent-client").args(words).spawn()?;
    until("the copy is restored", LIMIT, || {
        ensure!(order.is_running(), "the move ended: {}", order.stderr());
        Ok(Gate::Restored.is_reached(b))
    })?;
    let seen = still(b, &id);
    Gate::Restored.open(b)?;
    let end = order.wait(LIMIT)?;
    ensure!(end.status.code() == Some(0), "{}", end.error_text());
    settled(&lab)?;
    seen?;
    ensure!(home(&lab, &id)? == "b" && advances(b, &id)?, "the copy does not count afterwards");
    context.remark(clients.stop()?.gaps());
    Ok(())
}

/// The copy's cgroup is frozen, and none of its counters advances.
fn still(host: &Host, id: &str) -> Result<()> {
    let cgroups = container::cgroups(host, id);
    let frozen = cgroups.iter().any(|path| {
        fs::read_to_string(path.join("cgroup.events")).is_ok_and(|text| text.contains("frozen 1"))
    });
    let advances = advances(host, id)?;
    ensure!(frozen && !advances, "before the commit: frozen {frozen}, counts {advances}");
    Ok(())
}

/// Whether a container counts.
fn advances(host: &Host, id: &str) -> Result<bool> {
    let before = counters(host, id)?;
    std::thread::sleep(WATCHED);
    Ok(counters(host, id)? != before)
}

fn counters(host: &Host, id: &str) -> Result<Vec<String>> {
    let lacking = || Error::Check(format!("no process of the container is on {}", host.name()));
    let first = container::processes(host, id).into_iter().next().ok_or_else(lacking)?;
    let read = |path: &&str| fs::read_to_string(format!("/proc/{first}/root{path}"));
    // A file that is being written may be empty for a moment.
    Ok(COUNTERS.iter().map(read).map(Result::unwrap_or_default).collect())
}
