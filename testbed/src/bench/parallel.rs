//! Several containers that migrate at once.

use std::time::Instant;

use serde_json::{Value, json};

use super::distribution::Samples;
use super::fixture::{self, AROUND, Failures, PARTS, START_LIMIT};
use super::{Bench, BenchPlan, chosen};
use crate::error::{Error, Result};
use crate::lab::{Lab, Runtime};

pub(super) const BENCH: Bench =
    Bench { name: "parallel", about: "1, 2, 4 and 8 containers moved at once", run };

const RUNS: u32 = 3;
const COUNTS: [u16; 4] = [1, 2, 4, 8];
/// Messages a second to each container: eight clients must not be what is measured.
const RATE: f64 = 100.0;

/// What came of moving some containers at once.
#[derive(Default)]
struct Measured {
    interruptions: Vec<f64>,
    totals: Vec<f64>,
}

fn run(plan: &BenchPlan) -> Result<Value> {
    let runs = plan.runs.unwrap_or(RUNS).max(1);
    let lab = fixture::lab()?;
    let counts = chosen(&COUNTS, &[1], plan.only.as_deref())?;
    let mut all: Vec<Measured> = counts.iter().map(|_| Measured::default()).collect();
    let mut failures = Failures::default();
    let outcome = (0..runs).try_for_each(|round| {
        counts.iter().zip(&mut all).try_for_each(|(count, measured)| {
            eprintln!("round {} of {runs}, {count} containers", round + 1);
            let what = format!("round {}, {count} containers", round + 1);
            let moved = move_together(&lab, *count);
            if let Some((interruptions, total)) = failures.survive(&lab, &what, moved)? {
                measured.interruptions.extend(interruptions);
                measured.totals.push(total);
            }
            Ok(())
        })
    });
    fixture::diagnosed(&lab, outcome)?;
    lab.down()?;
    println!(
        "{:>11}{:>24}{:>16}{:>17}{:>17}",
        "containers", "interruption, median ms", "longest ms", "longest / alone", "all moved ms"
    );
    let mut figures_of = serde_json::Map::new();
    let mut alone = None;
    for (count, measured) in counts.iter().zip(all) {
        let interruptions: Samples = measured.interruptions.into_iter().collect();
        let totals: Samples = measured.totals.into_iter().collect();
        let all = interruptions.distribution();
        let over_alone = all.max / *alone.get_or_insert(all.p50);
        println!(
            "{count:>11}{:>24.1}{:>16.1}{over_alone:>17.2}{:>17.1}",
            all.p50,
            all.max,
            totals.median()
        );
        let figures = json!({
            "interruption_ms": all,
            "longest_over_alone": over_alone,
            "total_ms": totals.distribution(),
        });
        figures_of.insert(count.to_string(), figures);
    }
    Ok(json!({ "runs": runs, "containers": figures_of, "failures": failures.tell() }))
}

/// Migrates `count` containers at once. Returns the interruption of each and the total time, in milliseconds.
fn move_together(lab: &Lab, count: u16) -> Result<(Vec<f64>, f64)> {
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let (mut names, mut clients) = (Vec::new(), Vec::new());
    for number in 0..count {
        let name = format!("web{number}");
        let server = fixture::start(a, c, Runtime::Crun, &name, 7000 + 10 * number, &[])?;
        c.probe().wait_for_echo(server, START_LIMIT)?;
        clients.push(c.probe().tcp_echo(server).rate(RATE).start()?);
        names.push(name);
    }
    std::thread::sleep(AROUND);
    let began = Instant::now();
    let attempts = std::thread::scope(|scope| {
        let moves: Vec<_> =
            names.iter().map(|name| scope.spawn(|| lab.attempt(name, "a", "b", &[]))).collect();
        let died = || Err(Error::Refused("a thread of the benchmark died".to_owned()));
        moves.into_iter().map(|m| m.join().unwrap_or_else(|_| died())).collect::<Vec<_>>()
    });
    let total = began.elapsed().as_secs_f64() * 1e3;
    let mut interruptions = Vec::new();
    for (name, attempt) in names.iter().zip(attempts) {
        let report = attempt?.success()?;
        let parts = PARTS.map(|part| {
            format!("{part} {:.1}", report.parts_ms.get(part).copied().unwrap_or_default())
        });
        eprintln!("{name}: {:.1} ms ({})", report.interruption_ms, parts.join(", "));
        interruptions.push(report.interruption_ms);
    }
    for (name, client) in names.iter().zip(clients) {
        if let Some(fault) = client.stop_after(AROUND)?.fault() {
            return Err(Error::Check(format!("{name} of {count} at once: {fault}")));
        }
        fixture::remove(b, name)?;
    }
    Ok((interruptions, total))
}
