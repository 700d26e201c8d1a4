//! Flows between hosts of one Ethernet segment without a tunnel (`--tunnel direct`).

use std::time::Duration;

use super::{opener, traces};
use crate::cases::subject::{Clients, serve};
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lab::Attempt;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("flows-direct-there-and-home", &["flows"], there_and_home),
    Case::new("flows-direct-refused-off-link", &["flows"], off_link),
];

const PUBLISHED: [&str; 4] = ["--publish", "7000-7001:7000-7001/tcp", "--publish", "7000:7000/udp"];
const DIRECT: [&str; 2] = ["--tunnel", "direct"];
/// The exit code of a move that was refused.
const REFUSED: i32 = 3;
/// The interface to the only peer.
const WAY: &str = "netmig1";
/// The time limit for traces to go.
const LIMIT: Duration = Duration::from_secs(40);
/// The time limit for a server to answer.
const ANSWERS: Duration = Duration::from_secs(5);

/// A program that connects to an address and port and reports whether that succeeded within a second.
const KNOCK: &str = "\
import socket, sys
try:
    socket.create_connection((sys.argv[1], 7000), timeout=1).close()
    print('answered')
except OSError:
    print('silent')
";

fn there_and_home(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    for host in [a, b] {
        traces::forget_soon(host)?;
    }
    let _server = opener::server(c)?;
    opener::start(a, "web", c.port(7000), &PUBLISHED)?;
    c.probe().wait_for_echo(a.port(7000), ANSWERS)?;
    let inbound = Clients::gentle(c, a.port(7000))?;
    lab.serve("a")?;
    lab.serve("b")?;
    let unasked = lab.attempt("web", "a", "b", &DIRECT)?;
    refused(&unasked, &["not-allowed-direct", "agent-server peers allow", "--direct"])?;
    allow(b, "a")?;
    allow(a, "b")?;
    let there = lab.attempt("web", "a", "b", &DIRECT)?.success()?;
    ensure!(there.warnings.is_empty() && there.tunnel == "direct", "{there:?}");
    for host in [a, b] {
        let seen = traces::all(host)?.join("\n");
        ensure!(!seen.contains("wireguard-go"), "{} has a tunnel: {seen}", host.name());
        let flows: serde_json::Value =
            host.command("agent-client").args(["flows", "--json"]).run()?.json()?;
        let flows = flows["flows"].as_array().cloned().unwrap_or_default();
        let direct = flows.iter().filter(|flow| flow["tunnel"] == "direct").count();
        ensure!(direct == flows.len() && direct >= 6, "{}: {flows:?}", host.name());
    }
    only_the_peer_comes_in(b, c)?;
    // A migration without the option does not use the unencrypted path of an earlier one.
    refused(&lab.attempt("web", "b", "a", &[])?, &["other-tunnel", "--tunnel direct"])?;
    let back = lab.attempt("web", "b", "a", &DIRECT)?.success()?;
    ensure!(back.warnings.is_empty() && back.tunnel == "direct", "{back:?}");
    // The connections are open and need no rules any more. Those of the stranger have ended.
    traces::none_within(a, LIMIT)?;
    traces::none_within(b, LIMIT)?;
    let seen = inbound.stop()?;
    let gap = opener::stop(a, "web")?;
    context.remark(format!(
        "interruptions {:.0} and {:.0} ms, {}, outbound {gap:.0} ms",
        there.interruption_ms,
        back.interruption_ms,
        seen.gaps()
    ));
    Ok(())
}

/// Checks that frames of another sender to the hardware address of the interface are dropped, and those to the host's
/// own address are not.
fn only_the_peer_comes_in(host: &Host, stranger: &Host) -> Result<()> {
    let address = host.address().to_string();
    let way = host.run(["cat", &format!("/sys/class/net/{WAY}/address")])?;
    let knock = || stranger.run(["python3", "-c", KNOCK, &address]);
    ensure!(knock()? == "answered", "{address} does not answer {}", stranger.name());
    let entry = ["neighbour", "replace", &address, "lladdr", way.trim(), "dev", "eth0"];
    stranger.run([&["ip"], &entry[..], &["nud", "permanent"]].concat())?;
    ensure!(knock()? == "silent", "{} takes frames of strangers", host.name());
    stranger.run(["ip", "neighbour", "delete", &address, "dev", "eth0"])?;
    ensure!(knock()? == "answered", "{address} does not answer {} any more", stranger.name());
    Ok(())
}

fn off_link(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "router"])?;
    let (a, b, router) = (lab.host("a")?, lab.host("b")?, lab.host("router")?);
    for interface in ["all", "eth0"] {
        // The router is on the segment of both hosts and would send redirects.
        router.set_parameter(&format!("net/ipv4/conf/{interface}/send_redirects"), "0")?;
    }
    serve(a, "web", 7000, &[], router)?;
    let clients = Clients::gentle(router, a.port(7000))?;
    lab.serve("b")?;
    allow(b, "a")?;
    // Each end checks by itself.
    for (from, to) in [(a, b), (b, a)] {
        let (to, by) = (to.address().to_string(), router.address().to_string());
        let route = [to.as_str(), "via", &by];
        from.run([&["ip", "route", "add"], &route[..]].concat())?;
        refused(&lab.attempt("web", "a", "b", &DIRECT)?, &["not-on-link", "router", "wireguard"])?;
        for host in [a, b] {
            let left = traces::all(host)?;
            ensure!(left.is_empty(), "{} has {left:?}", host.name());
        }
        from.run([&["ip", "route", "delete"], &route[..]].concat())?;
    }
    // Without those routes the two hosts are on one link.
    let moved = lab.attempt("web", "a", "b", &DIRECT)?.success()?;
    ensure!(moved.tunnel == "direct", "{moved:?}");
    context.remark(clients.stop()?.gaps());
    Ok(())
}

fn allow(host: &Host, peer: &str) -> Result<()> {
    let told = host.run(["agent-server", "peers", "allow", peer, "--direct"])?;
    if told.contains("direct flows  yes") { Ok(()) } else { Err(Error::Check(told)) }
}

fn refused(attempt: &Attempt, words: &[&str]) -> Result<()> {
    ensure!(attempt.code == Some(REFUSED), "{attempt:?}");
    let said = format!("{}{}", attempt.stdout, attempt.stderr);
    for word in words {
        ensure!(said.contains(word), "no {word:?} in {said}");
    }
    Ok(())
}
