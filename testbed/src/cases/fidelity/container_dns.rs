//! Containers of one network that resolve each other's names.

use std::time::{Duration, Instant};

use super::kernel_features;
use super::scenarios::SERVER;
use crate::cases::subject::{Clients, serve_by};
use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::runner::{Case, Context};
use crate::slowdown;

pub(super) const CASES: &[Case] =
    &[Case::new("fidelity-names-of-a-network", &["fidelity", kernel_features::KERNEL], names)
        .limit(300)];

const NETWORK: [&str; 5] = ["network", "create", "--subnet", "10.89.7.0/24", "inner"];
const WEB: &str = "10.89.7.10";
const STORE: &str = "10.89.7.11";
/// The time limit for a name server to know of a container.
const KNOWN: Duration = Duration::from_secs(10);

/// Checks that a container resolves a name of another.
fn finds(host: &Host, from: &str, name: &str, address: &str) -> Result<()> {
    let end = Instant::now() + slowdown::limit(KNOWN);
    loop {
        let asked = ["exec", from, "busybox", "nslookup", name];
        let output = host.command("podman").args(asked).output()?;
        let (said, errors) = (output.text(), output.error_text());
        // The first address is that of the name server.
        if said.lines().skip(2).any(|line| line.ends_with(address)) {
            return Ok(());
        }
        let place = host.name();
        ensure!(
            Instant::now() < end,
            "{from} does not find {name} at {address} on {place}: {said} {errors}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Checks that `web` and `db` resolve each other's names.
fn find_each_other(host: &Host) -> Result<()> {
    finds(host, "web", "db", STORE)?;
    finds(host, "web", "store", STORE)?;
    finds(host, "db", "web", WEB)
}

/// Both migrate and return, while a client talks to one of them.
fn names(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    for host in ["a", "b"] {
        lab.host(host)?.podman(NETWORK)?;
    }
    let options = ["--network", "inner", "--ip"];
    serve_by(a, "web", 7000, &[&options[..], &[WEB]].concat(), &SERVER, c)?;
    let run = [&["run", "--detach", "--name", "db"][..], &options].concat();
    let last = [STORE, "--network-alias", "store", "probe:1", "sleep", "100000"];
    a.podman([&run[..], &last].concat())?;
    find_each_other(a)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b")] {
        for (name, left_behind) in [("web", Some("db")), ("db", None)] {
            let warnings = lab.migrate(name, from, to)?.warnings;
            let told = warnings.iter().find(|warning| warning.contains("by name"));
            let is_right = match left_behind {
                Some(other) => told.is_some_and(|warning| warning.ends_with(other)),
                None => told.is_none(),
            };
            ensure!(is_right, "{name} to {to}: {warnings:?}");
            // A container resolves its own name as soon as it runs.
            let own = if name == "web" { WEB } else { STORE };
            finds(lab.host(to)?, name, name, own)?;
        }
        find_each_other(lab.host(to)?)?;
    }
    context.remark(clients.stop()?.gaps());
    Ok(())
}
