//! The copy stays frozen until the decision.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{LIMIT, home, settled, until};
use crate::cases::subject::Clients;
use crate::ensure;
use crate::error::{Context as _, Error, Result};
use crate::faults::breakpoint::{self, Breakpoint};
use crate::faults::container_state;
use crate::host::Host;
use crate::lab::cgroup;
use crate::lab::{Lab, LabBuilder, Runtime};
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("promise-copy-stands-still-before-the-commit", &["promise"], |context| {
        frozen(context, Runtime::Crun, false)
    })
    .limit(240),
    Case::new("promise-copy-of-runc-stands-still-before-the-commit", &["promise"], |context| {
        frozen(context, Runtime::Runc, false)
    })
    .limit(240),
    Case::new("promise-copy-in-a-scope-stands-still-before-the-commit", &["promise"], |context| {
        frozen(context, Runtime::Crun, true)
    })
    .limit(300),
    Case::new(
        "promise-copy-of-runc-in-a-scope-stands-still-before-the-commit",
        &["promise"],
        |c| frozen(c, Runtime::Runc, true),
    )
    .limit(300),
];

/// The time during which the copy is observed.
const WATCHED: Duration = Duration::from_millis(1500);
/// A counter in memory. It counts without pause, so a copy that ran for a millisecond is detected.
const COUNTER: &str = "/dev/shm/count";
/// A shell command that counts in another process than the server.
const COUNTING: &str =
    "netmig-probe serve & n=0; while :; do n=$((n+1)); echo $n 1<> /dev/shm/count; done";

/// Migrates twice, since state of the first migration may change how the runtime restores.
fn frozen(context: &Context, runtime: Runtime, systemd: bool) -> Result<()> {
    let hosts = ["a", "b", "c"];
    let builder = LabBuilder::new(&hosts).runtime(runtime);
    let lab = context.start(&if systemd { builder.systemd() } else { builder })?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    for host in [a, b] {
        breakpoint::install_for(host, runtime)?;
        lab.serve(host.name())?;
    }
    let run = ["run", "--detach", "--name", "web"];
    let ports = ["--publish", "7000:7000/tcp", "--publish", "7000:7000/udp"];
    let id = a.podman([&run[..], &ports, &["probe:1", "sh", "-c", COUNTING]].concat())?;
    c.probe().wait_for_echo(a.port(7000), LIMIT)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    ensure!(advances(a, &id)?, "the original does not count");
    for (from, to) in [(a, b), (b, a)] {
        hop(&lab, &id, from, to)?;
    }
    context.remark(clients.stop()?.gaps());
    Ok(())
}

fn hop(lab: &Lab, id: &str, from: &Host, to: &Host) -> Result<()> {
    Breakpoint::AfterRestore.set(to)?;
    let words = ["migrate", "web", to.name(), "--max-interruption", "60"];
    let mut order = from.command("agent-client").args(words).spawn()?;
    until("the copy is restored", LIMIT, || {
        ensure!(order.is_running(), "the move ended: {}", order.stderr());
        Ok(Breakpoint::AfterRestore.is_hit(to))
    })?;
    let seen = still(from, to, id);
    Breakpoint::AfterRestore.release(to)?;
    let end = order.wait(LIMIT)?;
    ensure!(end.status.code() == Some(0), "{}", end.error_text());
    settled(lab)?;
    seen?;
    ensure!(home(lab, id)? == to.name() && advances(to, id)?, "the copy does not count afterwards");
    breakpoint::clear(to)?;
    // New processes have to be in the container's cgroup, for limits, `podman kill` and the next freeze.
    let inside = container_state::processes(to, id).len();
    let told = to.podman(["top", "web", "hpid"])?.lines().count() - 1;
    ensure!(inside == told && told >= 2, "{inside} of {told} processes are in the cgroup");
    Ok(())
}

/// Checks that the copy's counter equals the original's and does not advance.
fn still(from: &Host, to: &Host, id: &str) -> Result<()> {
    let (original, copy) = (count(from, id)?, count(to, id)?);
    let advances = advances(to, id)?;
    ensure!(
        original == copy && !advances,
        "before the commit: the original is at {original}, the copy at {copy}, counts {advances}"
    );
    Ok(())
}

/// Returns whether a container counts.
fn advances(host: &Host, id: &str) -> Result<bool> {
    let before = count(host, id)?;
    std::thread::sleep(WATCHED);
    Ok(count(host, id)? != before)
}

/// Returns the counter of a container, in whichever cgroup its processes are. It may be empty while it is written.
fn count(host: &Host, id: &str) -> Result<String> {
    let of = |process: i32| format!("/proc/{process}/root{COUNTER}");
    let all = cgroup::processes(&host.path("/sys/fs/cgroup"));
    let path = all.into_iter().map(of).find(|path| Path::new(path).exists());
    let lacking = || Error::Check(format!("no process of {id} is on {}", host.name()));
    let path = path.ok_or_else(lacking)?;
    fs::read_to_string(&path).context(|| format!("reading {path}"))
}
