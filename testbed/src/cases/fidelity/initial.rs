//! Containers whose process 1 is the engine's (`--init`).

use std::time::Duration;

use super::situations::{SERVER, there_and_home};
use super::stock;
use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::lab::Runtime;
use crate::pace;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("fidelity-init-crun", AREAS, |context| init(context, Runtime::Crun)).limit(240),
    Case::new("fidelity-init-runc", AREAS, |context| init(context, Runtime::Runc)).limit(240),
];

const AREAS: &[&str] = &["fidelity", stock::KERNEL];
/// Leaves a process without its parent, which ends then.
const ORPHAN: &str = "sleep 0.2 &";
/// How long it may take to be gone.
const GONE: Duration = Duration::from_secs(2);
/// Exit code of a server that SIGTERM has ended.
const TERMINATED: &str = "143";

/// It waits for orphans, and hands signals on.
fn init(context: &Context, runtime: Runtime) -> Result<()> {
    let lab = context.lab_with(&["a", "b", "c"], runtime)?;
    there_and_home(context, &lab, &["--init"], &SERVER, |host, _| works(host))?;
    let a = lab.host("a")?;
    a.podman(["stop", "--time", "10", "web"])?;
    let code = a.podman(["inspect", "--format", "{{.State.ExitCode}}", "web"])?;
    ensure!(code == TERMINATED, "it ended with {code} when it was stopped");
    Ok(())
}

/// Checks that the engine's program is process 1 and waits for orphans.
fn works(host: &Host) -> Result<()> {
    let name = host.podman(["exec", "web", "cat", "/proc/1/comm"])?;
    ensure!(name == "podman-init" || name == "catatonit", "process 1 is {name} on {}", host.name());
    host.podman(["exec", "web", "sh", "-c", ORPHAN])?;
    std::thread::sleep(pace::patience(GONE));
    let states = "for one in /proc/[0-9]*; do grep State $one/status 2>/dev/null; done; true";
    let states = host.podman(["exec", "web", "sh", "-c", states])?;
    ensure!(states.contains("State:") && !states.contains('Z'), "on {}: {states}", host.name());
    Ok(())
}
