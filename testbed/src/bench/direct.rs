//! Throughput of a connection before and after a migration with `--tunnel direct`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::distribution::{Distribution, Samples};
use super::fixture::{self, Failures, NAME};
use super::goodput::transferred;
use super::{Bench, BenchPlan};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lab::{Lab, Runtime};
use crate::traffic::client_report::Direction;

pub(super) const BENCH: Bench = Bench {
    name: "direct",
    about: "bulk transfer before and after a move with --tunnel direct, the same connection",
    run,
};

const RUNS: u32 = 5;
/// The length of each measurement.
const LENGTH: Duration = Duration::from_secs(3);
/// The time until the throughput of a transfer is stable.
const SETTLE: Duration = Duration::from_secs(1);
/// The port of the bulk service.
const BULK: u16 = 7001;

fn run(plan: &BenchPlan) -> Result<Value> {
    let runs = plan.runs.unwrap_or(RUNS).max(1);
    let lab = fixture::lab()?;
    lab.host("b")?.run(["agent-server", "peers", "allow", "a", "--direct"])?;
    let directions = [("up", Direction::Up), ("down", Direction::Down)];
    let mut all = directions.map(|_| (Vec::new(), Vec::new()));
    let mut failures = Failures::default();
    let outcome = (0..runs).try_for_each(|round| {
        directions.iter().zip(&mut all).try_for_each(|((name, direction), (before, after))| {
            let what = format!("round {} of {runs}, {name}", round + 1);
            eprintln!("{what}");
            let pair = side_by_side(&lab, *direction);
            if let Some(pair) = failures.survive(&lab, &what, pair)? {
                before.push(pair.0);
                after.push(pair.1);
            }
            Ok(())
        })
    });
    fixture::diagnosed(&lab, outcome)?;
    lab.down()?;
    println!("{:28}{}", "Mbit/s", Distribution::HEADINGS);
    let mut figures = json!({ "runs": runs });
    for ((name, _), (before, after)) in directions.iter().zip(all) {
        let ratio: Samples = after.iter().zip(&before).map(|(a, b)| a / b).collect();
        let [before, after]: [Samples; 2] = [before, after].map(|v| v.into_iter().collect());
        println!("{}", before.row(&format!("{name}, before the move")));
        println!("{}", after.row(&format!("{name}, after it")));
        println!("{}", ratio.row(&format!("{name}, ratio pair by pair")));
        figures[*name] = json!({
            "before_mbit_s": before.distribution(),
            "after_mbit_s": after.distribution(),
            "after_over_before": ratio.distribution(),
        });
    }
    figures["failures"] = failures.tell();
    Ok(figures)
}

/// Migrates a container during a transfer. Returns the throughput before and after in megabits a second.
fn side_by_side(lab: &Lab, direction: Direction) -> Result<(f64, f64)> {
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    fixture::start(a, c, Runtime::Crun, NAME, BULK - 1, &[])?;
    let transfer = c.probe().bulk(a.port(BULK), direction).start()?;
    let server = a.port(BULK).to_string();
    let before = throughput(c, &server, direction)?;
    let options = ["--tunnel", "direct", "--max-interruption", "30"];
    lab.attempt(NAME, "a", "b", &options)?.success()?;
    let after = throughput(c, &server, direction)?;
    let seen = transfer.stop()?;
    fixture::remove(b, NAME)?;
    match seen.fault() {
        Some(fault) => Err(Error::Check(format!("the transfer did not stay whole: {fault}"))),
        None => Ok((before, after)),
    }
}

/// Measures the throughput of the connection to `server` in megabits a second.
fn throughput(client: &Host, server: &str, direction: Direction) -> Result<f64> {
    std::thread::sleep(SETTLE);
    let (first, from) = (transferred(client, server, direction)?, Instant::now());
    std::thread::sleep(LENGTH);
    let (last, to) = (transferred(client, server, direction)?, Instant::now());
    Ok((last - first) as f64 * 8e-6 / (to - from).as_secs_f64())
}
