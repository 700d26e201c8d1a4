//! Connections between a container and processes or containers of its host.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::{opener, traces};
use crate::cases::subject::{Clients, serve};
use crate::ensure;
use crate::error::{Error, Result};
use crate::lab::Lab;
use crate::runner::{Case, Context};
use crate::slowdown;
use crate::traffic::client_report::EchoReport;

pub(super) const CASES: &[Case] = &[
    Case::new("flows-of-the-sources-own-processes", &["flows"], own_processes),
    Case::new("flows-of-the-first-hosts-own-processes", &["flows", "hops"], onwards),
    Case::new("flows-by-way-of-the-containers-network", &["flows"], by_the_network),
];

/// The time limit for traces to go, and for a client to get its first reply.
const END: Duration = Duration::from_secs(40);
/// The number of datagrams that may be lost in the first milliseconds of an interruption, at 50 a second.
const FIRST: u64 = 2;
/// The same on a slow machine, where an interruption lasts six times as long.
const FIRST_WHERE_SLOW: u64 = 6;
/// The same of two interruptions, on a busy machine.
const FIRST_OF_TWO: u64 = 10;
/// The number of datagrams of a whole interruption when the container returns, at 20 a second.
const HELD: u64 = 40;
/// The other container.
const NEIGHBOUR: &str = "neighbour";

/// Connections of the host's processes that do not need the bridge. podman removes it with its last container.
fn own_processes(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    for host in [a, lab.host("b")?] {
        traces::forget_soon(host)?;
    }
    serve(a, "web", 7000, &[], c)?;
    follow(context, &lab, &[a.port(7000), SocketAddr::from((Ipv4Addr::LOCALHOST, 7000))], true)?;
    nothing_left(&lab)
}

/// The container migrates on to a third host, and the second one is disconnected.
fn onwards(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c", "d"])?;
    let (a, d) = (lab.host("a")?, lab.host("d")?);
    lab.serve("a")?;
    serve(a, "web", 7000, &[], d)?;
    let clients = Clients::gentle(a, SocketAddr::from((Ipv4Addr::LOCALHOST, 7000)))?;
    for (from, to) in [("a", "b"), ("b", "c")] {
        let migration = lab.migrate("web", from, to)?;
        ensure!(migration.warnings.is_empty(), "{from} to {to}: {:?}", migration.warnings);
    }
    traces::none(lab.host("b")?)?;
    lab.set_cable("b", false)?;
    let seen = clients.stop_losing(FIRST_OF_TWO)?;
    context.remark(format!("{}, {} datagrams lost", seen.gaps(), seen.udp.lost));
    Ok(())
}

/// Connections that need the bridge, and those of a neighbour through the host's published port.
fn by_the_network(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    for host in [a, lab.host("b")?] {
        traces::forget_soon(host)?;
    }
    serve(a, "web", 7000, &[], c)?;
    let format = "{{.NetworkSettings.Networks.podman.IPAddress}}";
    let inside = parse(&a.podman(["inspect", "--format", format, "web"])?)?;
    let format = "{{(index .Subnets 0).Gateway}}";
    let gateway = parse(&a.podman(["network", "inspect", "--format", format, "podman"])?)?;
    let server = a.port(7000).to_string();
    let clients: String = ["tcp", "udp"]
        .map(|of| {
            let client = format!("netmig-probe {of}-echo {server} --rate 50");
            format!("{client} >/tmp/{of} 2>/tmp/{of}.err & ")
        })
        .concat();
    let script = format!("{clients} while :; do sleep 1000; done");
    a.podman(["run", "--detach", "--name", NEIGHBOUR, "probe:1", "sh", "-c", &script])?;
    for client in ["tcp", "udp"] {
        opener::wait_for(a, NEIGHBOUR, &format!("/tmp/{client}.err"), "ready")?;
    }
    let servers = [gateway, inside].map(|address| SocketAddr::from((address, 7000)));
    follow(context, &lab, &servers, false)?;
    a.podman(["exec", NEIGHBOUR, "sh", "-c", "kill -TERM -1"])?;
    for client in ["tcp", "udp"] {
        let text = opener::wait_for(a, NEIGHBOUR, &format!("/tmp/{client}"), "}")?;
        let seen: EchoReport = serde_json::from_str(&text)
            .map_err(|e| Error::Check(format!("{client} said {text:?}: {e}")))?;
        let fault = seen.fault_beyond(if client == "udp" { first() } else { 0 });
        ensure!(fault.is_none(), "{client}: {fault:?} of {seen:?}");
        ensure!(seen.sent > 50, "{client}: only {} messages", seen.sent);
    }
    nothing_left(&lab)
}

/// Runs clients on the source while the container migrates, and returns if `home`.
fn follow(context: &Context, lab: &Lab, servers: &[SocketAddr], home: bool) -> Result<()> {
    let a = lab.host("a")?;
    let clients: Result<Vec<Clients>> =
        servers.iter().map(|server| Clients::gentle(a, *server)).collect();
    let clients = clients?;
    lab.migrate("web", "a", "b")?;
    std::thread::sleep(Duration::from_secs(1));
    let mut lost = first();
    if home {
        lab.migrate("web", "b", "a")?;
        lost += HELD;
        traces::none_within(a, END)?;
    }
    for (clients, server) in clients.into_iter().zip(servers) {
        let seen =
            clients.stop_losing(lost).map_err(|e| Error::Check(format!("to {server}: {e}")))?;
        context.remark(format!("{server}: {}", seen.gaps()));
    }
    Ok(())
}

fn first() -> u64 {
    if slowdown::is_slow() { FIRST_WHERE_SLOW } else { FIRST }
}

fn nothing_left(lab: &Lab) -> Result<()> {
    traces::none_within(lab.host("a")?, END)?;
    traces::none_within(lab.host("b")?, END)
}

fn parse(text: &str) -> Result<IpAddr> {
    text.parse().map_err(|e| Error::Check(format!("{text}: {e}")))
}
