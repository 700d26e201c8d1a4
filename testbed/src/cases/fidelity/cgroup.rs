//! A container's cgroup after a migration: its settings are kept, and every process is in it.

use std::fs;
use std::path::PathBuf;

use super::kernel_features;
use super::scenarios::says;
use crate::ensure;
use crate::error::{Context as _, Error, Result};
use crate::faults::container_state;
use crate::host::Host;
use crate::lab::Runtime;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("fidelity-cgroup-settings", &["fidelity"], settings).limit(300),
    Case::new("fidelity-cgroup-limits", &["fidelity", kernel_features::KERNEL], limits).limit(400),
    Case::new("fidelity-two-processes-crun", &["fidelity"], |context| {
        two_processes(context, Runtime::Crun)
    })
    .limit(240),
    Case::new("fidelity-two-processes-runc", &["fidelity"], |context| {
        two_processes(context, Runtime::Runc)
    })
    .limit(240),
];

/// Returns the container's own cgroup on a host.
fn directory(host: &Host, id: &str) -> Result<PathBuf> {
    let found =
        container_state::cgroups(host, id).into_iter().min_by_key(|path| path.as_os_str().len());
    found.ok_or_else(|| Error::Check(format!("no cgroup of {id} on {}", host.name())))
}

pub(super) fn value(host: &Host, id: &str, file: &str) -> Result<String> {
    let path = directory(host, id)?.join(file);
    let text = fs::read_to_string(&path).context(|| format!("reading {}", path.display()))?;
    Ok(text.trim().to_owned())
}

fn set(host: &Host, id: &str, file: &str, value: &str) -> Result<()> {
    let path = directory(host, id)?.join(file);
    fs::write(&path, value).context(|| format!("writing {}", path.display()))
}

fn idle(host: &Host) -> Result<String> {
    let run = ["run", "--detach", "--name", "web", "probe:1"];
    host.podman([&run[..], &["sh", "-c", "echo ready; sleep 100000"]].concat())?;
    says(host, "web", "ready")?;
    container_state::id(host, "web")
}

/// A setting that every kernel has is kept.
fn settings(context: &Context) -> Result<()> {
    for runtime in Runtime::ALL {
        let lab = context.lab_with(&["a", "b"], runtime)?;
        let id = idle(lab.host("a")?)?;
        set(lab.host("a")?, &id, "cgroup.max.descendants", "77")?;
        for (from, to) in [("a", "b"), ("b", "a")] {
            lab.migrate("web", from, to)?;
            let is = value(lab.host(to)?, &id, "cgroup.max.descendants")?;
            ensure!(is == "77", "{is} on {to} by {}", runtime.name());
        }
    }
    Ok(())
}

/// Limits of memory, processors and processes are kept, set by the engine or by hand.
fn limits(context: &Context) -> Result<()> {
    const BY_HAND: &[(&str, &str)] =
        &[("memory.high", "268435456"), ("memory.low", "1048576"), ("cpu.weight", "77")];
    const ALL: &[&str] =
        &["memory.max", "memory.high", "memory.low", "cpu.max", "cpu.weight", "pids.max"];
    let lab = context.lab(&["a", "b"])?;
    let a = lab.host("a")?;
    kernel_features::limits(a)?;
    let id = idle(a)?;
    a.podman(["update", "--memory", "300m", "--cpus", "0.7", "--pids-limit", "77", "web"])?;
    BY_HAND.iter().try_for_each(|(file, value)| set(a, &id, file, value))?;
    let all = |host| ALL.iter().map(|file| value(host, &id, file)).collect::<Result<Vec<_>>>();
    let before = all(a)?;
    ensure!(before[5] == "77" && before[1] == "268435456", "{before:?}");
    for (from, to) in [("a", "b"), ("b", "a")] {
        lab.migrate("web", from, to)?;
        let after = all(lab.host(to)?)?;
        ensure!(after == before, "on {to} {ALL:?} are {after:?}, were {before:?}");
    }
    Ok(())
}

const HOSTS: [&str; 3] = ["a", "b", "c"];
/// The migrations, over the same hosts again and again.
const HOPS: [(&str, &str); 5] = [("a", "b"), ("b", "c"), ("c", "a"), ("a", "b"), ("b", "a")];

/// Runs with and without a directory of CRIU's options, since the runtimes call CRIU differently then.
fn two_processes(context: &Context, runtime: Runtime) -> Result<()> {
    let lab = context.lab_with(&HOSTS, runtime)?;
    HOSTS.iter().try_for_each(|host| lab.serve(host))?;
    for has_options in [false, true] {
        if has_options {
            HOSTS.iter().try_for_each(|host| {
                lab.host(host)?.write("/etc/criu/default.conf", "# options of the host\n")
            })?;
        }
        let command = ["probe:1", "sh", "-c", "sleep 100001 & exec sleep 100000"];
        let run = [&["run", "--detach", "--name", "two"][..], &command].concat();
        let id = lab.host("a")?.podman(run)?;
        for (from, to) in HOPS {
            lab.migrate("two", from, to)?;
            let processes = container_state::processes(lab.host(to)?, &id).len();
            ensure!(processes == 2, "{to} has {processes} of two processes in the control group");
        }
        lab.host("a")?.podman(["rm", "--force", "--time", "0", "two"])?;
    }
    Ok(())
}
