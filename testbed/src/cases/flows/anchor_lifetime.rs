//! The state of an anchor for the flows that it carries: it is listed, restored when another program removes it, and
//! removed with the last flow.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{opener, traces};
use crate::cases::subject::{Clients, serve};
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lab::Lab;
use crate::runner::{Case, Context};
use crate::slowdown;

pub(super) const CASES: &[Case] = &[
    Case::new("flows-are-listed", &["flows"], listed),
    Case::new("flows-survive-a-flush-of-all-rules", &["flows"], flushed),
    Case::new("flows-live-without-any-process-of-ours", &["flows"], alone),
    Case::new("flows-outlive-the-end-of-wireguard-go", &["flows"], tunnel_killed),
    Case::new("flows-outlive-a-long-cut-of-the-link", &["flows"], long_cut).limit(240),
    Case::new("flows-end-and-nothing-is-left", &["flows"], ended),
];

/// The time limit for removed state to be restored.
const REPAIR: Duration = Duration::from_secs(10);
/// The time limit for traces to go after the last flow.
const END: Duration = Duration::from_secs(30);

fn listed(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    a.run(["sysctl", "-q", "-w", "net.netfilter.nf_conntrack_acct=1"])?;
    let _server = opener::server(c)?;
    let ports = ["--publish", "7000-7001:7000-7001/tcp", "--publish", "7000:7000/udp"];
    opener::start(a, "web", c.port(7000), &ports)?;
    c.probe().wait_for_echo(a.port(7000), REPAIR)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    ensure!(flows(a)?.is_empty(), "listed before anything moved");
    lab.migrate("web", "a", "b")?;
    let anchor = flows(a)?;
    let host = flows(b)?;
    for (list, role) in [(&anchor, "anchor"), (&host, "host")] {
        for wanted in ["tcp inbound", "udp inbound", "tcp outbound", "udp outbound"] {
            let found = list.iter().any(|flow| {
                let text = |key: &str| flow[key].as_str().unwrap_or_default().to_lowercase();
                format!("{} {}", text("protocol"), text("direction")) == wanted
                    && (text("role").as_str(), text("container").as_str()) == (role, "web")
            });
            ensure!(found, "no {wanted} flow of web as {role} among {list:?}");
        }
    }
    let counted = anchor.iter().all(|flow| flow["bytes"].as_array().is_some_and(|b| b.len() == 2));
    ensure!(counted, "not all bytes are counted: {anchor:?}");
    ensure!(anchor.iter().all(|flow| flow["age"].as_u64().is_some()), "{anchor:?}");
    let addresses = (b.address().to_string(), b.address6().to_string());
    ensure!(
        anchor.iter().all(|flow| {
            let peer = flow["peer_address"].as_str().unwrap_or_default();
            peer == addresses.0 || peer == addresses.1
        }),
        "the peer is not {addresses:?}: {anchor:?}"
    );
    let people = a.run(["agent-client", "flows"])?;
    ensure!(people.contains("web") && people.contains("outbound"), "{people}");
    context.remark(format!("{} flows", anchor.len()));
    clients.stop()?;
    opener::stop(b, "web").map(drop)
}

fn flushed(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, clients) = moved(&lab)?;
    for host in [a, b] {
        await_guard(host)?;
        host.run(["nft", "flush", "ruleset"])?;
        let repaired = await_rules(host)?;
        context.remark(format!("{}: back in {} ms", host.name(), repaired.as_millis()));
    }
    // The loss of half of the rules must be repaired, too.
    a.run(["nft", "flush", "chain", "inet", "netmig", "steer"])?;
    await_rules(a)?;
    a.podman(["network", "reload", "--all"])?;
    let seen = clients.stop()?;
    context.remark(seen.gaps());
    Ok(())
}

fn alone(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, clients) = moved(&lab)?;
    lab.stop_server("b", nix::sys::signal::Signal::SIGKILL)?;
    for host in [a, b] {
        for line in host.run(["ps", "-eo", "pid,args"])?.lines().filter(|l| l.contains("agent-")) {
            let pid = line.split_whitespace().next().unwrap_or_default();
            host.command("kill").args(["-KILL", pid]).output()?;
        }
        let left = host.run(["ps", "-eo", "args"])?;
        ensure!(!left.contains("agent-"), "host {} still runs {left}", host.name());
    }
    std::thread::sleep(Duration::from_secs(1));
    let seen = clients.stop()?;
    // The next agent on the host takes over the state.
    lab.serve("b")?;
    await_guard(b)?;
    context.remark(seen.gaps());
    Ok(())
}

fn tunnel_killed(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, clients) = moved(&lab)?;
    for host in [a, b, a] {
        await_guard(host)?;
        host.run(["sh", "-c", "for p in $(pgrep -x wireguard-go); do kill -9 $p; done"])?;
        let deadline = Instant::now() + slowdown::limit(REPAIR);
        while !host.run(["ls", "/sys/class/net"])?.contains("netmig") {
            ensure!(Instant::now() < deadline, "host {} has no tunnel any more", host.name());
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    let whole = now();
    std::thread::sleep(Duration::from_secs(2));
    let seen = clients.stop_losing(u64::MAX)?;
    context.remark(format!("{}, {} datagrams lost", seen.gaps(), seen.udp.lost));
    let late = seen.udp.losses.iter().find(|loss| loss.last_unix_ns > whole);
    ensure!(late.is_none(), "lost after the tunnels were whole: {late:?}");
    // The tunnel works: the container returns by it, and no traces are left.
    lab.migrate("web", "b", "a")?;
    traces::none_within(b, END)
}

fn long_cut(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    for host in [a, b] {
        // A shorter timeout than the default makes the test faster.
        host.run(["sysctl", "-q", "-w", "net.netfilter.nf_conntrack_udp_timeout_stream=40"])?;
    }
    serve(a, "web", 7000, &[], c)?;
    let client = c.probe().udp_echo(a.port(7000)).rate(100.0).start()?;
    lab.migrate("web", "a", "b")?;
    await_guard(b)?;
    lab.set_cable("b", false)?;
    std::thread::sleep(Duration::from_secs(65));
    lab.set_cable("b", true)?;
    // The hosts have to resolve each other's link addresses again.
    std::thread::sleep(slowdown::limit(REPAIR));
    let whole = now();
    let seen = client.stop_after(Duration::from_secs(2))?;
    context.remark(format!("{} of {} datagrams lost in a cut of 65 s", seen.lost, seen.sent));
    ensure!(seen.lost > 1000 && seen.received > 0, "the link was not cut: {seen:?}");
    let late = seen.losses.iter().find(|loss| loss.last_unix_ns > whole);
    ensure!(late.is_none(), "lost once the link was whole: {late:?}");
    ensure!(seen.duplicated == 0, "{} datagrams came twice", seen.duplicated);
    Ok(())
}

/// Returns the current time in nanoseconds since the Unix epoch.
fn now() -> u64 {
    crate::traffic::gap::unix_ns(Instant::now())
}

fn ended(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    for host in [lab.host("a")?, lab.host("b")?] {
        traces::forget_soon(host)?;
    }
    let (a, b, clients) = moved(&lab)?;
    ensure!(!traces::all(a)?.is_empty(), "nothing of netmig on the anchor");
    clients.stop()?;
    let began = Instant::now();
    traces::none_within(a, END)?;
    traces::none_within(b, END)?;
    context.remark(format!("nothing left {} s after the last flow", began.elapsed().as_secs()));
    let reconcilers = a.run(["ps", "-eo", "args"])?;
    ensure!(!reconcilers.contains("keep"), "the reconciler is still there: {reconcilers}");
    Ok(())
}

/// Starts a container on a with clients on c and migrates it to b.
fn moved(lab: &Lab) -> Result<(&Host, &Host, Clients)> {
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    serve(a, "web", 7000, &[], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    lab.migrate("web", "a", "b")?;
    Ok((a, b, clients))
}

fn flows(host: &Host) -> Result<Vec<Value>> {
    let list: Value = host.command("agent-client").args(["flows", "--json"]).run()?.json()?;
    let flows = list["flows"].as_array();
    flows.cloned().ok_or_else(|| Error::Check(format!("no list of flows: {list}")))
}

/// Waits for the table that survives a flush.
fn await_guard(host: &Host) -> Result<()> {
    let deadline = Instant::now() + slowdown::limit(REPAIR * 3);
    while !host.run(["nft", "list", "tables"])?.contains("netmig-guard") {
        ensure!(Instant::now() < deadline, "host {} has no guard", host.name());
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Waits until both steering chains have their rules again.
fn await_rules(host: &Host) -> Result<Duration> {
    let began = Instant::now();
    loop {
        let listed = host.command("nft").args(["list", "table", "inet", "netmig"]).output()?;
        let rules = listed.text().matches("netmig peer").count();
        if rules == 4 {
            return Ok(began.elapsed());
        }
        ensure!(began.elapsed() < REPAIR, "host {} has {rules} rules", host.name());
        std::thread::sleep(Duration::from_millis(10));
    }
}
