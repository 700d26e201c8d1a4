//! Connections between two containers of one network by their own addresses.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{opener, traces};
use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::breakpoint;
use crate::host::Host;
use crate::lab::Lab;
use crate::runner::{Case, Context};
use crate::slowdown;
use crate::traffic::client_report::EchoReport;

pub(super) const CASES: &[Case] = &[
    Case::new("flows-between-containers-of-one-network", &["flows", "hops"], there_and_home),
    Case::new("flows-between-containers-over-ipv6", &["flows", "hops"], over_ipv6),
    Case::new("flows-between-containers-end", &["flows"], to_the_end),
    Case::new("flows-between-containers-onwards", &["flows", "hops"], onwards),
    Case::new("flows-between-containers-after-crashes", &["flows", "faults"], crashes),
];

/// The exit code of a migration that was rolled back.
const ROLLED_BACK: i32 = 4;
/// The time limit for traces to go.
const END: Duration = Duration::from_secs(40);
/// The time limit for a move to come to a step, and its recovery to end.
const RECOVERY: Duration = Duration::from_secs(30);
/// The delay of a restore that must exceed the limit.
const RESTORE_DELAY: Duration = Duration::from_secs(3);
/// The time from the first pass over the files until the container is frozen.
const FROZEN: Duration = Duration::from_millis(100);
/// The number of datagrams that may be lost when the container returns.
const LOST_ON_RETURN: u64 = 15;
/// The container that stays.
pub(in crate::cases) const NEIGHBOUR: &str = "neighbour";
/// Its clients: name, and action of the probe.
pub(in crate::cases) const CLIENTS: [(&str, &str); 2] = [("tcp", "tcp-echo"), ("udp", "udp-echo")];

/// A network, and the family that the clients use.
#[derive(Clone, Copy)]
struct Network {
    name: &'static str,
    six: bool,
}

const USUAL: Network = Network { name: "podman", six: false };

/// Bridged packets bypass connection tracking, as on most hosts.
fn there_and_home(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    for host in [a, b] {
        untracked(host)?;
    }
    let (web, neighbour) = start(a, USUAL)?;
    lab.serve("b")?;
    breakpoint::install(b)?;
    // The first migration exceeds the limit and is rolled back after all detours have been set up.
    breakpoint::delay_step(b, "restore", RESTORE_DELAY)?;
    let late = lab.attempt("web", "a", "b", &["--max-interruption", "1.5"])?;
    ensure!(late.code == Some(ROLLED_BACK), "{:?}: {}", late.code, late.stderr);
    breakpoint::clear(b)?;
    let left = (detours(a)?, entries(a, web, neighbour)?);
    ensure!(left.0.is_empty() && left.1.is_empty(), "after going back: {left:?}");
    follow(context, &lab, web)?;
    let left = entries(a, web, neighbour)?;
    ensure!(left.is_empty(), "still there: {left:?}");
    Ok(())
}

fn over_ipv6(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    for host in [lab.host("a")?, lab.host("b")?] {
        let subnets = ["--subnet", "10.77.0.0/24", "--subnet", "fd77::/64"];
        let create = ["network", "create", "--disable-dns", "--ipv6"];
        host.podman([&create[..], &subnets, &["dual"]].concat())?;
    }
    let (web, _) = start(lab.host("a")?, Network { name: "dual", six: true })?;
    follow(context, &lab, web)
}

/// Each container has a client of the other's server. The one with the address `web` migrates and returns.
fn follow(context: &Context, lab: &Lab, web: IpAddr) -> Result<()> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let there = lab.migrate("web", "a", "b")?;
    std::thread::sleep(Duration::from_secs(1));
    let away = detours(a)?;
    ensure!(!away.is_empty() && away[0].contains(&web.to_string()), "detours on a: {away:?}");
    lab.migrate("web", "b", "a")?;
    let left = detours(a)?;
    ensure!(left.is_empty(), "still there: {left:?}");
    let (gap, lost) = stop(a, LOST_ON_RETURN)?;
    let outbound = opener::stop(a, "web")?;
    traces::none_within(a, END)?;
    traces::none_within(b, END)?;
    let interruption = there.interruption_ms;
    context.remark(format!(
        "interruption {interruption:.0}, gaps {gap:.0} and {outbound:.0} ms, {lost} datagrams lost"
    ));
    Ok(())
}

/// The container stays on a host where another container has its neighbour's address.
fn to_the_end(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    for host in [a, b] {
        traces::forget_soon(host)?;
    }
    let (web, neighbour) = start(a, USUAL)?;
    let same = ["run", "--detach", "--name", "same", "--ip", &neighbour.to_string()];
    b.podman([&same[..], &["probe:1", "netmig-probe", "serve"]].concat())?;
    let migration = lab.migrate("web", "a", "b")?;
    let (gap, _) = stop(a, 0)?;
    let outbound = opener::stop(b, "web")?;
    traces::none_within(a, END)?;
    traces::none_within(b, END)?;
    let left = (detours(a)?, detours(b)?, entries(a, web, neighbour)?);
    ensure!(left.0.is_empty() && left.1.is_empty() && left.2.is_empty(), "left: {left:?}");
    // The connections to the neighbour have ended, so the container reaches the other one by this address.
    let control = SocketAddr::from((neighbour, 7001)).to_string();
    b.podman(["exec", "web", "netmig-probe", "stats", &control])?;
    context.remark(format!(
        "interruption {:.0} ms, gaps {gap:.0} and {outbound:.0} ms",
        migration.interruption_ms
    ));
    Ok(())
}

/// The container migrates on to a third host, the second one is disconnected, and the container returns.
fn onwards(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let (web, neighbour) = start(a, USUAL)?;
    lab.serve("a")?;
    for (from, to) in [("a", "b"), ("b", "c")] {
        let migration = lab.migrate("web", from, to)?;
        // The only warning names the neighbour that stays behind.
        let leaves = usize::from(from == "a");
        let told = migration.warnings.iter().filter(|warning| warning.contains(NEIGHBOUR)).count();
        let all = migration.warnings.len();
        ensure!((told, all) == (leaves, leaves), "{from} to {to}: {:?}", migration.warnings);
    }
    traces::none(b)?;
    lab.set_cable("b", false)?;
    // The third host knew the flows that came by way of the second: no packet has created an entry.
    let (from, to) = (neighbour.to_string(), web.to_string());
    let strangers = c.run(["conntrack", "-L", "-s", &from, "-d", &to])?;
    ensure!(strangers.is_empty(), "flows that c does not know: {strangers:?}");
    std::thread::sleep(Duration::from_secs(1));
    lab.migrate("web", "c", "a")?;
    let left = detours(a)?;
    ensure!(left.is_empty(), "still there: {left:?}");
    let (gap, lost) = stop(a, LOST_ON_RETURN)?;
    let outbound = opener::stop(a, "web")?;
    traces::none_within(a, END)?;
    traces::none_within(c, END)?;
    context.remark(format!("gaps {gap:.0} and {outbound:.0} ms, {lost} datagrams lost"));
    Ok(())
}

/// The source's agent is killed while the container is frozen, and in another move after the decision.
fn crashes(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    untracked(a)?;
    let (web, neighbour) = start(a, USUAL)?;
    lab.serve("b")?;
    breakpoint::install(b)?;
    // The line of a step appears at its end. The interruption follows the first of these steps, and the decision
    // precedes the end of the other.
    for (after, runs_on) in [("files, first pass", a), ("hand-over", b)] {
        let is_undecided = runs_on.name() == a.name();
        if is_undecided {
            breakpoint::delay_step(b, "restore", RESTORE_DELAY)?;
        }
        let mut client = a.command("agent-client").args(["migrate", "web", "b"]).spawn()?;
        client.wait_for(after, RECOVERY)?;
        if is_undecided {
            std::thread::sleep(FROZEN);
        }
        client.signal(Signal::SIGKILL)?;
        client.wait(RECOVERY)?;
        breakpoint::clear(b)?;
        await_recovery(a)?;
        let running = runs_on.podman(["ps", "--quiet", "--filter", "name=^web$"])?;
        ensure!(!running.is_empty(), "after {after}: web does not run on {}", runs_on.name());
        if is_undecided {
            let left = (detours(a)?, entries(a, web, neighbour)?);
            ensure!(left.0.is_empty() && left.1.is_empty(), "after {after}: {left:?}");
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    ensure!(!detours(a)?.is_empty(), "no detours on a");
    lab.migrate("web", "b", "a")?;
    let (gap, lost) = stop(a, LOST_ON_RETURN)?;
    let outbound = opener::stop(a, "web")?;
    traces::none_within(a, END)?;
    traces::none_within(b, END)?;
    context.remark(format!("gaps {gap:.0} and {outbound:.0} ms, {lost} datagrams lost"));
    Ok(())
}

/// Excludes bridged packets from connection tracking. A kernel without this parameter never includes them.
pub(in crate::cases) fn untracked(host: &Host) -> Result<()> {
    host.run(["sysctl", "-q", "-e", "-w", "net.bridge.bridge-nf-call-iptables=0"]).map(drop)
}

/// Waits until no migration is under way on a host.
fn await_recovery(host: &Host) -> Result<()> {
    let deadline = Instant::now() + slowdown::limit(RECOVERY);
    loop {
        let journals = host.run(["ls", "/var/lib/netmig/journal"])?;
        if journals.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not recovered: {journals}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Starts both containers on `host`, and clients in both. Returns their addresses.
fn start(host: &Host, network: Network) -> Result<(IpAddr, IpAddr)> {
    let serve = ["probe:1", "sh", "-c", "netmig-probe serve & while :; do sleep 1000; done"];
    let of = ["--network", network.name];
    host.podman([&["run", "--detach", "--name", NEIGHBOUR][..], &of, &serve].concat())?;
    let neighbour = address(host, NEIGHBOUR, network)?;
    opener::start(host, "web", SocketAddr::from((neighbour, 7000)), &of)?;
    let web = address(host, "web", network)?;
    let server = SocketAddr::from((web, 7000));
    for (name, action) in CLIENTS {
        let client = format!(
            "netmig-probe {action} {server} --rate 50 >/tmp/{name} 2>/tmp/{name}.err & \
             echo $! >/tmp/{name}.pid; wait"
        );
        host.podman(["exec", "--detach", NEIGHBOUR, "sh", "-c", &client])?;
        opener::wait_for(host, NEIGHBOUR, &format!("/tmp/{name}.err"), "ready")?;
    }
    Ok((web, neighbour))
}

/// Ends the clients of the container that stays. Returns the longest silence in milliseconds and the number of lost
/// datagrams.
pub(in crate::cases) fn stop(host: &Host, datagrams: u64) -> Result<(f64, u64)> {
    std::thread::sleep(Duration::from_secs(1));
    host.podman(["exec", NEIGHBOUR, "sh", "-c", "kill -TERM $(cat /tmp/*.pid)"])?;
    let (mut longest, mut lost) = (0f64, 0);
    for (name, _) in CLIENTS {
        let text = opener::wait_for(host, NEIGHBOUR, &format!("/tmp/{name}"), "}")?;
        let seen: EchoReport = serde_json::from_str(&text)
            .map_err(|e| Error::Check(format!("{name} said {text:?}: {e}")))?;
        let fault = seen.fault_beyond(if name == "udp" { datagrams } else { 0 });
        ensure!(fault.is_none(), "{name}: {fault:?} of {seen:?}");
        ensure!(seen.sent > 50, "{name}: only {} messages", seen.sent);
        longest = longest.max(seen.max_gap_ms);
        lost += seen.lost;
    }
    Ok((longest, lost))
}

fn address(host: &Host, name: &str, network: Network) -> Result<IpAddr> {
    let of = if network.six { "GlobalIPv6Address" } else { "IPAddress" };
    let format = format!("{{{{.NetworkSettings.Networks.{}.{of}}}}}", network.name);
    let text = host.podman(["inspect", "--format", &format, name])?;
    text.parse().map_err(|e| Error::Check(format!("{text}: {e}")))
}

/// Lists netmig's neighbour entries in the containers of a host.
pub(in crate::cases) fn detours(host: &Host) -> Result<Vec<String>> {
    let list = "for n in /run/netns/*; do nsenter --net=$n ip neigh show proto 78; done";
    let text = host.run(["sh", "-c", list])?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Lists the conntrack entries of flows between two containers.
fn entries(host: &Host, one: IpAddr, other: IpAddr) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (from, to) in [(one, other), (other, one)] {
        let line = ["conntrack", "-L", "-s", &from.to_string(), "-d", &to.to_string()];
        found.extend(host.run(line)?.lines().map(str::to_owned));
    }
    Ok(found)
}
