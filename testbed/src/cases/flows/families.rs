//! Connections over IPv6, with and without connections over IPv4.

use std::net::SocketAddr;
use std::time::Duration;

use super::{opener, traces};
use crate::cases::subject::Clients;
use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("flows-ipv6-and-ipv4-side-by-side", &["flows"], side_by_side),
    Case::new("flows-between-hosts-with-ipv6-alone", &["flows"], six_alone),
    Case::new("flows-direct-with-ipv6-alone", &["flows"], six_alone_and_direct),
];

const ANSWERS: Duration = Duration::from_secs(10);

fn side_by_side(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let _server = opener::server(c)?;
    start(&[a, b], c)?;
    let six = Clients::gentle(c, port6(a, 7000))?;
    let four = Clients::gentle(c, a.port(7000))?;
    let migration = lab.migrate("web", "a", "b")?;
    ensure!((migration.flows.tcp, migration.flows.udp) >= (5, 3), "{:?}", migration.flows);
    lab.migrate("web", "b", "a")?;
    lab.migrate("web", "a", "b")?;
    let (six, four) = (six.stop()?, four.stop()?);
    let gap = opener::stop(b, "web")?;
    context.remark(format!("IPv6 {}, IPv4 {}, outbound {gap:.0} ms", six.gaps(), four.gaps()));
    Ok(())
}

fn six_alone(context: &Context) -> Result<()> {
    between_hosts_of_six(context, &[])
}

fn six_alone_and_direct(context: &Context) -> Result<()> {
    between_hosts_of_six(context, &["--tunnel", "direct"])
}

fn between_hosts_of_six(context: &Context, options: &[&str]) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    for host in [a, b, c] {
        host.run(["ip", "-4", "address", "flush", "dev", "eth0"])?;
    }
    let _server = opener::server(c)?;
    start(&[a, b], c)?;
    let clients = Clients::gentle(c, port6(a, 7000))?;
    lab.serve("b")?;
    if !options.is_empty() {
        b.run(["agent-server", "peers", "allow", "a", "--direct"])?;
    }
    let migration = lab.attempt("web", "a", "b", options)?.success()?;
    ensure!((migration.tunnel == "direct") != options.is_empty(), "{migration:?}");
    let seen = clients.stop()?;
    let gap = opener::stop(b, "web")?;
    ensure!(!traces::all(a)?.is_empty(), "the anchor has nothing");
    context.remark(format!("{}, outbound {gap:.0} ms", seen.gaps()));
    Ok(())
}

/// Starts the container on the first host, in a dual-stack network that both hosts have.
fn start(hosts: &[&Host; 2], c: &Host) -> Result<()> {
    for host in hosts {
        let subnets = ["--subnet", "10.77.0.0/24", "--subnet", "fd77::/64"];
        let create = ["network", "create", "--disable-dns", "--ipv6"];
        host.podman([&create[..], &subnets, &["dual"]].concat())?;
    }
    let ports = ["--publish", "7000-7001:7000-7001/tcp", "--publish", "7000:7000/udp"];
    let options = [&["--network", "dual"][..], &ports].concat();
    opener::start(hosts[0], "web", port6(c, 7000), &options)?;
    c.probe().wait_for_echo(port6(hosts[0], 7000), ANSWERS)
}

fn port6(host: &Host, port: u16) -> SocketAddr {
    (host.address6(), port).into()
}
