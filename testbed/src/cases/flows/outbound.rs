//! Connections that the container has opened to other hosts.

use super::opener;
use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::lab::Runtime;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("flows-outbound-tcp-and-udp", &["flows"], |context| outbound(context, Runtime::Crun)),
    Case::new("flows-outbound-with-runc", &["flows"], |context| outbound(context, Runtime::Runc)),
];

fn outbound(context: &Context, runtime: Runtime) -> Result<()> {
    let lab = context.lab_with(&["a", "b", "c"], runtime)?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let _server = opener::server(c)?;
    opener::start(a, "client", c.port(7000), &[])?;
    let ports = outer_ports(a)?;
    ensure!(ports.len() == 1, "the connection comes from {ports:?}");
    let port = &ports[0];
    let migration = lab.migrate("client", "a", "b")?;
    ensure!((migration.flows.tcp, migration.flows.udp) >= (3, 1), "{:?}", migration.flows);
    // The server still sees the source's address and this port. A process of the source that uses the same port gets
    // another one by NAT.
    let taken = a.run(["python3", "-c", &same_port(port, c)])?;
    ensure!(taken == *port, "the process was bound to {taken}");
    let seen = outer_ports(a)?;
    ensure!(seen.len() == 2 && seen.contains(port), "the port was {port}, now {seen:?}");
    let gap = opener::stop(b, "client")?;
    let left = a.podman(["ps", "--all", "--format", "{{.Names}}"])?;
    ensure!(left.is_empty(), "the source still has {left}");
    context.remark(format!("interruption {:.0} ms, gap {gap:.0} ms", migration.interruption_ms));
    Ok(())
}

/// Returns the source ports of TCP echo connections as the server sees them.
fn outer_ports(host: &Host) -> Result<Vec<String>> {
    let listed = host.run(["conntrack", "-L", "-p", "tcp", "--orig-port-dst", "7000"])?;
    let port = |line: &str| Some(line.rsplit("dport=").next()?.split(' ').next()?.to_owned());
    Ok(listed.lines().filter_map(port).collect())
}

/// Returns a program that connects to `server` from `port` and prints that port.
fn same_port(port: &str, server: &Host) -> String {
    format!(
        "import socket; s = socket.create_connection(('{}', 7000), 5, ('', {port})); \
         print(s.getsockname()[1])",
        server.address()
    )
}
