//! Options of `podman run` that hold after a migration: resource limits and `--init`.

use std::time::Duration;

use super::scenarios::{SERVER, there_and_home};
use super::{cgroup, kernel_features};
use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::lab::Runtime;
use crate::runner::{Case, Context};
use crate::slowdown;

pub(super) const CASES: &[Case] = &[
    Case::new("fidelity-limits-of-the-engine-crun", AREAS, |context| {
        limits(context, Runtime::Crun)
    })
    .limit(240),
    Case::new("fidelity-limits-of-the-engine-runc", AREAS, |context| {
        limits(context, Runtime::Runc)
    })
    .limit(240),
    Case::new("fidelity-init-crun", AREAS, |context| init(context, Runtime::Crun)).limit(240),
    Case::new("fidelity-init-runc", AREAS, |context| init(context, Runtime::Runc)).limit(240),
];

const AREAS: &[&str] = &["fidelity", kernel_features::KERNEL];
/// The options that limit a container's memory, processors and processes.
pub(super) const OPTIONS: [&str; 6] = ["--memory", "200m", "--cpus", "0.5", "--pids-limit", "77"];
/// The values in the kernel. podman sets memory and swap together to twice the memory, and the kernel counts swap
/// alone.
const IN_KERNEL: &[(&str, &str)] = &[
    ("memory.max", "209715200"),
    ("memory.swap.max", "209715200"),
    ("cpu.max", "50000 100000"),
    ("pids.max", "77"),
];
/// The format in which podman prints the limits.
const FORMAT: &str = "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.NanoCpus}} \
                      {{.HostConfig.PidsLimit}}";
const IN_ENGINE: &str = "209715200 419430400 500000000 77";

/// Checks that the kernel and the engine of a host have the limits.
pub(super) fn hold(host: &Host, name: &str, id: &str) -> Result<()> {
    for (file, expected) in IN_KERNEL {
        let is = cgroup::value(host, id, file)?;
        ensure!(is == *expected, "{file} is {is:?} on {}", host.name());
    }
    let told = host.podman(["inspect", "--format", FORMAT, name])?;
    ensure!(told == IN_ENGINE, "the engine of {} says {told:?}", host.name());
    Ok(())
}

fn limits(context: &Context, runtime: Runtime) -> Result<()> {
    let lab = context.lab_with(&["a", "b", "c"], runtime)?;
    kernel_features::limits(lab.host("a")?)?;
    there_and_home(context, &lab, &OPTIONS, &SERVER, |host, id| hold(host, "web", id))
}

/// A command that leaves an orphan, which ends soon.
const ORPHAN: &str = "sleep 0.2 &";
/// The time limit for the orphan to be reaped.
const GONE: Duration = Duration::from_secs(2);
/// The exit code of a server that SIGTERM has ended.
const TERMINATED: &str = "143";

/// The process 1 of `--init` reaps orphans and forwards signals.
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
    std::thread::sleep(slowdown::limit(GONE));
    let states = "for one in /proc/[0-9]*; do grep State $one/status 2>/dev/null; done; true";
    let states = host.podman(["exec", "web", "sh", "-c", states])?;
    ensure!(states.contains("State:") && !states.contains('Z'), "on {}: {states}", host.name());
    Ok(())
}
