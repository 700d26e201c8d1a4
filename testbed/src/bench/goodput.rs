//! Throughput of a moved connection, compared with iperf3 through the same tunnel.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::distribution::{Distribution, Samples};
use super::fixture::{self, Failures, NAME};
use super::{Bench, BenchPlan};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lab::{Lab, Runtime};
use crate::traffic::client_report::Direction;

pub(super) const BENCH: Bench = Bench {
    name: "goodput",
    about: "bulk transfer over a moved connection, beside iperf3 through the same tunnel",
    run,
};

const RUNS: u32 = 5;
/// The length of each measurement.
const LENGTH: Duration = Duration::from_secs(3);
/// The time until the throughput is stable after the migration.
const SETTLE: Duration = Duration::from_secs(1);
/// The tunnel of the first peer. The addresses for its ends are from another block for documentation (RFC 5737).
const DEVICE: &str = "netmig1";
const NEAR: &str = "198.51.100.1";
const FAR: &str = "198.51.100.2";
/// The port of the bulk service.
const BULK: u16 = 7001;

fn run(plan: &BenchPlan) -> Result<Value> {
    let runs = plan.runs.unwrap_or(RUNS).max(1);
    let lab = fixture::lab()?;
    let directions = [("up", Direction::Up), ("down", Direction::Down)];
    let mut all = directions.map(|_| (Vec::new(), Vec::new()));
    let mut failures = Failures::default();
    let outcome = (0..runs).try_for_each(|round| {
        directions.iter().zip(&mut all).try_for_each(|((name, direction), (moved, tunnel))| {
            eprintln!("round {} of {runs}, {name}", round + 1);
            let pair = moved_connection(&lab, *direction)
                .and_then(|moved| Ok((moved, between_hosts(&lab, *direction)?)));
            if let Some(pair) =
                failures.survive(&lab, &format!("round {}, {name}", round + 1), pair)?
            {
                moved.push(pair.0);
                tunnel.push(pair.1);
            }
            Ok(())
        })
    });
    fixture::diagnosed(&lab, outcome)?;
    lab.down()?;
    println!("{:28}{}", "Mbit/s", Distribution::HEADINGS);
    let mut figures = json!({ "runs": runs });
    for ((name, _), (moved, tunnel)) in directions.iter().zip(all) {
        let ratio: Samples = moved.iter().zip(&tunnel).map(|(a, b)| a / b).collect();
        let [moved, tunnel]: [Samples; 2] = [moved, tunnel].map(|v| v.into_iter().collect());
        println!("{}", moved.row(&format!("{name}, moved connection")));
        println!("{}", tunnel.row(&format!("{name}, iperf3 in tunnel")));
        println!("{}", ratio.row(&format!("{name}, ratio pair by pair")));
        figures[*name] = json!({
            "moved_mbit_s": moved.distribution(),
            "tunnel_mbit_s": tunnel.distribution(),
            "moved_over_tunnel": ratio.distribution(),
        });
    }
    figures["failures"] = failures.tell();
    Ok(figures)
}

/// Migrates a container during a transfer. Returns the throughput after that in megabits a second.
fn moved_connection(lab: &Lab, direction: Direction) -> Result<f64> {
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    fixture::start(a, c, Runtime::Crun, NAME, BULK - 1, &[])?;
    let transfer = c.probe().bulk(a.port(BULK), direction).start()?;
    lab.attempt(NAME, "a", "b", &["--max-interruption", "30"])?.success()?;
    std::thread::sleep(SETTLE);
    let server = a.port(BULK).to_string();
    let (before, from) = (transferred(c, &server, direction)?, Instant::now());
    std::thread::sleep(LENGTH);
    let (after, to) = (transferred(c, &server, direction)?, Instant::now());
    let seen = transfer.stop()?;
    fixture::remove(b, NAME)?;
    match seen.fault() {
        Some(fault) => Err(Error::Check(format!("the transfer did not stay whole: {fault}"))),
        None => Ok((after - before) as f64 * 8e-6 / (to - from).as_secs_f64()),
    }
}

/// Returns the bytes that the connection to `server` has carried, as the kernel of `host` counts them.
pub(super) fn transferred(host: &Host, server: &str, direction: Direction) -> Result<u64> {
    let text = host.run(["ss", "-tinOH", "state", "established", "dst", server])?;
    let name = match direction {
        Direction::Up => "bytes_acked:",
        Direction::Down => "bytes_received:",
    };
    text.split_whitespace()
        .filter_map(|word| word.strip_prefix(name)?.parse().ok())
        .max()
        .ok_or_else(|| Error::Check(format!("no transfer to {server} in: {text}")))
}

/// Configures an address and a route for the hosts' own traffic through the tunnel. The MTU is that of packets which
/// the tunnel does not fragment.
fn open_way(host: &Host, own: &str, other: &str) -> Result<()> {
    let own = format!("{own}/32");
    host.run(["ip", "address", "replace", &own, "dev", DEVICE])?;
    host.run(["ip", "route", "replace", other, "dev", DEVICE, "mtu", "1420"]).map(drop)
}

/// Measures one TCP connection between the hosts through the tunnel, in megabits a second.
fn between_hosts(lab: &Lab, direction: Direction) -> Result<f64> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    open_way(a, NEAR, FAR)?;
    open_way(b, FAR, NEAR)?;
    let serve = ["--server", "--one-off", "--forceflush", "--bind", FAR];
    let mut server = b.command("iperf3").args(serve).spawn()?;
    server.wait_for("listening", Duration::from_secs(5))?;
    let seconds = LENGTH.as_secs().to_string();
    let mut words = vec!["--client", FAR, "--bind", NEAR, "--time", &seconds, "--json"];
    if direction == Direction::Down {
        words.push("--reverse");
    }
    let report: Value = a.command("iperf3").args(words).run()?.json()?;
    report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .map(|bits| bits / 1e6)
        .ok_or_else(|| Error::Check(format!("iperf3 says: {}", report["error"])))
}
