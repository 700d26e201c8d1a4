//! One container that migrates in circles, A→B→C→A, under steady load, while another one migrates in the opposite
//! direction. Nothing is lost, and nothing grows on any host.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::distribution::Samples;
use super::fixture::{self, NAME};
use super::{Bench, BenchPlan};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lab::{Lab, LabBuilder, Runtime};
use crate::traffic::client_report::Loss;

pub(super) const BENCH: Bench = Bench {
    name: "endurance",
    about: "moves in a row around three hosts (--runs of them): no loss, no growth",
    run,
};

/// The default number of migrations.
const MOVES: u32 = 201;
/// The hosts of the circle.
const ROUND: [&str; 3] = ["a", "b", "c"];
/// The container that migrates in the opposite direction.
const OTHER: &str = "other";
const OTHER_PORT: u16 = 8000;
/// Its address. The first address of the network belongs to the other container.
const OTHER_ADDRESS: &str = "10.88.0.200";
const OTHER_ROUND: [&str; 3] = ["c", "b", "a"];
/// The number of migrations before the first count. By then heaps have their final size and every host has had both
/// containers.
const WARM_UP: u32 = 30;
/// The rate of each client in messages a second.
const RATE: f64 = 500.0;
/// The time limit for hosts to settle before a count.
const REST: Duration = Duration::from_secs(20);
/// The growth of a count that other causes explain, such as a process that has just started.
const NOISE: f64 = 2.0;
/// The growth of the agents' memory in KiB that is not a leak: a heap does not return everything.
const MEMORY_NOISE: f64 = 3072.0;

/// The counts of a host.
type Counts = BTreeMap<&'static str, f64>;

fn run(plan: &BenchPlan) -> Result<Value> {
    let laps = ROUND.len();
    let moves = plan.runs.unwrap_or(MOVES).max(6).next_multiple_of(laps as u32);
    let warm_up = WARM_UP.min(moves / 2).next_multiple_of(ROUND.len() as u32);
    let lab = LabBuilder::new(&["a", "b", "c", "d"]).start()?;
    for host in ROUND {
        // Otherwise entries of the agents' own connections and of former tunnels would count for two minutes.
        lab.host(host)?.run([
            "sysctl",
            "-q",
            "-w",
            "net.netfilter.nf_conntrack_tcp_timeout_time_wait=2",
            "net.netfilter.nf_conntrack_tcp_timeout_close=2",
            "net.netfilter.nf_conntrack_udp_timeout=5",
            "net.netfilter.nf_conntrack_udp_timeout_stream=5",
        ])?;
        lab.serve(host)?;
    }
    let outcome = (|| -> Result<Value> {
        let (a, d) = (lab.host("a")?, lab.host("d")?);
        let server = fixture::start(a, d, Runtime::Crun, NAME, 7000, &[])?;
        let tcp = d.probe().tcp_echo(server).rate(RATE).start()?;
        let udp = d.probe().udp_echo(server).rate(RATE).start()?;
        let other = start_other(lab.host("c")?, d)?;
        let beside = d.probe().tcp_echo(other).rate(RATE).start()?;
        let mut interruptions = Vec::new();
        let mut first = None;
        let mut legs = Vec::new();
        let mut memory = Vec::new();
        for number in (0..moves).step_by(laps) {
            // After each lap both are where they began.
            std::thread::scope(|scope| -> Result<()> {
                let opposite = scope.spawn(|| lap(&lab, OTHER, OTHER_ROUND, |_| ()));
                lap(&lab, NAME, ROUND, |interruption| {
                    interruptions.push(interruption);
                    legs.push(now());
                })?;
                opposite.join().unwrap_or_else(|_| Err(Error::Check("a thread died".to_owned())))
            })?;
            let all = ROUND.map(|host| lab.server_pid(host).and_then(resident));
            let done = number + laps as u32;
            eprintln!("{done} of {moves} moves, agent-server has {all:?} KiB");
            memory.push(all);
            if done == warm_up {
                first = Some(count_all(&lab, None)?);
            }
        }
        let first = first.unwrap_or_default();
        let last = count_all(&lab, Some(&first))?;
        let (tcp, udp) = (tcp.stop()?, udp.stop_after(Duration::ZERO)?);
        let beside = beside.stop()?;
        let growth = growth(&first, &last);
        let interruptions: Samples = interruptions.into_iter().collect();
        println!("{moves} moves, interruption {} ms", interruptions.distribution());
        println!("TCP: {} messages, {} lost, {} resets", tcp.sent, tcp.lost, tcp.resets);
        println!("TCP of the other: {} messages, {} lost", beside.sent, beside.lost);
        println!("UDP: {} messages, {} lost, {} doubled", udp.sent, udp.lost, udp.duplicated);
        let lost = by_leg(&udp.losses, &legs);
        println!("UDP lost by leg: {lost:?}, at {:?}", udp.losses);
        for (what, (before, after)) in &growth {
            println!("{what}: {before} after {warm_up} moves, {after} at the end");
        }
        let grown: Vec<&String> = growth
            .iter()
            .filter(|(what, (before, after))| after - before > noise(what))
            .map(|(what, _)| what)
            .collect();
        let figures = json!({
            "moves": moves,
            "interruption_ms": interruptions.distribution(),
            "tcp": tcp,
            "udp": udp,
            "tcp_of_the_other": beside,
            "counts": growth,
            "memory_kib": memory,
            "udp_lost_by_leg": lost,
            "summary": {
                "moves": moves,
                "resets": tcp.resets,
                "tcp_lost": tcp.lost,
                "udp_lost": udp.lost,
                "tcp_lost_of_the_other": beside.lost,
                "grown": grown,
            },
        });
        for (name, fault) in
            [("TCP", tcp.fault()), ("UDP", udp.fault()), ("TCP of the other", beside.fault())]
        {
            if let Some(fault) = fault {
                eprintln!("{name}: {fault}");
            }
        }
        if grown.is_empty() { Ok(figures) } else { Err(Error::Check(format!("grown: {grown:?}"))) }
    })();
    let figures = fixture::diagnosed(&lab, outcome)?;
    lab.down()?;
    Ok(figures)
}

fn start_other(host: &Host, far: &Host) -> Result<SocketAddr> {
    let publish = format!("{OTHER_PORT}:7000/tcp");
    let run = ["run", "--detach", "--name", OTHER, "--ip", OTHER_ADDRESS, "--publish", &publish];
    host.podman([&run[..], &["probe:1", "netmig-probe", "serve"]].concat())?;
    let server = host.port(OTHER_PORT);
    far.probe().wait_for_echo(server, REST)?;
    Ok(server)
}

/// Migrates a container once around. Calls `moved` with each interruption in milliseconds.
fn lap(lab: &Lab, container: &str, round: [&str; 3], mut moved: impl FnMut(f64)) -> Result<()> {
    for (place, from) in round.iter().enumerate() {
        let to = round[(place + 1) % round.len()];
        moved(lab.migrate(container, from, to)?.interruption_ms);
    }
    Ok(())
}

fn noise(what: &str) -> f64 {
    if what.contains("memory") { MEMORY_NOISE } else { NOISE }
}

/// Counts all hosts until the counts are at most `wanted`, or until the time limit.
fn count_all(
    lab: &Lab,
    wanted: Option<&BTreeMap<String, Counts>>,
) -> Result<BTreeMap<String, Counts>> {
    let end = Instant::now() + REST;
    loop {
        let mut all = BTreeMap::new();
        for name in ROUND {
            all.insert(name.to_owned(), count(lab.host(name)?, lab.server_pid(name))?);
        }
        let rested = wanted.is_some_and(|wanted| {
            growth(wanted, &all).iter().all(|(what, (before, after))| after - before <= noise(what))
        });
        if rested || Instant::now() >= end {
            return Ok(all);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn count(host: &Host, server: Option<i32>) -> Result<Counts> {
    let lines = |words: &[&str]| -> Result<f64> { Ok(host.run(words)?.lines().count() as f64) };
    let mut counts = Counts::from([
        ("processes", lines(&["ps", "-eo", "pid="])?),
        ("nftables lines", lines(&["nft", "list", "ruleset"])?),
        ("conntrack entries", lines(&["conntrack", "-L"])?),
        ("routing rules", lines(&["ip", "rule", "list"])?),
        ("routes", lines(&["ip", "route", "show", "table", "all"])?),
        ("links", lines(&["ip", "-oneline", "link", "show"])?),
        ("files", lines(&["find", "/run/netmig", "/run/wireguard", "/var/lib/netmig/journal"])?),
        ("mounts", lines(&["cat", "/proc/self/mountinfo"])?),
        ("cgroups", lines(&["find", "/sys/fs/cgroup", "-type", "d"])?),
    ]);
    if let Some(pid) = server {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().count();
        counts.insert("files open in agent-server", files as f64);
        counts.insert("memory of agent-server in KiB", resident(pid).unwrap_or_default());
    }
    Ok(counts)
}

/// Returns the anonymous memory of a process in KiB (`RssAnon`, proc_pid_status(5)).
fn resident(pid: i32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:")?.split_whitespace().next()?.parse().ok())
}

/// Returns the current time in nanoseconds since the Unix epoch.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns the number of lost messages by leg of the circle, and of those after the last migration.
fn by_leg(losses: &[Loss], ends: &[u64]) -> BTreeMap<String, u64> {
    let mut legs = BTreeMap::new();
    for loss in losses {
        let number = ends.partition_point(|end| *end < loss.first_unix_ns);
        let hosts = |offset: usize| ROUND[(number + offset) % ROUND.len()];
        let leg = if number < ends.len() {
            format!("{} to {}", hosts(0), hosts(1))
        } else {
            "after the last".to_owned()
        };
        *legs.entry(leg).or_default() += loss.messages;
    }
    legs
}

/// Returns each count before and after.
fn growth(
    before: &BTreeMap<String, Counts>,
    after: &BTreeMap<String, Counts>,
) -> BTreeMap<String, (f64, f64)> {
    let mut all = BTreeMap::new();
    for (host, counts) in after {
        for (what, count) in counts {
            let earlier = before.get(host).and_then(|counts| counts.get(what)).copied();
            all.insert(format!("{host}: {what}"), (earlier.unwrap_or_default(), *count));
        }
    }
    all
}
