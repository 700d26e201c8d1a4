//! The lab's network: one switch with a veth pair to every host.
//!
//! The switch is a bridge in a network namespace of its own. So its names never clash with those of this machine or of
//! another lab, and the kernel removes everything together with the namespaces.

use std::fmt::Write as _;
use std::process::Command;

use crate::error::Result;
use crate::host::Host;
use crate::host::namespaces::Namespaces;
use crate::subprocess::{self, Output};

/// The name of the bridge.
const BRIDGE: &str = "switch";

/// A script for `ip -batch`.
type Batch = String;

/// Connects the hosts to the switch and configures their addresses.
pub(crate) fn connect(switch: &Namespaces, hosts: &[Host]) -> Result<()> {
    ip(switch, &switch_batch(hosts))?;
    std::thread::scope(|scope| {
        let joined: Vec<_> = hosts
            .iter()
            .map(|host| scope.spawn(|| ip(host.namespaces(), &host_batch(host))))
            .collect();
        joined.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
    })
}

fn switch_batch(hosts: &[Host]) -> Batch {
    let mut batch = format!(
        "link set lo up\nlink add {BRIDGE} type bridge mcast_snooping 0\nlink set {BRIDGE} up\n"
    );
    for host in hosts {
        let port = port(host);
        let _ = writeln!(batch, "link add {port} type veth peer name eth0 netns {}", host.init());
        let _ = writeln!(batch, "link set {port} master {BRIDGE} up");
    }
    batch
}

fn host_batch(host: &Host) -> Batch {
    format!(
        "link set lo up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\nlink set eth0 up\n",
        host.address(),
        host.address6()
    )
}

/// Connects or disconnects a host's cable. Both ends lose the carrier.
pub(crate) fn set_cable(switch: &Namespaces, host: &Host, plugged: bool) -> Result<()> {
    let state = if plugged { "up" } else { "down" };
    ip(switch, &format!("link set {} {state}\n", port(host)))
}

/// Returns the name of the switch's port to a host.
fn port(host: &Host) -> String {
    format!("v{}", host.name())
}

fn ip(namespaces: &Namespaces, batch: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(subprocess::input_file(batch.as_bytes())?);
    subprocess::capture(&mut command, subprocess::LIMIT, |ip| namespaces.spawn_in_network(ip))
        .and_then(Output::success)
        .map(drop)
}
