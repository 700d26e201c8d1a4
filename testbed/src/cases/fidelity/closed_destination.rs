//! UDP flows whose packets the destination drops after a move: they are told. Those that live, or rest, are not.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::closed_paths::{END, load, rules};
use crate::cases::flows::{opener, traces};
use crate::cases::subject::{Clients, serve};
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("paths-closed-at-the-destination", &["fidelity", "flows"], closed_towards),
    Case::new("paths-closed-to-answers-at-the-destination", &["fidelity", "flows"], closed_from),
    Case::new("paths-closed-to-another-address", &["fidelity", "flows"], closed_to_another),
    Case::new("paths-open-to-datagrams", &["fidelity", "flows"], open),
    Case::new("paths-counted-by-agents-that-are-killed", &["fidelity", "flows"], killed),
];

/// The exit code of a move that has lost something.
const LOST: i32 = 7;
/// The time limit for a program to answer.
const ANSWERS: Duration = Duration::from_secs(10);
/// The published ports of the container that migrates.
const PUBLISHED: [&str; 4] = ["--publish", "7000-7001:7000-7001/tcp", "--publish", "7000:7000/udp"];

/// A script that waits until the destination has an entry of a flow that lasts longer than those of a path trial, and
/// closes the path of datagrams then. The container is interrupted at that moment.
const CLOSE: &str = "\
echo ready >&2
until conntrack -L -p udp 2>/dev/null | grep -qE ' 17 1[0-9][0-9] .*dport=7000 .*mark=[1-9]'; do :; done
nft add rule inet fw guard WAY 'netmig*' meta l4proto udp drop
";

/// A program that exchanges one datagram with a server and rests then.
const REST: &str = "\
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(1)
s.connect((sys.argv[1], int(sys.argv[2])))
while True:
    try:
        s.send(b'x' * 64)
        s.recv(2048)
        break
    except OSError:
        time.sleep(0.1)
print('answered', file=sys.stderr, flush=True)
time.sleep(600)
";

/// Moves a container with flows of its own and of others to `b`, which closes their path after it was tried.
/// Returns what was lost.
fn closed(context: &Context, way: &str) -> Result<Vec<String>> {
    let lab = context.lab(&["a", "b", "c"])?;
    closed_in(context, &lab, way, &[])
}

fn closed_in(context: &Context, lab: &Lab, way: &str, options: &[&str]) -> Result<Vec<String>> {
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("b")?;
    let _server = opener::server(c)?;
    opener::start(a, "web", c.port(7000), &PUBLISHED)?;
    c.probe().wait_for_echo(a.port(7000), ANSWERS)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    load(b, rules::OPEN)?;
    let mut trap = b.command("sh").args(["-c", &CLOSE.replace("WAY", way)]).spawn()?;
    trap.wait_for("ready", ANSWERS)?;
    let moved = lab.attempt("web", "a", "b", options)?;
    ensure!(moved.code == Some(LOST), "{moved:?}");
    ensure!(clients.stop().is_err(), "the flow lives");
    let json = moved.json()?;
    ensure!(json["outcome"] == "moved-with-losses", "{json}");
    let lost: Vec<String> = serde_json::from_value(json["lost"].clone())
        .map_err(|e| Error::Check(format!("{e}: {json}")))?;
    ensure!(lost.iter().all(|one| moved.stderr.contains(one)), "{}", moved.stderr);
    no_counters(lab)?;
    // One to its published port, and one of its own.
    let ports = [a, c].map(|host| format!("{}:7000", host.address()));
    ensure!(lost.len() == 2, "{lost:?}");
    for (port, opened) in ports.iter().zip(["flow to", "flow of the container to"]) {
        let whole = format!("UDP {opened} {port}");
        ensure!(lost.iter().any(|one| one.contains(&whole)), "no {whole:?} in {lost:?}");
    }
    context.remark(lost.join("; "));
    Ok(lost)
}

/// The path from the tunnel to the container is closed, for datagrams alone.
fn closed_towards(context: &Context) -> Result<()> {
    let lost = closed(context, "iifname")?;
    let is_named = |one: &String| one.contains("for the container that came to b in the");
    ensure!(lost.iter().all(is_named), "{lost:?}");
    Ok(())
}

/// The path from the container into the tunnel is closed, for datagrams alone.
fn closed_from(context: &Context) -> Result<()> {
    let lost = closed(context, "oifname")?;
    let is_named = |one: &String| one.contains("from the container that came to b in the");
    ensure!(lost.iter().all(is_named), "{lost:?}");
    Ok(())
}

/// The same where the container gets another address: its own is another one's there.
fn closed_to_another(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let b = lab.host("b")?;
    b.podman(["run", "--detach", "--name", "holder", "probe:1", "sleep", "10000"])?;
    let lost = closed_in(context, &lab, "oifname", &["--address", "any"])?;
    let is_named = |one: &String| one.contains("from the container that came to b in the");
    ensure!(lost.iter().all(is_named), "{lost:?}");
    let format = "{{.NetworkSettings.Networks.podman.IPAddress}}";
    let own = b.podman(["inspect", "--format", format, "web"])?;
    let is_its_own = lost.iter().any(|one| one.contains(&format!("(from {own}:")));
    ensure!(!is_its_own, "it has {own} on both hosts: {lost:?}");
    Ok(())
}

/// Opens a flow on `host` that has had one answer. Returns its process.
fn rest(host: &Host, server: SocketAddr) -> Result<HostProcess> {
    let (ip, port) = (server.ip().to_string(), server.port().to_string());
    let mut process = host.command("python3").args(["-c", REST, &ip, &port]).spawn()?;
    process.wait_for("answered", ANSWERS)?;
    Ok(process)
}

/// Nothing is told of a flow that rests, nor of one that lives.
fn open(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    ["a", "b"].iter().try_for_each(|host| lab.serve(host))?;
    serve(a, "web", 7000, &[], c)?;
    let resting = rest(c, a.port(7000))?;
    nothing_lost(&lab, "a", "b")?;
    nothing_lost(&lab, "b", "a")?;
    drop(resting);
    let clients = Clients::gentle(c, a.port(7000))?;
    nothing_lost(&lab, "a", "b")?;
    nothing_lost(&lab, "b", "a")?;
    context.remark(clients.stop()?.gaps());
    Ok(())
}

fn nothing_lost(lab: &Lab, from: &str, to: &str) -> Result<()> {
    let moved = lab.attempt("web", from, to, &[])?;
    ensure!(moved.code == Some(0), "{moved:?}");
    let json = moved.json()?;
    let lost = json["lost"].as_array().map(Vec::len);
    ensure!(lost == Some(0) && json["warnings"] == serde_json::json!([]), "{json}");
    no_counters(lab)
}

/// Returns whether a host counts packets of flows.
pub(super) fn counts(host: &Host) -> Result<bool> {
    // There may be no such table.
    let listed = host.command("nft").args(["list", "table", "inet", "netmig"]).output()?;
    Ok(listed.text().contains("netmig count"))
}

/// Waits until neither host counts packets.
fn no_counters(lab: &Lab) -> Result<()> {
    for host in ["a", "b"] {
        let host = lab.host(host)?;
        until(&format!("{} counts nothing", host.name()), ANSWERS, || Ok(!counts(host)?))?;
    }
    Ok(())
}

/// Returns whether a host has the journal of a move that has not ended there.
pub(super) fn is_arriving(host: &Host) -> bool {
    let journals = host.path("/var/lib/netmig/journal").read_dir();
    journals.is_ok_and(|entries| entries.count() > 0)
}

pub(super) fn until(what: &str, limit: Duration, is: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + crate::slowdown::limit(limit);
    while !is()? {
        ensure!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// An agent of the destination that is killed after it has handed the container over leaves no rules behind, whether it is
/// started again or not.
fn killed(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    for host in [a, b] {
        traces::forget_soon(host)?;
    }
    lab.serve("b")?;
    lab.pair("a", "b")?;
    for (name, port, is_restarted) in [("web", 7000, true), ("other", 7100, false)] {
        serve(a, name, port, &[], c)?;
        let clients = Clients::gentle(c, a.port(port))?;
        let mut client = a.command("agent-client").args(["migrate", name, "b"]).spawn()?;
        until("the container is handed over", END, || Ok(counts(b)? && !is_arriving(b)))?;
        client.signal(Signal::SIGSTOP)?;
        ensure!(counts(b)?, "the conversation has ended");
        lab.stop_server("b", Signal::SIGKILL)?;
        // The reconciler may have removed its rules already.
        if is_restarted {
            lab.serve("b")?;
            ensure!(!counts(b)?, "rules of a dead process are left");
        } else {
            until("the rules of a dead process are gone", END, || Ok(!counts(b)?))?;
        }
        client.signal(Signal::SIGCONT)?;
        drop(client.wait(END));
        clients.stop()?;
    }
    Ok(())
}
