//! Connections whose other end is on the destination: its own processes, and its containers.

use std::net::SocketAddr;
use std::time::Duration;

use crate::cases::flows::{opener, traces};
use crate::cases::subject::{Clients, serve};
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::lab::Lab;
use crate::runner::{Case, Context};
use crate::traffic::client_report::EchoReport;

pub(super) const CASES: &[Case] = &[
    Case::new("far-end-process", &["fidelity", "flows"], |c| around(c, Far::Process, Family::Four)),
    Case::new("far-end-process-ipv6", &["fidelity", "flows"], |c| {
        around(c, Far::Process, Family::Six)
    }),
    Case::new("far-end-container", &["fidelity", "flows"], |c| {
        around(c, Far::Container, Family::Four)
    }),
    Case::new("far-end-container-ipv6", &["fidelity", "flows"], |c| {
        around(c, Far::Container, Family::Six)
    }),
    Case::new("far-end-direct", &["fidelity", "flows"], direct),
    Case::new("far-end-by-a-third-host", &["fidelity", "flows"], by_a_third_host),
];

/// The exit code of a move that was refused.
const REFUSED: i32 = 3;
/// The time limit for traces to go.
const END: Duration = Duration::from_secs(40);
/// The time limit for a server to answer.
const ANSWERS: Duration = Duration::from_secs(10);
/// The number of datagrams of an interruption that may be lost when the container returns to the far end's host, at
/// 20 and 50 a second.
const HELD: u64 = 150;
/// The far end's container.
const CALLER: &str = "caller";
/// Its clients: name, and action of the probe.
const CLIENTS: [(&str, &str); 2] = [("tcp", "tcp-echo"), ("udp", "udp-echo")];
/// The port of the container that migrates. The far end has the default ports.
const PORT: u16 = 7100;

/// The kind of the far end.
#[derive(Clone, Copy, PartialEq)]
enum Far {
    Process,
    Container,
}

#[derive(Clone, Copy, PartialEq)]
enum Family {
    Four,
    Six,
}

impl Family {
    /// Returns options for addresses that no other container has.
    fn addresses(self, number: u8) -> &'static [&'static str] {
        match (self, number) {
            (Self::Four, 50) => &["--ip", "10.88.0.50"],
            (Self::Four, _) => &["--ip", "10.88.0.51"],
            (Self::Six, 50) => &["--ip", "10.77.0.50", "--ip6", "fd77::50"],
            (Self::Six, _) => &["--ip", "10.77.0.51", "--ip6", "fd77::51"],
        }
    }

    fn port(self, host: &Host, port: u16) -> SocketAddr {
        match self {
            Self::Four => host.port(port),
            Self::Six => (host.address6(), port).into(),
        }
    }
}

/// The far end: a server for the container that migrates, and clients of the container's server.
struct FarEnd {
    /// The server and the clients on the host itself; `None` if they are in containers.
    process: Option<(HostProcess, Clients)>,
}

impl FarEnd {
    /// Starts the container on `a` and its far end on `b`.
    fn start(lab: &Lab, far: Far, family: Family) -> Result<Self> {
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        let server = match far {
            Far::Process => Some(opener::server(b)?),
            Far::Container => None,
        };
        let network = network(lab, family)?;
        if far == Far::Container {
            // Its address must differ from that of the arriving container.
            let ports = ["--publish", "7000-7001:7000-7001/tcp", "--publish", "7000:7000/udp"];
            let run = ["run", "--detach", "--name", "server"];
            let image = ["probe:1", "netmig-probe", "serve"];
            let line = [&run[..], network, family.addresses(50), &ports, &image].concat();
            b.podman(line)?;
            a.probe().wait_for_echo(family.port(b, 7000), ANSWERS)?;
        }
        let ports = ["--publish", "7100-7101:7000-7001/tcp", "--publish", "7100:7000/udp"];
        opener::start(a, "web", family.port(b, 7000), &[network, &ports].concat())?;
        let there = family.port(a, PORT);
        b.probe().wait_for_echo(there, ANSWERS)?;
        if let Some(server) = server {
            let clients = Clients::gentle(b, there)?;
            return Ok(Self { process: Some((server, clients)) });
        }
        let clients: String = CLIENTS
            .map(|(name, action)| {
                let client = format!("netmig-probe {action} {there} --rate 50");
                format!("{client} >/tmp/{name} 2>/tmp/{name}.err & ")
            })
            .concat();
        let script = format!("{clients} while :; do sleep 1000; done");
        let run = ["run", "--detach", "--name", CALLER];
        let run = [&run[..], network, family.addresses(51)].concat();
        b.podman([&run[..], &["probe:1", "sh", "-c", &script]].concat())?;
        for (client, _) in CLIENTS {
            opener::wait_for(b, CALLER, &format!("/tmp/{client}.err"), "ready")?;
        }
        Ok(Self { process: None })
    }

    /// Ends the clients and checks that at most `lost` datagrams were lost, and nothing else. Returns the server,
    /// which runs until it is dropped.
    fn stop(self, b: &Host, lost: u64) -> Result<Option<HostProcess>> {
        if let Some((server, clients)) = self.process {
            return clients.stop_losing(lost).map(|_| Some(server));
        }
        std::thread::sleep(Duration::from_secs(1));
        b.podman(["exec", CALLER, "sh", "-c", "kill -TERM -1"])?;
        for (client, _) in CLIENTS {
            let text = opener::wait_for(b, CALLER, &format!("/tmp/{client}"), "}")?;
            let seen: EchoReport = serde_json::from_str(&text)
                .map_err(|e| Error::Check(format!("{client} said {text:?}: {e}")))?;
            let fault = seen.fault_beyond(if client == "udp" { lost } else { 0 });
            ensure!(fault.is_none(), "{client}: {fault:?} of {seen:?}");
            ensure!(seen.sent > 50, "{client}: only {} messages", seen.sent);
        }
        Ok(None)
    }
}

/// Migrates the container to the far end's host, where the connections do not need netmig, on to a third host, back
/// to the first, and to the far end's host again.
fn around(context: &Context, far: Far, family: Family) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let b = lab.host("b")?;
    for host in lab.hosts() {
        traces::forget_soon(host)?;
    }
    let end = FarEnd::start(&lab, far, family)?;
    lab.serve("a")?;
    let there = lab.migrate("web", "a", "b")?;
    ensure!(only_of_siblings(&there.warnings), "{:?}", there.warnings);
    // The connections are open, and no host has rules for them.
    traces::none_within(lab.host("a")?, END)?;
    traces::none_within(b, END)?;
    // They do not need the first host any more.
    lab.set_cable("a", false)?;
    std::thread::sleep(Duration::from_secs(1));
    lab.set_cable("a", true)?;
    for (from, to) in [("b", "c"), ("c", "a"), ("a", "b")] {
        let moved = lab.migrate("web", from, to)?;
        ensure!(only_of_siblings(&moved.warnings), "{from} to {to}: {:?}", moved.warnings);
        std::thread::sleep(Duration::from_secs(1));
    }
    traces::none_within(lab.host("a")?, END)?;
    traces::none_within(b, END)?;
    let _server = end.stop(b, HELD)?;
    let gap = opener::stop_losing(b, "web", HELD)?;
    context.remark(format!("interruption {:.0}, gap {gap:.0} ms", there.interruption_ms));
    Ok(())
}

/// Returns whether all warnings are about containers of the same network that stay behind.
fn only_of_siblings(warnings: &[String]) -> bool {
    let of_siblings = |warning: &String| {
        warning.contains("stay behind in network") || warning.contains("find each other by name")
    };
    warnings.iter().all(of_siblings)
}

/// Migrates there and back twice, without a tunnel.
fn direct(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    for host in [a, b] {
        traces::forget_soon(host)?;
        lab.serve(host.name())?;
    }
    b.run(["agent-server", "peers", "allow", "a", "--direct"])?;
    a.run(["agent-server", "peers", "allow", "b", "--direct"])?;
    let end = FarEnd::start(&lab, Far::Process, Family::Four)?;
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b")] {
        let moved = lab.attempt("web", from, to, &["--tunnel", "direct"])?.success()?;
        ensure!(moved.warnings.is_empty(), "{from} to {to}: {:?}", moved.warnings);
        std::thread::sleep(Duration::from_secs(1));
    }
    traces::none_within(a, END)?;
    traces::none_within(b, END)?;
    let _server = end.stop(b, HELD)?;
    let gap = opener::stop_losing(b, "web", HELD)?;
    context.remark(format!("gap {gap:.0} ms"));
    Ok(())
}

/// The container has left the anchor and cannot migrate to the far end's host directly. That is refused. It can get
/// there by way of the anchor.
fn by_a_third_host(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    for host in lab.hosts() {
        traces::forget_soon(host)?;
    }
    lab.serve("a")?;
    lab.serve("c")?;
    serve(a, "web", 7000, &[], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    lab.migrate("web", "a", "b")?;
    let refused = lab.attempt("web", "b", "c", &[])?;
    ensure!(refused.code == Some(REFUSED), "{refused:?}");
    for word in ["far-end-at-destination", &c.address().to_string(), "agent-client flows end"] {
        let said = format!("{}{}", refused.stdout, refused.stderr);
        ensure!(said.contains(word), "no {word:?} in {said}");
    }
    for (from, to) in [("b", "a"), ("a", "c")] {
        lab.migrate("web", from, to)?;
        std::thread::sleep(Duration::from_secs(1));
    }
    for host in [a, b, c] {
        traces::none_within(host, END)?;
    }
    context.remark(clients.stop()?.gaps());
    Ok(())
}

/// Creates a network of the family on all hosts. Returns the options for a container in it.
fn network(lab: &Lab, family: Family) -> Result<&'static [&'static str]> {
    if family == Family::Four {
        return Ok(&[]);
    }
    for host in lab.hosts() {
        let subnets = ["--subnet", "10.77.0.0/24", "--subnet", "fd77::/64"];
        let create = ["network", "create", "--disable-dns", "--ipv6"];
        host.podman([&create[..], &subnets, &["dual"]].concat())?;
    }
    Ok(&["--network", "dual"])
}
