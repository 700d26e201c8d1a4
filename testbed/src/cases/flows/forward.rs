//! New connections to a migrated container, by its old address and by its new one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::traces;
use crate::cases::subject::{Clients, serve};
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::runner::{Case, Context};
use crate::traffic::client_report::EchoReport;

pub(super) const CASES: &[Case] = &[
    Case::new("flows-new-connections-are-forwarded", &["flows"], forwarded),
    Case::new("flows-forwarding-follows-the-container", &["flows", "hops"], follows),
    Case::new("flows-other-ports-at-the-destination", &["flows"], other_ports),
    Case::new("flows-forwarding-follows-a-restart", &["flows", "hops"], restarted),
    Case::new("flows-own-ports-at-home", &["flows", "hops"], own_ports),
];

/// The time limit for a server to answer, and for rules to be restored.
const ANSWERS: Duration = Duration::from_secs(15);
/// The time limit for traces to go after the last flow.
const END: Duration = Duration::from_secs(40);
/// Another container in the same network.
const NEIGHBOUR: &str = "neighbour";

fn forwarded(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    for host in [a, b] {
        traces::forget_soon(host)?;
        let subnets = ["--subnet", "10.77.0.0/24", "--subnet", "fd77::/64"];
        let create = ["network", "create", "--disable-dns", "--ipv6"];
        host.podman([&create[..], &subnets, &["dual"]].concat())?;
    }
    let six = |host: &Host| SocketAddr::from((host.address6(), 7000));
    let loopback = SocketAddr::from((IpAddr::V4(Ipv4Addr::LOCALHOST), 7000));
    let run = ["run", "--detach", "--network", "dual", "--name"];
    let ports = ["--publish", "7000-7001:7000-7001/tcp", "--publish", "7000:7000/udp"];
    a.podman([&run[..], &["web"], &ports, &["probe:1", "netmig-probe", "serve"]].concat())?;
    a.podman([&run[..], &[NEIGHBOUR, "probe:1", "sleep", "1000"]].concat())?;
    c.probe().wait_for_echo(six(a), ANSWERS)?;
    lab.serve("b")?;
    lab.attempt("web", "a", "b", &["--forward"])?.success()?;

    let from: [(&Host, SocketAddr); 6] = [
        (c, a.port(7000)),
        (c, six(a)),
        (a, a.port(7000)),
        (a, loopback),
        (a, six(a)),
        (b, a.port(7000)),
    ];
    let clients = from.map(|(client, server)| Clients::gentle(client, server));
    for server in [a.port(7000), six(a)] {
        for action in ["tcp-echo", "udp-echo"] {
            from_the_neighbour(a, action, server)?;
        }
    }
    for (clients, (host, server)) in clients.into_iter().zip(from) {
        let seen = clients.and_then(Clients::stop);
        seen.map_err(|e| Error::Check(format!("from {} to {server}: {e}", host.name())))?;
    }

    // Forwarding does not depend on flows: it goes on without any, even after all rules were flushed.
    let deadline = Instant::now() + END;
    while !list(a, "flows")?.is_empty() {
        ensure!(Instant::now() < deadline, "flows are left: {:?}", list(a, "flows"));
        std::thread::sleep(Duration::from_millis(200));
    }
    for (host, role) in [(a, "away"), (b, "here")] {
        let listed = list(host, "forward")?;
        let one = |line: &Value| line["container"] == "web" && line["role"] == role;
        ensure!(listed.len() == 1 && one(&listed[0]), "host {} lists {listed:?}", host.name());
        host.run(["nft", "flush", "ruleset"])?;
    }
    c.probe().wait_for_echo(a.port(7000), ANSWERS)?;
    c.probe().wait_for_echo(six(a), ANSWERS)?;

    // Open connections outlive the end of forwarding.
    let open = Clients::gentle(c, a.port(7000))?;
    a.run(["agent-client", "forward", "remove", "web"])?;
    refused(c, a.port(7000))?;
    refused(c, six(a))?;
    for host in [a, b] {
        let listed = list(host, "forward")?;
        ensure!(listed.is_empty(), "host {} lists {listed:?}", host.name());
    }
    open.stop()?;
    traces::none_within(a, END)?;
    traces::none_within(b, END)
}

fn follows(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c", "d"])?;
    let (a, b, d) = (lab.host("a")?, lab.host("b")?, lab.host("d")?);
    for host in ["a", "b", "c"] {
        traces::forget_soon(lab.host(host)?)?;
        lab.serve(host)?;
    }
    serve(a, "web", 7000, &[], d)?;
    lab.attempt("web", "a", "b", &["--forward"])?.success()?;
    let first = Clients::gentle(d, a.port(7000))?;
    let second = lab.attempt("web", "b", "c", &[])?.success()?;
    ensure!(second.warnings.is_empty(), "{:?}", second.warnings);
    traces::none(b)?;
    lab.set_cable("b", false)?;
    let new = Clients::gentle(d, a.port(7000))?;
    first.stop_losing(15)?;
    new.stop()?;
    // On the first host the container has its own ports again.
    let open = Clients::gentle(d, a.port(7000))?;
    let back = lab.attempt("web", "c", "a", &[])?.success()?;
    ensure!(back.warnings.is_empty(), "{:?}", back.warnings);
    ensure!(list(a, "forward")?.is_empty(), "still forwarded");
    open.stop()?;
    Clients::gentle(d, a.port(7000))?.stop()?;
    traces::none_within(a, END)?;
    traces::none_within(lab.host("c")?, END)
}

/// A container that is started again at the destination gets another address there.
fn restarted(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c", "d"])?;
    let (a, b, c, d) = (lab.host("a")?, lab.host("b")?, lab.host("c")?, lab.host("d")?);
    for host in ["a", "b", "c"] {
        traces::forget_soon(lab.host(host)?)?;
        lab.serve(host)?;
    }
    serve(a, "web", 7000, &[], d)?;
    lab.attempt("web", "a", "b", &["--forward"])?.success()?;
    for number in 0..2 {
        start_again(b, number)?;
        d.probe().wait_for_echo(a.port(7000), ANSWERS)?;
        Clients::gentle(d, a.port(7000))?.stop()?;
    }
    let open = Clients::gentle(d, a.port(7000))?;
    lab.attempt("web", "b", "c", &["--address", "any"])?.success()?;
    Clients::gentle(d, a.port(7000))?.stop()?;
    open.stop_losing(15)?;
    start_again(c, 2)?;
    d.probe().wait_for_echo(a.port(7000), ANSWERS)?;
    let open = Clients::gentle(d, a.port(7000))?;
    lab.attempt("web", "c", "a", &[])?.success()?;
    open.stop()?;
    for host in ["a", "b", "c"] {
        traces::none_within(lab.host(host)?, END)?;
    }
    Ok(())
}

/// Starts the container `web` again with another address.
fn start_again(host: &Host, number: usize) -> Result<()> {
    let before = address(host)?;
    host.podman(["stop", "--time", "0", "web"])?;
    // It takes the next address, which may be the former one.
    let name = format!("other-{number}");
    let run = ["run", "--detach", "--ip", &before, "--name", &name];
    host.podman([&run[..], &["probe:1", "sleep", "1000"]].concat())?;
    host.podman(["start", "web"])?;
    ensure!(address(host)? != before, "it has the same address {before}");
    Ok(())
}

/// The address of the container `web`.
fn address(host: &Host) -> Result<String> {
    let format = "{{.NetworkSettings.Networks.podman.IPAddress}}";
    host.podman(["inspect", "--format", format, "web"])
}

fn other_ports(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    serve(a, "web", 7000, &[], c)?;
    // This container has the ports that the migrated one has on the source, and not those that it gets.
    let taken = ["run", "--detach", "--name", "other", "--ip", "10.88.0.77", "--publish"];
    b.podman([&taken[..], &["7000:7000", "probe:1", "sleep", "1000"]].concat())?;
    let clients = Clients::gentle(c, a.port(7000))?;
    lab.serve("b")?;
    let ports = ["--publish", "7100-7101:7000-7001", "--publish", "7100:7000/udp"];
    lab.attempt("web", "a", "b", &ports)?.success()?;
    Clients::gentle(c, b.port(7100))?.stop()?;
    // Other ports are not forwarded.
    refused(c, a.port(7000))?;
    ensure!(list(a, "forward")?.is_empty(), "forwarded without being asked to");
    clients.stop().map(drop)
}

/// Other ports count for one destination: at home, and on any other host, the container has its own again.
fn own_ports(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c", "d"])?;
    let (a, b, d) = (lab.host("a")?, lab.host("b")?, lab.host("d")?);
    serve(a, "web", 7000, &[], d)?;
    let settings =
        ["inspect", "--format", "{{.HostConfig.PortBindings}} {{.Config.Labels}}", "web"];
    let before = a.podman(settings)?;
    let open = Clients::gentle(d, a.port(7000))?;
    for host in ["a", "b", "c"] {
        lab.serve(host)?;
    }
    let publish = |port: &str| [format!("{port}:7000"), format!("{port}:7000/udp")];
    let attempt = |from: &str, to: &str, port: Option<&str>| {
        let ports = port.map(publish).unwrap_or_default();
        let ports = ports.iter().filter(|port| !port.is_empty());
        let options: Vec<&str> = ports.flat_map(|port| ["--publish", port]).collect();
        lab.attempt("web", from, to, &options)?.success()
    };
    attempt("a", "b", Some("7100"))?;
    Clients::gentle(d, b.port(7100))?.stop()?;
    let home = attempt("b", "a", None)?;
    let is_told = |warning: &String| warning.contains("its own ports") && warning.contains("7100");
    ensure!(home.warnings.iter().any(is_told), "nobody is told: {:?}", home.warnings);
    Clients::gentle(d, a.port(7000))?.stop()?;
    refused(d, a.port(7100))?;
    let after = a.podman(settings)?;
    ensure!(after == before, "the container has {after:?} at home, and had {before:?}");
    // By way of a third host, and by an order for home.
    attempt("a", "b", Some("7100"))?;
    attempt("b", "c", Some("7200"))?;
    attempt("c", "a", Some("7300"))?;
    Clients::gentle(d, a.port(7300))?.stop()?;
    refused(d, a.port(7000))?;
    attempt("a", "b", None)?;
    Clients::gentle(d, b.port(7000))?.stop()?;
    open.stop().map(drop)
}

/// Starts a client in the neighbour container.
fn from_the_neighbour(host: &Host, action: &str, server: SocketAddr) -> Result<()> {
    let server = server.to_string();
    let client = ["netmig-probe", action, &server, "--rate", "50", "--seconds", "1"];
    let text = host.podman([&["exec", NEIGHBOUR][..], &client].concat())?;
    let seen: Option<EchoReport> = serde_json::from_str(&text).ok();
    let whole = seen.is_some_and(|seen| seen.fault().is_none() && seen.sent > 40);
    ensure!(whole, "{action} from the neighbour to {server}: {text}");
    Ok(())
}

/// Waits until a new connection is refused as on a port without listener.
fn refused(client: &Host, server: SocketAddr) -> Result<()> {
    let arguments = ["tcp-echo", &server.to_string(), "--seconds", "0"];
    let tried = client.command("netmig-probe").args(arguments).output()?;
    let told = tried.error_text();
    ensure!(!tried.status.success() && told.contains("refused"), "{server}: {told:?}");
    Ok(())
}

/// Runs `agent-client flows` or `forward list` and returns the entries.
fn list(host: &Host, what: &str) -> Result<Vec<Value>> {
    let (arguments, field): (&[&str], _) = match what {
        "forward" => (&["forward", "list", "--json"], "forwarded"),
        _ => (&["flows", "--json"], "flows"),
    };
    let list: Value = host.command("agent-client").args(arguments.iter().copied()).run()?.json()?;
    let listed = list[field].as_array().cloned();
    listed.ok_or_else(|| Error::Check(format!("no list: {list}")))
}
