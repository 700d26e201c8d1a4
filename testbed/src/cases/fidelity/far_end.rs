//! Far ends on the host that a container moves to: its own processes, and its containers.

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

/// Exit code of a move that was refused.
const REFUSED: i32 = 3;
/// How long traces may take to go.
const END: Duration = Duration::from_secs(40);
/// How long a server may take to answer.
const ANSWERS: Duration = Duration::from_secs(10);
/// Datagrams of an interruption on the way back to the far end's host, at 20 and 50 a second.
const HELD: u64 = 150;
/// The far end's container.
const CALLER: &str = "caller";
/// Its clients: name, and action of the probe.
const CLIENTS: [(&str, &str); 2] = [("tcp", "tcp-echo"), ("udp", "udp-echo")];
/// The port of the container that moves; the far end has the usual ones.
const PORT: u16 = 7100;

/// What is at the other end.
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
    /// Options for addresses that no other container has.
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

/// The far end, which has a server for the container that moves, and clients of that one's server.
struct FarEnd {
    /// Those of the host itself; none if they are in containers.
    process: Option<(HostProcess, Clients)>,
}

impl FarEnd {
    /// Starts the container that moves on `a` and its far end on `b`.
    fn start(lab: &Lab, far: Far, family: Family) -> Result<Self> {
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        let server = match far {
            Far::Process => Some(opener::server(b)?),
            Far::Container => None,
        };
        let network = network(lab, family)?;
        if far == Far::Container {
            // Not with the address of the one that comes.
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

    /// Ends the clients and checks that no more datagrams than these were lost, and nothing else. Gives the
    /// server, which goes on until it is dropped.
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

/// To the far end's host, where nothing of the connections needs netmig; on to a third host; back to the
/// first; and to the far end's host again.
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
    // The connections are open, and no host has anything for them.
    traces::none_within(lab.host("a")?, END)?;
    traces::none_within(b, END)?;
    // They need the first host no more.
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

/// Returns whether nothing is told but that far ends in the same network stay behind.
fn only_of_siblings(warnings: &[String]) -> bool {
    let of_siblings = |warning: &String| {
        warning.contains("stay behind in network") || warning.contains("find each other by name")
    };
    warnings.iter().all(of_siblings)
}

/// Without a tunnel, there and back twice.
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

/// The container has left the anchor when it is to go to the far end's host: that is refused, and
/// nothing changes; by way of the anchor it can go there.
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

/// Options for a container in a network of the family, which all hosts have.
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
