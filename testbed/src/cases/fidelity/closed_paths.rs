//! Network paths that a firewall closes. A migration is refused before the interruption, or reports what it has lost.

pub(super) mod rules;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

pub(super) use self::rules::{BRIDGE_ALONE, ONE_WAY_OUT};
use self::rules::{CLOSE, ESTABLISHED_TOO, IDLE, OPEN, OUTPUT_CLOSED};
use crate::cases::flows::{opener, traces};
use crate::cases::subject::{Clients, serve};
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::lab::{Attempt, Lab};
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("paths-closed-during-the-move", &["fidelity", "flows"], closed_during_the_move),
    Case::new("paths-closed-to-answers", &["fidelity", "flows"], closed_to_answers),
    Case::new("paths-firewall-of-the-source", &["fidelity", "flows"], |c| firewall(c, "a")),
    Case::new("paths-firewall-of-the-destination", &["fidelity", "flows"], |c| firewall(c, "b")),
    Case::new("paths-output-of-the-source", &["fidelity", "flows"], |c| output(c, "a")),
    Case::new("paths-output-of-the-destination", &["fidelity", "flows"], |c| output(c, "b")),
    Case::new("paths-output-of-legacy-iptables", &["fidelity", "flows"], legacy_output),
    Case::new("paths-iptables-policy", &["fidelity", "flows"], |c| {
        iptables(c, ["iptables-nft", "ip6tables-nft"])
    }),
    Case::new("paths-legacy-iptables-policy", &["fidelity", "flows"], |c| {
        iptables(c, ["iptables-legacy", "ip6tables-legacy"])
    }),
    Case::new("paths-established-alone", &["fidelity", "flows"], established_alone),
    Case::new("paths-of-ipv6", &["fidelity", "flows"], ipv6),
    Case::new("paths-of-direct-flows", &["fidelity", "flows"], direct),
    Case::new("paths-opened", &["fidelity", "flows"], opened),
    Case::new("paths-tried-by-agents-that-are-killed", &["fidelity", "flows"], killed),
    Case::new("paths-reverse-path-filter", &["fidelity", "flows"], reverse_path_filter),
];

/// The exit code of a move that was refused.
const REFUSED: i32 = 3;
/// The exit code of a move that has lost something.
const LOST: i32 = 7;
/// The time limit for traces to go.
pub(super) const END: Duration = Duration::from_secs(40);
/// The time limit for a server to answer.
const ANSWERS: Duration = Duration::from_secs(10);
/// The published ports of the container that migrates.
const PUBLISHED: [&str; 4] = ["--publish", "7000-7001:7000-7001/tcp", "--publish", "7000:7000/udp"];

/// Loads rules as an administrator of the host does.
pub(super) fn load(host: &Host, rules: &str) -> Result<()> {
    host.command("nft").args(["-f", "-"]).input(rules).run().map(drop)
}

/// Opens an idle connection on `host`. Returns its process and its port.
pub(super) fn idle(host: &Host, server: SocketAddr) -> Result<(HostProcess, String)> {
    let (ip, port) = (server.ip().to_string(), server.port().to_string());
    let mut process = host.command("python3").args(["-c", IDLE, &ip, &port]).spawn()?;
    process.wait_for("port ", ANSWERS)?;
    let said = process.stderr();
    let port = said.split_whitespace().last().unwrap_or_default().to_owned();
    Ok((process, port))
}

/// The path into the tunnel is closed after packets are held. The migration reports the dead connections, and not an
/// idle one.
fn closed_during_the_move(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    lab.serve("b")?;
    serve(a, "web", 7000, &[], c)?;
    let (_resting, rests) = idle(c, a.port(7000))?;
    let there = lab.attempt("web", "a", "b", &[])?;
    ensure!(there.code == Some(0), "an idle connection: {there:?}");
    lab.serve("a")?;
    lab.migrate("web", "b", "a")?;
    let clients = Clients::gentle(c, a.port(7000))?;
    load(a, OPEN)?;
    let mut trap = a.command("sh").args(["-c", CLOSE]).spawn()?;
    trap.wait_for("ready", ANSWERS)?;
    let moved = lab.attempt("web", "a", "b", &[])?;
    ensure!(moved.code == Some(LOST), "{moved:?}");
    let json = moved.json()?;
    ensure!(json["outcome"] == "moved-with-losses", "{json}");
    let lost: Vec<String> = serde_json::from_value(json["lost"].clone())
        .map_err(|e| Error::Check(format!("{e}: {json}")))?;
    let far = format!("{}:", c.address());
    ensure!(lost.len() == 2 && lost.iter().all(|one| one.contains(&far)), "{lost:?}");
    ensure!(lost[0].contains("TCP") && lost[1].contains("UDP"), "{lost:?}");
    ensure!(lost[1].contains("for the container that came to a"), "{lost:?}");
    ensure!(!lost[0].contains(&format!("{far}{rests}")), "a resting connection: {lost:?}");
    ensure!(lost.iter().all(|one| moved.stderr.contains(one)), "{}", moved.stderr);
    ensure!(clients.stop().is_err(), "the connection lives");
    context.remark(lost.join("; "));
    Ok(())
}

/// The path back is closed, for datagrams alone.
fn closed_to_answers(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    lab.serve("b")?;
    serve(a, "web", 7000, &[], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    load(a, OPEN)?;
    let close = CLOSE.replace("oifname 'netmig*'", "iifname 'netmig*' meta l4proto udp");
    let mut trap = a.command("sh").args(["-c", &close]).spawn()?;
    trap.wait_for("ready", ANSWERS)?;
    let moved = lab.attempt("web", "a", "b", &[])?;
    ensure!(moved.code == Some(LOST), "{moved:?}");
    let json = moved.json()?;
    let lost = json["lost"].as_array().map(Vec::len);
    let text = json["lost"][0].as_str().unwrap_or_default();
    ensure!(lost == Some(1) && text.contains("from the container that came to a"), "{json}");
    ensure!(clients.stop().is_err(), "the flow lives");
    context.remark(text.to_owned());
    Ok(())
}

/// A container on `a` with flows of all kinds, and their other ends.
pub(super) struct Fixture {
    pub(super) inbound: Clients,
    _server: HostProcess,
}

impl Fixture {
    pub(super) fn start(lab: &Lab) -> Result<Self> {
        let (a, c) = (lab.host("a")?, lab.host("c")?);
        Self::start_with(lab, a.port(7000), c.port(7000), &[])
    }

    fn start_with(
        lab: &Lab,
        inbound: SocketAddr,
        outbound: SocketAddr,
        options: &[&str],
    ) -> Result<Self> {
        let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
        for host in [a, b] {
            traces::forget_soon(host)?;
            lab.serve(host.name())?;
        }
        let server = opener::server(c)?;
        opener::start(a, "web", outbound, &[&PUBLISHED, options].concat())?;
        c.probe().wait_for_echo(inbound, ANSWERS)?;
        Ok(Self { inbound: Clients::gentle(c, inbound)?, _server: server })
    }

    /// Checks that the clients have noticed nothing but a pause, and that no traces are left.
    pub(super) fn end(self, context: &Context, lab: &Lab) -> Result<()> {
        self.end_losing(context, lab, 0)
    }

    /// Like [`Fixture::end`], where at most `datagrams` datagrams may be lost each way.
    pub(super) fn end_losing(self, context: &Context, lab: &Lab, datagrams: u64) -> Result<()> {
        let seen = self.inbound.stop_losing(datagrams)?;
        let gap = opener::stop_losing(lab.host("a")?, "web", datagrams)?;
        for host in ["a", "b"] {
            traces::none_within(lab.host(host)?, END)?;
        }
        context.remark(format!("{}, outbound {gap:.0} ms", seen.gaps()));
        Ok(())
    }
}

/// Migrates the container to `b` and back.
pub(super) fn there_and_home(lab: &Lab, options: &[&str]) -> Result<()> {
    for (from, to) in [("a", "b"), ("b", "a")] {
        let moved = lab.attempt("web", from, to, options)?.success()?;
        ensure!(moved.warnings.is_empty(), "{from} to {to}: {:?}", moved.warnings);
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

/// Attempts a migration over a closed path, then migrates after `open` has opened it, and back.
fn refused_until(
    context: &Context,
    lab: &Lab,
    (fixture, options): (Fixture, &[&str]),
    close: impl FnOnce() -> Result<()>,
    words: &[&str],
    open: impl FnOnce() -> Result<()>,
) -> Result<()> {
    close()?;
    let attempt = lab.attempt("web", "a", "b", options)?;
    refused(&attempt, words)?;
    let json = attempt.json()?;
    let blockers = json["blockers"].as_array().map(Vec::len);
    ensure!(blockers == Some(1), "it is told more than once: {json}");
    for host in ["a", "b"] {
        traces::none_within(lab.host(host)?, END)?;
    }
    open()?;
    there_and_home(lab, options)?;
    fixture.end(context, lab)
}

/// A firewall for IPv6 alone, in a table of that family.
fn ipv6(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    for host in lab.hosts() {
        let subnets = ["--subnet", "10.77.0.0/24", "--subnet", "fd77::/64"];
        let create = ["network", "create", "--disable-dns", "--ipv6"];
        host.podman([&create[..], &subnets, &["dual"]].concat())?;
    }
    let [inbound, outbound] = [a, c].map(|host| SocketAddr::from((host.address6(), 7000)));
    let fixture = Fixture::start_with(&lab, inbound, outbound, &["--network", "dual"])?;
    let close = || load(a, &BRIDGE_ALONE.replace("inet", "ip6"));
    let open = || a.run(["nft", "delete", "table", "ip6", "fw"]).map(drop);
    let words = ["chain guard", "table ip6 fw", "IPv6"];
    refused_until(context, &lab, (fixture, &[]), close, &words, open)
}

/// The same firewall, without a tunnel.
fn direct(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let fixture = Fixture::start(&lab)?;
    b.run(["agent-server", "peers", "allow", "a", "--direct"])?;
    a.run(["agent-server", "peers", "allow", "b", "--direct"])?;
    let close = || load(a, BRIDGE_ALONE);
    let open = || a.run(["nft", "delete", "table", "inet", "fw"]).map(drop);
    let words = ["chain guard", "table inet fw"];
    refused_until(context, &lab, (fixture, &["--tunnel", "direct"]), close, &words, open)
}

/// `--open-firewall` opens the chain for these flows and closes it with the last of them.
fn opened(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let a = lab.host("a")?;
    let fixture = Fixture::start(&lab)?;
    load(a, BRIDGE_ALONE)?;
    let before = a.run(["nft", "list", "table", "inet", "fw"])?;
    let rules = || a.run(["nft", "list", "table", "inet", "fw"]);
    // The second migration finds the chain as it was.
    for _ in 0..2 {
        let moved = lab.attempt("web", "a", "b", &["--open-firewall", "--forward"])?.success()?;
        ensure!(moved.warnings.is_empty(), "{:?}", moved.warnings);
        let there = rules()?;
        ensure!(there.contains("netmig open 1 b"), "{there}");
        std::thread::sleep(Duration::from_secs(1));
        lab.migrate("web", "b", "a")?;
        traces::none_within(a, END)?;
        ensure!(rules()? == before, "{} was {before}", rules()?);
    }
    // A migration that is refused for another reason opens nothing either.
    a.set_parameter("net/ipv4/conf/all/rp_filter", "1")?;
    refused(&lab.attempt("web", "a", "b", &["--open-firewall"])?, &["rp_filter"])?;
    traces::none_within(a, END)?;
    ensure!(rules()? == before, "{} was {before}", rules()?);
    fixture.end(context, &lab)
}

/// Agents that are killed during the path trial leave nothing behind.
fn killed(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let fixture = Fixture::start(&lab)?;
    // Blocked packets are sent again, so the trial takes a while.
    load(a, BRIDGE_ALONE)?;
    for of in [a, b] {
        let mut client = a.command("agent-client").args(["migrate", "web", "b"]).spawn()?;
        let deadline = Instant::now() + ANSWERS;
        while !of.run(["nft", "list", "tables"])?.contains("netmig")
            || !of.run(["nft", "list", "table", "inet", "netmig"])?.contains("netmig path")
        {
            ensure!(Instant::now() < deadline, "{} tries nothing", of.name());
        }
        if of.name() == "a" {
            client.signal(Signal::SIGKILL)?;
        } else {
            lab.stop_server("b", Signal::SIGKILL)?;
        }
        drop(client.wait(END));
        for host in [a, b] {
            traces::none_within(host, END)?;
        }
        lab.serve("b")?;
    }
    a.run(["nft", "delete", "table", "inet", "fw"])?;
    there_and_home(&lab, &[])?;
    fixture.end(context, &lab)
}

pub(super) fn refused(attempt: &Attempt, words: &[&str]) -> Result<()> {
    ensure!(attempt.code == Some(REFUSED), "{attempt:?}");
    let said = format!("{}{}", attempt.stdout, attempt.stderr);
    for word in words.iter().chain(&["path-blocked"]) {
        ensure!(said.contains(word), "no {word:?} in {said}");
    }
    Ok(())
}

fn firewall(context: &Context, of: &str) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let host = lab.host(of)?;
    // On the destination the packets come from the bridge.
    let rules = if of == "a" { BRIDGE_ALONE } else { ONE_WAY_OUT };
    let close = || load(host, rules);
    let open = || host.run(["nft", "delete", "table", "inet", "fw"]).map(drop);
    let fixture = (Fixture::start(&lab)?, &[][..]);
    refused_until(context, &lab, fixture, close, &["chain guard", "table inet fw", of], open)
}

/// A firewall that drops what the hosts' WireGuard sends to each other.
fn output(context: &Context, of: &str) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let host = lab.host(of)?;
    let close = || load(host, OUTPUT_CLOSED);
    let open = || host.run(["nft", "delete", "table", "inet", "fw"]).map(drop);
    let fixture = (Fixture::start(&lab)?, &[][..]);
    let words = ["chain guard", "table inet fw", &format!("on {of}:")];
    refused_until(context, &lab, fixture, close, &words, open)
}

/// The same by rules of which nobody knows a name.
fn legacy_output(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let a = lab.host("a")?;
    let rule = ["OUTPUT", "--protocol", "udp", "--jump", "DROP"];
    let run = |what: &str| a.run([&["iptables-legacy", what], &rule[..]].concat()).map(drop);
    let fixture = (Fixture::start(&lab)?, &[][..]);
    let words = ["output hook", "legacy iptables", "on a:"];
    refused_until(context, &lab, fixture, || run("-A"), &words, || run("-D"))
}

fn iptables(context: &Context, programs: [&str; 2]) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let a = lab.host("a")?;
    let run = |line: &[&str]| -> Result<()> {
        for program in programs {
            a.run([&[program], line].concat())?;
        }
        Ok(())
    };
    let close = || {
        run(&["-A", "FORWARD", "-i", "podman+", "-j", "ACCEPT"])?;
        run(&["-A", "FORWARD", "-o", "podman+", "-j", "ACCEPT"])?;
        run(&["-P", "FORWARD", "DROP"])
    };
    let open = || run(&["-P", "FORWARD", "ACCEPT"]);
    let fixture = (Fixture::start(&lab)?, &[][..]);
    refused_until(context, &lab, fixture, close, &["FORWARD", "filter"], open)
}

/// Firewalls that accept established connections are no reason to refuse, unless new connections are forwarded.
fn established_alone(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let fixture = Fixture::start(&lab)?;
    for host in ["a", "b"] {
        load(lab.host(host)?, ESTABLISHED_TOO)?;
    }
    refused(&lab.attempt("web", "a", "b", &["--forward"])?, &["new tcp", "new udp", "guard"])?;
    there_and_home(&lab, &[])?;
    there_and_home(&lab, &[])?;
    fixture.end(context, &lab)
}

/// The bridge and the route to the container's address disappear with the container. Then a strict reverse path filter
/// would drop packets from the tunnel.
fn reverse_path_filter(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    let by_c = c.address().to_string();
    let close = || a.set_parameter("net/ipv4/conf/all/rp_filter", "1");
    let open = || a.run(["ip", "route", "add", "default", "via", &by_c]).map(drop);
    let fixture = (Fixture::start(&lab)?, &[][..]);
    refused_until(context, &lab, fixture, close, &["rp_filter", "route"], open)
}
