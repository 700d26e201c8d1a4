//! Datagrams that migrations lose or duplicate, from low rates to the limit of the machine.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::distribution::{Distribution, Samples};
use super::fixture::{self, AROUND, Failures, NAME, Window};
use super::{Bench, BenchPlan, chosen};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lab::{Lab, Runtime};
use crate::traffic::client_report::EchoReport;

pub(super) const BENCH: Bench =
    Bench { name: "udp", about: "datagrams lost and doubled by moves at four rates", run };

const RUNS: u32 = 30;
const RATES: [u32; 4] = [100, 1_000, 10_000, 20_000];
/// The time between two reads of the source container's counters, which disappear with it.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// One migration at one rate.
struct Seen {
    client: EchoReport,
    gap: f64,
    drops: Drops,
}

/// The dropped datagrams by the place of the drop, as far as the kernel counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
struct Drops {
    /// The container's socket before the migration.
    before: u64,
    /// The container's socket during the migration.
    source: u64,
    /// The container's socket after the migration.
    destination: u64,
    /// The client's socket.
    client: u64,
    /// The two hosts' own sockets, by which a tunnel in user space receives.
    tunnel: u64,
    /// The queues of the tunnel's two devices.
    device: u64,
    /// The queue of the hold.
    hold: u64,
}

impl Drops {
    fn sum(self) -> u64 {
        self.before
            + self.source
            + self.destination
            + self.client
            + self.tunnel
            + self.device
            + self.hold
    }

    fn plus(self, other: Self) -> Self {
        Self {
            before: self.before + other.before,
            source: self.source + other.source,
            destination: self.destination + other.destination,
            client: self.client + other.client,
            tunnel: self.tunnel + other.tunnel,
            device: self.device + other.device,
            hold: self.hold + other.hold,
        }
    }
}

fn run(plan: &BenchPlan) -> Result<Value> {
    let runs = plan.runs.unwrap_or(RUNS).max(1);
    let rates = chosen(&RATES, &[], plan.only.as_deref())?;
    let lab = fixture::lab()?;
    let mut seen: Vec<Vec<Seen>> = rates.iter().map(|_| Vec::new()).collect();
    let mut failures = Failures::default();
    let outcome = (0..runs).try_for_each(|round| {
        let runtime = Runtime::ALL[round as usize % Runtime::ALL.len()];
        eprintln!("round {} of {runs}, {}", round + 1, runtime.name());
        rates.iter().zip(&mut seen).try_for_each(|(rate, seen)| {
            let what = format!("round {}, {rate} a second", round + 1);
            let moved = failures.survive(&lab, &what, move_at(&lab, runtime, *rate))?;
            if let Some(Seen { client, drops, gap }) = &moved
                && client.lost > 0
            {
                eprintln!("{what}: {} lost, silent for {gap:.0} ms, {drops:?}", client.lost);
            }
            seen.extend(moved);
            Ok(())
        })
    });
    fixture::diagnosed(&lab, outcome)?;
    lab.down()?;
    println!(
        "{:>8}{:>7}{:>10}{:>7}{:>13}{:>12}{:>14}{:>15}",
        "rate/s",
        "moves",
        "sent",
        "lost",
        "drops seen",
        "duplicated",
        "out of order",
        "gap, median"
    );
    let mut figures_of = serde_json::Map::new();
    for (rate, seen) in rates.iter().zip(&seen) {
        let total = |value: fn(&Seen) -> u64| seen.iter().map(value).sum::<u64>();
        let gaps: Samples = seen.iter().map(|seen| seen.gap).collect();
        let (sent, lost) = (total(|seen| seen.client.sent), total(|seen| seen.client.lost));
        let drops = seen.iter().map(|seen| seen.drops).fold(Drops::default(), Drops::plus);
        let reordered = total(|seen| seen.client.reordered);
        let duplicated = total(|seen| seen.client.duplicated);
        println!(
            "{rate:>8}{:>7}{sent:>10}{lost:>7}{:>13}{duplicated:>12}{reordered:>14}{:>12.1} ms",
            seen.len(),
            drops.sum(),
            gaps.median()
        );
        let figures = json!({
            "sent": sent,
            "lost": lost,
            "dropped_at": drops,
            "duplicated": duplicated,
            "reordered": reordered,
            "moves_with_loss": seen.iter().filter(|seen| seen.client.lost > 0).count(),
            "udp_gap_ms": gaps.distribution(),
        });
        figures_of.insert(rate.to_string(), figures);
    }
    println!("\ngap of all: {}", all_gaps(&seen));
    Ok(json!({ "runs": runs, "rates": figures_of, "failures": failures.tell() }))
}

fn all_gaps(seen: &[Vec<Seen>]) -> Distribution {
    seen.iter().flatten().map(|seen| seen.gap).collect::<Samples>().distribution()
}

fn move_at(lab: &Lab, runtime: Runtime, rate: u32) -> Result<Seen> {
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let server = fixture::start(a, c, runtime, NAME, 7000, &[])?;
    let devices_before = at_devices([a, b]);
    let hosts_before = [a, b, c].map(at_host);
    let source = counters(a)?;
    let client = c.probe().udp_echo(server).rate(rate.into()).start()?;
    std::thread::sleep(AROUND);
    let before = full_buffers(&source).unwrap_or_default();
    let over = AtomicBool::new(false);
    let hold = a.path("/proc/1/net/netfilter/nfnetlink_queue");
    let ((at_source, at_hold), (window, moved)) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let (mut at_source, mut at_hold) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                at_source = full_buffers(&source).unwrap_or(at_source);
                let queues = fs::read_to_string(&hold).unwrap_or_default();
                at_hold = at_hold.max(queue_drops(&queues));
                std::thread::sleep(POLL_INTERVAL);
            }
            (at_source, at_hold)
        });
        let moved = Window::around(|| lab.migrate(NAME, "a", "b"));
        over.store(true, Ordering::Relaxed);
        (watch.join().unwrap_or_default(), moved)
    });
    moved?;
    let client = client.stop_after(AROUND)?;
    let at_destination = full_buffers(&counters(b)?).unwrap_or_default();
    let hosts_after = [a, b, c].map(at_host);
    fixture::remove(b, NAME)?;
    if client.received == 0 {
        return Err(Error::Check(format!("not one datagram came back at {rate} a second")));
    }
    let gap = window.longest(&client.gaps);
    let [near, far, at_client] =
        [0, 1, 2].map(|host| hosts_after[host].saturating_sub(hosts_before[host]));
    let drops = Drops {
        before,
        source: at_source.saturating_sub(before),
        destination: at_destination,
        client: at_client,
        tunnel: near + far,
        device: at_devices([a, b]).saturating_sub(devices_before),
        hold: at_hold,
    };
    Ok(Seen { client, gap, drops })
}

/// Returns the path of the file with the counters of the container's network namespace.
fn counters(host: &Host) -> Result<PathBuf> {
    let pid = host.podman(["inspect", "--format", "{{.State.Pid}}", NAME])?;
    Ok(host.path(format!("/proc/{pid}/net/snmp")))
}

/// Returns the datagrams that a host's own sockets have dropped.
fn at_host(host: &Host) -> u64 {
    full_buffers(&host.path("/proc/1/net/snmp")).unwrap_or_default()
}

/// Returns the packets that the devices of the tunnel between two hosts have dropped; 0 without tunnel.
fn at_devices(hosts: [&Host; 2]) -> u64 {
    hosts
        .into_iter()
        .filter_map(|host| fs::read_dir(host.path("/sys/class/net")).ok())
        .flat_map(Iterator::flatten)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("netmig"))
        .flat_map(|entry| {
            ["rx_dropped", "tx_dropped"].map(|name| entry.path().join("statistics").join(name))
        })
        .filter_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok())
        .sum()
}

/// Returns the packets that the kernel's packet queues have dropped: columns six and seven of
/// `/proc/net/netfilter/nfnetlink_queue`, for a full queue and for a full socket.
fn queue_drops(text: &str) -> u64 {
    let drops = text.lines().flat_map(|line| line.split_whitespace().skip(5).take(2));
    drops.filter_map(|word| word.parse::<u64>().ok()).sum()
}

/// Returns the datagrams that were dropped at a full receive buffer; `None` if the namespace does not exist any more.
fn full_buffers(path: &std::path::Path) -> Option<u64> {
    parse(&fs::read_to_string(path).ok()?)
}

fn parse(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let column = lines.next()?.split(' ').position(|name| name == "RcvbufErrors")?;
    lines.next()?.split(' ').nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_buffers_are_found_in_the_kernels_table() {
        let text = "Tcp: A\nTcp: 1\nUdp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors \
                    SndbufErrors\nUdp: 5 0 9 5 7 0\nUdpLite: RcvbufErrors\nUdpLite: 3\n";
        assert_eq!(parse(text), Some(7));
        assert_eq!(parse("Udp: 1 2\n"), None);
    }

    #[test]
    fn drops_of_queues_are_added_up() {
        assert_eq!(queue_drops("    7  31 0 1 0 3 40 99 1\n    8  31 0 1 0 0 2 9 1\n"), 45);
        assert_eq!(queue_drops(""), 0);
    }
}
