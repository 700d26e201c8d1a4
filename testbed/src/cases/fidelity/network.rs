//! Settings in a container's network namespace hold after a migration, or the migration is refused and names them.

use std::time::{Duration, Instant};

use super::scenarios::{remove, says};
use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::breakpoint::{self, Breakpoint};
use crate::host::Host;
use crate::lab::{Lab, Runtime};
use crate::runner::{Case, Context};
use crate::slowdown;

pub(super) const CASES: &[Case] = &[
    Case::new("fidelity-network-parameters-set-later", &["fidelity"], parameters).limit(400),
    Case::new("fidelity-network-parameters-after-a-rollback", &["fidelity"], rolled_back),
    Case::new("fidelity-refuses-networks-of-a-containers-own", &["fidelity"], refused).limit(400),
    Case::new("fidelity-routes-are-compared", &["fidelity"], routes).limit(300),
    Case::new("fidelity-network-changed-at-the-last-moment", &["fidelity"], last_moment).limit(400),
    Case::new("fidelity-networks-of-the-engine-are-not-refused", &["fidelity"], engine).limit(400),
    Case::new("fidelity-ping-without-privileges", &["fidelity"], ping).limit(240),
];

/// The exit code of a refusal.
const REFUSED: i32 = 3;
const ROLLED_BACK: i32 = 4;
/// The time limit for a move to come to its dump.
const LIMIT: Duration = Duration::from_secs(60);

/// Starts a container that does nothing.
fn idle(host: &Host, options: &[&str]) -> Result<()> {
    let run = ["run", "--detach", "--name", "web"];
    let program = ["probe:1", "sh", "-c", "echo ready; sleep 100000"];
    host.podman([&run[..], options, &program].concat())?;
    says(host, "web", "ready")
}

/// Runs a program of the host in the container's network namespace.
fn within<S: AsRef<str>>(host: &Host, words: &[S]) -> Result<String> {
    within_that_of(host, &first_process(host)?, words)
}

fn first_process(host: &Host) -> Result<String> {
    host.podman(["inspect", "--format", "{{.State.Pid}}", "web"])
}

fn within_that_of<S: AsRef<str>>(host: &Host, pid: &str, words: &[S]) -> Result<String> {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    let line = [&["--target", pid, "--net", "--"][..], &words].concat();
    Ok(host.command("nsenter").args(line).run()?.text())
}

/// Like [`within`], for a command line of words.
fn enter(host: &Host, line: &str) -> Result<String> {
    within(host, &line.split(' ').collect::<Vec<_>>())
}

/// Parameters that a container cannot change by itself, with values that differ from the kernel's defaults. The first
/// changes others, too.
const PARAMETERS: &[(&str, &str)] = &[
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv4.conf.eth0.forwarding", "0"),
    ("net.ipv4.conf.eth0.rp_filter", "1"),
    ("net.ipv4.conf.all.accept_redirects", "1"),
    ("net.ipv4.conf.default.accept_local", "1"),
    ("net.ipv4.ip_local_reserved_ports", "8080,9000-9100"),
    ("net.ipv4.ping_group_range", "0 100"),
    ("net.ipv4.tcp_keepalive_time", "321"),
    ("net.ipv4.tcp_rmem", "4096 65536 1048576"),
    ("net.ipv4.tcp_fastopen_key", "00000001-00000002-00000003-00000004"),
    ("net.ipv4.neigh.eth0.base_reachable_time_ms", "12344"),
    ("net.core.somaxconn", "99"),
    ("net.ipv6.conf.all.hop_limit", "12"),
    ("net.ipv6.conf.eth0.stable_secret", "fd00::1"),
    ("net.unix.max_dgram_qlen", "33"),
];

fn set(host: &Host, all: &[(&str, &str)]) -> Result<()> {
    all.iter().try_for_each(|(name, value)| {
        within(host, &["sysctl", "-w", &format!("{name}={value}")]).map(drop)
    })
}

/// Returns every parameter of the container, with its value.
fn values(host: &Host) -> Result<Vec<String>> {
    let pid = first_process(host)?;
    let line = ["--target", pid.as_str(), "--net", "--", "sysctl", "-a", "--pattern", "^net\\."];
    // sysctl(8) fails for parameters that cannot be read.
    let all = host.command("nsenter").args(line).output()?.text();
    // Counters of the kernel, and parameters of the whole kernel.
    let is_own =
        |line: &&str| !line.contains("_count = ") && !line.contains("nf_conntrack_buckets");
    Ok(all.lines().filter(is_own).map(|line| line.replace('\t', " ")).collect())
}

fn are_set(host: &Host, before: &[String]) -> Result<()> {
    for (name, value) in PARAMETERS {
        let is = within(host, &["sysctl", "-n", name])?.trim().replace('\t', " ");
        let is_address = value.contains("::") && is.replace("0000:", "").contains("fd00:");
        ensure!(is == *value || is_address, "{name} is {is:?}, not {value:?}");
    }
    let after = values(host)?;
    let changed: Vec<&String> = after.iter().filter(|line| !before.contains(line)).collect();
    ensure!(changed.is_empty(), "{changed:?}");
    Ok(())
}

/// The parameters hold on each of three hosts and on the way back.
fn parameters(context: &Context) -> Result<()> {
    for runtime in Runtime::ALL {
        let lab = context.lab_with(&["a", "b", "c"], runtime)?;
        let a = lab.host("a")?;
        idle(a, &[])?;
        set(a, PARAMETERS)?;
        let before = values(a)?;
        are_set(a, &before)?;
        for (from, to) in [("a", "b"), ("b", "c"), ("c", "a")] {
            lab.migrate("web", from, to)?;
            let held = are_set(lab.host(to)?, &before);
            held.map_err(|error| Error::Check(format!("{} on {to}: {error}", runtime.name())))?;
        }
        context.remark(format!("{} values by {}", before.len(), runtime.name()));
    }
    Ok(())
}

fn rolled_back(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve("b")?;
    breakpoint::install(b)?;
    idle(a, &[])?;
    set(a, PARAMETERS)?;
    let before = values(a)?;
    breakpoint::delay_step(b, "restore", Duration::from_secs(4))?;
    let attempt = lab.attempt("web", "a", "b", &["--max-interruption", "2"])?;
    ensure!(attempt.code == Some(ROLLED_BACK), "{:?}: {}", attempt.code, attempt.stderr);
    are_set(a, &before)?;
    breakpoint::clear(b)?;
    lab.migrate("web", "a", "b")?;
    are_set(b, &before)
}

/// The commands, the code of the refusal, and a word of it.
type Row = (&'static [&'static str], &'static str, &'static str);

const OWN: &[Row] = &[
    (&["ip link add name br7 type bridge"], "network-link", "br7"),
    (&["ip link set dev eth0 mtu 1300"], "network-link", "1300"),
    (&["ip link set dev eth0 address 02:00:00:00:00:77"], "network-link", "02:00:00:00:00:77"),
    (&["ip address add 192.0.2.77/32 dev eth0"], "network-address", "192.0.2.77"),
    (&["ip address add 192.0.2.78/32 dev lo"], "network-address", "192.0.2.78"),
    (&["ip address add fd77::7/128 dev lo"], "network-address", "fd77::7"),
    (&["ip rule add from 192.0.2.77 lookup 77"], "network-rule", "77"),
    (&["ip -6 rule add from fd77::7 lookup 77"], "network-rule", "fd77::7"),
    (&["ip rule delete lookup default"], "network-rule", "32767"),
    (
        &["ip neighbour add 10.88.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent"],
        "network-neighbour",
        "10.88.0.77",
    ),
    (&["ip neighbour add proxy 10.88.0.78 dev eth0"], "network-neighbour", "10.88.0.78"),
    (&["nft add table inet own"], "network-filter", "own"),
    (&["iptables-legacy -A INPUT -p tcp --dport 77 -j DROP"], "network-filter", "filter"),
    (&["iptables-legacy -P FORWARD DROP"], "network-filter", "filter"),
    (&["ip6tables-legacy -A INPUT -p tcp --dport 77 -j DROP"], "network-filter", "filter"),
    (
        &["tc qdisc add dev eth0 root tbf rate 10mbit burst 32kbit latency 50ms"],
        "network-qdisc",
        "tbf",
    ),
    (&["tc qdisc add dev eth0 clsact"], "network-qdisc", "clsact"),
    (&["ip nexthop add id 77 via 10.88.0.1 dev eth0"], "network-route", "77"),
    (
        &["ip xfrm policy add src 192.0.2.7 dst 192.0.2.8 dir out priority 77"],
        "network-ipsec",
        "policy",
    ),
];

/// Each setting is refused before anything changes, and a container without it migrates.
fn refused(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let a = lab.host("a")?;
    lab.serve("b")?;
    let mut problems = Vec::new();
    for (lines, code, word) in OWN {
        idle(a, &[])?;
        let made = lines.iter().try_for_each(|line| enter(a, line).map(drop));
        let outcome = made.and_then(|()| is_refused(&lab, code, word));
        problems.extend(outcome.err().map(|error| format!("{lines:?}: {error}")));
        [a, lab.host("b")?].into_iter().try_for_each(|host| remove(host, "web"))?;
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    // Listing a table of iptables creates it, empty.
    idle(a, &[])?;
    enter(a, "iptables-legacy -t nat -L")?;
    lab.migrate("web", "a", "b")?;
    context.remark(format!("{} settings", OWN.len()));
    Ok(())
}

fn is_refused(lab: &Lab, code: &str, word: &str) -> Result<()> {
    let attempt = lab.attempt("web", "a", "b", &[])?;
    ensure!(attempt.code == Some(REFUSED), "exit code {:?}: {}", attempt.code, attempt.stderr);
    let blockers = attempt.json()?["blockers"].as_array().cloned().unwrap_or_default();
    let codes: Vec<&str> = blockers.iter().filter_map(|one| one["code"].as_str()).collect();
    ensure!(codes == [code], "{codes:?} of {}", attempt.stderr);
    ensure!(attempt.stderr.contains(word), "no {word:?} in {}", attempt.stderr);
    Ok(())
}

/// Only the destination knows which routes its engine creates.
fn routes(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let a = lab.host("a")?;
    lab.serve("b")?;
    for (line, word) in [
        ("ip route add 198.51.100.0/24 via 10.88.0.1", "198.51.100.0/24"),
        ("ip route add 198.51.100.0/24 via 10.88.0.1 table 77", "table 77"),
        ("ip route add blackhole 198.51.100.0/24", "blackhole"),
        ("ip route replace default via 10.88.0.77", "10.88.0.77"),
        ("ip route delete default", "default"),
        ("ip -6 route add fd99::/64 dev lo", "fd99::/64"),
    ] {
        idle(a, &[])?;
        let before = first_process(a)?;
        enter(a, line)?;
        let attempt = lab.attempt("web", "a", "b", &[])?;
        let is_named = attempt.stderr.contains("network-route") && attempt.stderr.contains(word);
        ensure!(
            attempt.code == Some(ROLLED_BACK) && is_named,
            "{line}: {:?}: {}",
            attempt.code,
            attempt.stderr
        );
        ensure!(before == first_process(a)?, "{line}: it is another one");
        remove(a, "web")?;
    }
    Ok(())
}

/// The network of a container that may change it is checked again when the container is frozen.
fn last_moment(context: &Context) -> Result<()> {
    const ADMIN: &[&str] = &["--cap-add=NET_ADMIN"];
    let lab = context.lab(&["a", "b"])?;
    let a = lab.host("a")?;
    lab.serve("b")?;
    breakpoint::install(a)?;
    let allow = ["peers", "allow", "a", "--capability", "NET_ADMIN"];
    lab.host("b")?.command("agent-server").args(allow).run()?;
    for (line, code) in [
        ("ip address add 192.0.2.77/32 dev lo", "network-address"),
        ("ip route add 198.51.100.0/24 via 10.88.0.1", "network-route"),
        ("sysctl -w net.core.somaxconn=77", "network-parameter"),
        ("nft add table inet own", "network-filter"),
    ] {
        idle(a, ADMIN)?;
        let first = first_process(a)?;
        Breakpoint::BeforeDump.set(a)?;
        let words = ["migrate", "web", "b", "--max-interruption", "60"];
        let mut order = a.command("agent-client").args(words).spawn()?;
        let end = Instant::now() + slowdown::limit(LIMIT);
        while !Breakpoint::BeforeDump.is_hit(a) {
            ensure!(order.is_running(), "{line}: the move ended: {}", order.stderr());
            ensure!(Instant::now() < end, "{line}: no dump");
            std::thread::sleep(Duration::from_millis(2));
        }
        let made = within_that_of(a, &first, &line.split(' ').collect::<Vec<_>>());
        Breakpoint::BeforeDump.release(a)?;
        breakpoint::clear(a)?;
        let end = order.wait(LIMIT)?;
        made?;
        let said = end.error_text();
        ensure!(
            end.status.code() == Some(ROLLED_BACK) && said.contains(code),
            "{line}: exit {:?}: {said}",
            end.status.code()
        );
        let state = a.podman(["inspect", "--format", "{{.State.Status}}", "web"])?;
        ensure!(state == "running", "{line}: it is {state}");
        remove(a, "web")?;
    }
    // A container that changes nothing migrates.
    idle(a, ADMIN)?;
    lab.migrate("web", "a", "b").map(drop)
}

/// Networks with everything that an engine creates in a container's namespace are not refused.
fn engine(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let networks: &[&[&str]] = &[
        &["--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64"],
        &["--subnet", "10.78.0.0/24", "--route", "198.51.100.0/24,10.78.0.7,50"],
        &["--subnet", "10.79.0.0/24", "--opt", "mtu=1400", "--opt", "metric=77"],
        &["--subnet", "10.80.0.0/24", "--internal"],
        &["--subnet", "10.81.0.0/24", "--opt", "no_default_route=1"],
    ];
    for (number, options) in networks.iter().enumerate() {
        let name = format!("net{number}");
        for host in [a, b] {
            let create = ["network", "create", "--disable-dns"];
            host.podman([&create[..], options, &[name.as_str()]].concat())?;
        }
        idle(a, &["--network", &name])?;
        for (from, to) in [("a", "b"), ("b", "a")] {
            lab.migrate("web", from, to)
                .map_err(|error| Error::Check(format!("{options:?}: {error}")))?;
        }
        remove(a, "web")?;
    }
    // The network at the destination differs, so the container gets another address and gateway.
    a.podman(["network", "create", "--disable-dns", "--subnet", "10.82.0.0/24", "other"])?;
    b.podman(["network", "create", "--disable-dns", "--subnet", "10.83.0.0/16", "other"])?;
    idle(a, &["--network", "other"])?;
    lab.attempt("web", "a", "b", &["--address", "any"])?.success()?;
    Ok(())
}

/// A program that works like ping(8) without CAP_NET_RAW, which podman does not grant.
const PING: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
s.settimeout(5)
s.sendto(b"\x08\x00\x00\x00\x00\x00\x00\x01", (sys.argv[1], 0))
s.recv(100)
"#;

fn ping(context: &Context) -> Result<()> {
    for runtime in Runtime::ALL {
        let lab = context.lab_with(&["a", "b", "c"], runtime)?;
        let run = ["run", "--detach", "--name", "web", "python:1", "sleep", "100000"];
        lab.host("a")?.podman(run)?;
        for (from, to) in [("", "a"), ("a", "b"), ("b", "c"), ("c", "a")] {
            if !from.is_empty() {
                lab.migrate("web", from, to)?;
            }
            for far in ["127.0.0.1", "10.88.0.1"] {
                let exec = ["exec", "web", "python3", "-c", PING, far];
                let done = lab.host(to)?.podman(exec);
                done.map_err(|error| Error::Check(format!("{far} from {to}: {error}")))?;
            }
        }
    }
    Ok(())
}
