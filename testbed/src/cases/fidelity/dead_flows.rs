//! Flows of every kind that are dead after a move: each is told, whatever else goes on.
//!
//! A rule of the destination drops packets of one port of the far end. The attempt before the move uses other ports, and
//! does not meet it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::closed_destination::{counts, is_arriving, until};
use super::closed_paths::{END, load};
use crate::cases::subject::{Clients, serve, serve_by};
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("dead-flows-one-of-many", &["fidelity", "flows"], one_of_many),
    Case::new("dead-flows-tcp-answers", &["fidelity", "flows"], tcp_answers),
    Case::new("dead-flows-ipv6-direct", &["fidelity", "flows"], ipv6_direct),
    Case::new("dead-flows-of-a-third-host", &["fidelity", "flows"], third_host),
    Case::new("dead-flows-at-a-third-host", &["fidelity", "flows"], at_third_host),
    Case::new("dead-flows-between-the-hosts", &["fidelity", "flows"], between),
    Case::new("dead-flows-agent-started-again", &["fidelity", "flows"], |c| agent_killed(c, true)),
    Case::new("dead-flows-agent-gone", &["fidelity", "flows"], |c| agent_killed(c, false)),
];

/// The exit codes of a move that has lost something, and of one of which that is not known.
const LOST: i32 = 7;
const UNVERIFIED: i32 = 9;
/// The time limit for a program to answer.
const ANSWERS: Duration = Duration::from_secs(20);
/// The first port of the far end's UDP flows, and the port of its TCP connection.
const UDP: u16 = 45_000;
const TCP: u16 = 46_000;
/// The UDP flows of a container with many ports, and its first published port.
const MANY: u16 = 12;
const FIRST: u16 = 7100;

/// A far end: a number of UDP flows from ports of its own to consecutive ports of a server, or one TCP connection. Sends
/// twenty messages a second over each, and never ends because of a dead one.
const FAR_END: &str = "\
import socket, sys, time
kind, ip, port, own, count = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
family = socket.AF_INET6 if ':' in ip else socket.AF_INET
sockets, heard = [], set()
for number in range(count):
    s = socket.socket(family, socket.SOCK_STREAM if kind == 'tcp' else socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(('', own + number))
    s.settimeout(10)
    s.connect((ip, port + number))
    s.setblocking(False)
    sockets.append(s)
message, said = b'x' * 64, False
while True:
    for number, s in enumerate(sockets):
        try:
            s.send(message)
        except OSError:
            pass
        try:
            while s.recv(4096):
                heard.add(number)
        except OSError:
            pass
    if len(heard) == count and not said:
        said = True
        print('answered', file=sys.stderr, flush=True)
    time.sleep(0.05)
";

fn far_end(
    host: &Host,
    kind: &str,
    server: SocketAddr,
    own: u16,
    count: u16,
) -> Result<HostProcess> {
    let (ip, port) = (server.ip().to_string(), server.port().to_string());
    let (own, count) = (own.to_string(), count.to_string());
    let line = ["-c", FAR_END, kind, &ip, &port, &own, &count];
    let mut process = host.command("python3").args(line).spawn()?;
    process.wait_for("answered", ANSWERS)?;
    Ok(process)
}

/// Has `host` drop packets that match one of these.
fn close(host: &Host, matches: &[String]) -> Result<()> {
    let rules: String = matches.iter().map(|one| format!("        {one} drop\n")).collect();
    load(
        host,
        &format!(
            "table inet fw {{\n    chain guard {{\n        type filter hook forward priority 10; policy accept;\n\
             {rules}    }}\n}}\n"
        ),
    )
}

/// What comes to a container of `port` of the far end by a tunnel, or goes there from it.
fn towards(protocol: &str, port: u16) -> String {
    format!("iifname \"netmig*\" {protocol} sport {port}")
}

fn from(protocol: &str, port: u16) -> String {
    format!("oifname \"netmig*\" {protocol} dport {port}")
}

fn list(json: &Value, name: &str) -> Result<Vec<String>> {
    serde_json::from_value(json[name].clone()).map_err(|e| Error::Check(format!("{e}: {json}")))
}

/// Moves `web`. Its losses are those of flows with these words, one each, and nothing is doubtful.
fn loses(
    context: &Context,
    lab: &Lab,
    hosts: [&str; 2],
    options: &[&str],
    dead: &[&[&str]],
) -> Result<()> {
    let moved = lab.attempt("web", hosts[0], hosts[1], options)?;
    ensure!(moved.code == Some(LOST), "{moved:?}");
    let json = moved.json()?;
    let lost = list(&json, "lost")?;
    are_named(&lost, dead)?;
    ensure!(list(&json, "unverified")?.is_empty(), "{json}");
    ensure!(lost.iter().all(|one| moved.stderr.contains(one)), "{}", moved.stderr);
    context.remark(lost.join("; "));
    Ok(())
}

fn are_named(told: &[String], words: &[&[&str]]) -> Result<()> {
    ensure!(told.len() == words.len(), "{told:?}");
    for all in words {
        let is_it = |one: &&String| all.iter().all(|word| one.contains(word));
        ensure!(told.iter().find(is_it).is_some(), "no {all:?} in {told:?}");
    }
    Ok(())
}

/// One dead flow among many that live, of another published port each.
fn one_of_many(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("b")?;
    let ports: Vec<String> =
        (0..MANY).map(|number| format!("{}:7000/udp", FIRST + number)).collect();
    let options: Vec<&str> = ports.iter().flat_map(|port| ["--publish", port]).collect();
    serve_by(a, "web", 7000, &options, &["probe:1", "netmig-probe", "serve"], c)?;
    let _flows = far_end(c, "udp", a.port(FIRST), UDP, MANY)?;
    let dead = UDP + MANY - 1;
    close(b, &[towards("udp", dead)])?;
    let end = format!(":{dead})");
    loses(context, &lab, ["a", "b"], &[], &[&[&end, "for the container that came to b"]])
}

/// A connection that hears its far end, and is not heard by it.
fn tcp_answers(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("b")?;
    serve(a, "web", 7000, &[], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    let _flow = far_end(c, "tcp", a.port(7000), TCP, 1)?;
    close(b, &[from("tcp", TCP)])?;
    let words: &[&str] = &["TCP", &format!(":{TCP}"), "from the container that came to b"];
    loses(context, &lab, ["a", "b"], &[], &[words])?;
    // The others live.
    context.remark(clients.stop()?.gaps());
    Ok(())
}

/// Both protocols over IPv6, without a tunnel.
fn ipv6_direct(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    for host in lab.hosts() {
        let subnets = ["--subnet", "10.77.0.0/24", "--subnet", "fd77::/64"];
        let create = ["network", "create", "--disable-dns", "--ipv6"];
        host.podman([&create[..], &subnets, &["dual"]].concat())?;
    }
    lab.serve("b")?;
    lab.pair("a", "b")?;
    b.run(["agent-server", "peers", "allow", "a", "--direct"])?;
    let server = ["probe:1", "netmig-probe", "serve"];
    serve_by(a, "web", 7000, &["--network", "dual"], &server, c)?;
    let there = SocketAddr::from((a.address6(), 7000));
    let _udp = far_end(c, "udp", there, UDP, 1)?;
    let _tcp = far_end(c, "tcp", there, TCP, 1)?;
    close(b, &[from("udp", UDP), from("tcp", TCP)])?;
    let (udp, tcp) = (format!(":{UDP})"), format!(":{TCP}"));
    let dead: &[&[&str]] =
        &[&["UDP", &udp, "that came to b"], &["TCP", &tcp, "from the container that came to b"]];
    loses(context, &lab, ["a", "b"], &["--tunnel", "direct"], dead)
}

/// Flows whose anchor is the host that the container has left before.
fn third_host(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c", "d"])?;
    let (a, c, d) = (lab.host("a")?, lab.host("c")?, lab.host("d")?);
    ["a", "b", "c"].iter().try_for_each(|host| lab.serve(host))?;
    serve(a, "web", 7000, &[], d)?;
    let clients = Clients::gentle(d, a.port(7000))?;
    let _udp = far_end(d, "udp", a.port(7000), UDP, 1)?;
    let _tcp = far_end(d, "tcp", a.port(7000), TCP, 1)?;
    lab.migrate("web", "a", "b")?;
    close(c, &[from("udp", UDP), from("tcp", TCP)])?;
    let (udp, tcp) = (format!(":{UDP})"), format!(":{TCP}"));
    let dead: &[&[&str]] = &[
        &["UDP", &udp, "from the container that came to c"],
        &["TCP", &tcp, "from the container that came to c"],
    ];
    loses(context, &lab, ["b", "c"], &[], dead)?;
    context.remark(clients.stop()?.gaps());
    Ok(())
}

/// The third host itself drops the answers of a connection that it leads to the new host.
fn at_third_host(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c", "d"])?;
    let (a, d) = (lab.host("a")?, lab.host("d")?);
    ["a", "b", "c"].iter().try_for_each(|host| lab.serve(host))?;
    serve(a, "web", 7000, &[], d)?;
    let clients = Clients::gentle(d, a.port(7000))?;
    let _flow = far_end(d, "tcp", a.port(7000), TCP, 1)?;
    lab.migrate("web", "a", "b")?;
    // Its first tunnel leads to b.
    close(a, &[format!("iifname != \"netmig1\" iifname \"netmig*\" tcp dport {TCP}")])?;
    let words: &[&str] = &["TCP", &format!(":{TCP}"), "its far end has not answered"];
    loses(context, &lab, ["b", "c"], &[], &[words])?;
    context.remark(clients.stop()?.gaps());
    Ok(())
}

/// Packets of flows get lost before the destination sees them, as between the hosts.
fn between(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("b")?;
    serve(a, "web", 7000, &[], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    let _flow = far_end(c, "udp", a.port(7000), UDP, 1)?;
    load(
        b,
        &format!(
            "table inet fw {{ chain early {{ type filter hook prerouting priority -250; {} drop; }}; }}\n",
            towards("udp", UDP)
        ),
    )?;
    let words: &[&str] =
        &["UDP", &format!(":{UDP})"), "for the container that left a", "come to b"];
    loses(context, &lab, ["a", "b"], &[], &[words])?;
    context.remark(clients.stop()?.gaps());
    Ok(())
}

/// The conversation of the agents breaks once the container is handed over. The flow is told if the destination's agent is
/// there again, and otherwise that nobody knows.
fn agent_killed(context: &Context, is_started_again: bool) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("b")?;
    lab.pair("a", "b")?;
    serve(a, "web", 7000, &[], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    let _flow = far_end(c, "udp", a.port(7000), UDP, 1)?;
    close(b, &[from("udp", UDP)])?;
    let line = ["migrate", "web", "b", "--json"];
    let mut client = a.command("agent-client").args(line).spawn()?;
    until("the container is handed over", END, || Ok(counts(b)? && !is_arriving(b)))?;
    client.signal(Signal::SIGSTOP)?;
    ensure!(counts(b)?, "the conversation has ended");
    lab.stop_server("b", Signal::SIGKILL)?;
    if is_started_again {
        lab.serve("b")?;
    }
    client.signal(Signal::SIGCONT)?;
    let output = client.wait(END)?;
    let (code, said) = (output.status.code(), output.error_text());
    let json: Value = output.json()?;
    let (lost, unverified) = (list(&json, "lost")?, list(&json, "unverified")?);
    let dead = format!(":{UDP})");
    if is_started_again {
        ensure!(code == Some(LOST) && unverified.is_empty(), "{code:?}: {json}");
        are_named(&lost, &[&["UDP", &dead, "from the container that came to b"]])?;
    } else {
        ensure!(code == Some(UNVERIFIED) && lost.is_empty(), "{code:?}: {json}");
        ensure!(json["outcome"] == "moved-unverified", "{json}");
        let reason = "could not be asked";
        are_named(&unverified, &[&["UDP", &dead, reason], &["UDP", reason], &["TCP", reason]])?;
        ensure!(unverified.iter().all(|one| said.contains(one)), "{said}");
    }
    context.remark([lost, unverified].concat().join("; "));
    clients.stop()?;
    // A server that was killed has counted, and has to be started for its rules to go.
    lab.serve("b")?;
    let gone = Instant::now() + END;
    while counts(b)? {
        ensure!(Instant::now() < gone, "packets are counted still");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
