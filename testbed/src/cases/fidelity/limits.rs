//! Limits that a container was created with.

use super::situations::{SERVER, there_and_home};
use super::{cgroup, stock};
use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::lab::Runtime;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("fidelity-limits-of-the-engine-crun", AREAS, |context| of(context, Runtime::Crun))
        .limit(240),
    Case::new("fidelity-limits-of-the-engine-runc", AREAS, |context| of(context, Runtime::Runc))
        .limit(240),
];

const AREAS: &[&str] = &["fidelity", stock::KERNEL];
/// They limit a container's memory, processors and processes.
pub(super) const OPTIONS: [&str; 6] = ["--memory", "200m", "--cpus", "0.5", "--pids-limit", "77"];
/// What the kernel has then. Memory and swap space are twice the memory, and swap space is counted apart.
const IN_KERNEL: &[(&str, &str)] = &[
    ("memory.max", "209715200"),
    ("memory.swap.max", "209715200"),
    ("cpu.max", "50000 100000"),
    ("pids.max", "77"),
];
/// What the engine says then.
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

fn of(context: &Context, runtime: Runtime) -> Result<()> {
    let lab = context.lab_with(&["a", "b", "c"], runtime)?;
    stock::limits(lab.host("a")?)?;
    there_and_home(context, &lab, &OPTIONS, &SERVER, |host, id| hold(host, "web", id))
}
