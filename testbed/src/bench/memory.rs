//! The silence that clients see when a container has much memory: by each mode, beside the floor (CRIU's dump and restore
//! alone) and podman's own checkpoint and restore, all in turn.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::distribution::Samples;
use super::fixture::{self, Clients, Failures, NAME, Window};
use super::{Bench, BenchPlan, floor, podman_baseline};
use crate::error::{Error, Result};
use crate::lab::{Lab, MigrationReport, Runtime};
use crate::programs::PROBE;

pub(super) const BENCH: Bench = Bench {
    name: "memory",
    about: "silence of containers with much memory, by each mode (--only MODE/MIB, --quick)",
    run,
};

/// The sizes in mebibytes, and those of a quick run.
const SIZES: [usize; 5] = [0, 64, 256, 1024, 2048];
const QUICK: [usize; 3] = [0, 256, 1024];
/// The modes of `agent-client migrate --memory`, the preferred one first.
const MODES: [&str; 4] = ["pre-copy", "stop", "hybrid", "post-copy"];
/// The number of rounds.
const RUNS: u32 = 3;
/// The programs whose memory is measured.
const AGENTS: [&str; 3] = ["agent-client", "agent-server", "netmig-shim"];
/// Between two looks at their memory.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// One move.
struct Moved {
    gap: f64,
    report: MigrationReport,
    /// The most memory that all agents had together, in mebibytes.
    agents: f64,
}

/// What was measured of one size and mode.
#[derive(Default)]
struct Cell {
    gaps: Samples,
    interruptions: Samples,
    totals: Samples,
    agents: Samples,
}

fn run(plan: &BenchPlan) -> Result<Value> {
    let runs = plan.runs.unwrap_or(if plan.quick { 1 } else { RUNS }).max(1);
    let sizes: &[usize] = if plan.quick { &QUICK } else { &SIZES };
    let is_chosen = |mode: &str, size: usize| {
        let name = format!("{mode}/{size}");
        plan.only.as_deref().is_none_or(|only| only.split(',').any(|word| name.contains(word)))
    };
    let lab = fixture::lab()?;
    let mut failures = Failures::default();
    let mut cells: BTreeMap<(&str, usize), Cell> = BTreeMap::new();
    let mut beside: BTreeMap<(&str, usize), Samples> = BTreeMap::new();
    let outcome = (1..=runs).try_for_each(|round| {
        for &size in sizes {
            for mode in MODES.into_iter().filter(|mode| is_chosen(mode, size)) {
                let what = format!("round {round}, {mode}, {size} MiB");
                eprintln!("{what}");
                let moved = failures.survive(&lab, &what, move_once(&lab, mode, size))?;
                let Some(moved) = moved else { continue };
                let cell = cells.entry((mode, size)).or_default();
                cell.gaps.push(moved.gap);
                cell.interruptions.push(moved.report.interruption_ms);
                cell.totals.push(moved.report.total_ms);
                cell.agents.push(moved.agents);
            }
            for (name, measure) in [("floor", measure_floor as Measure), ("podman", measure_podman)]
            {
                if !is_chosen(name, size) {
                    continue;
                }
                let what = format!("round {round}, {name}, {size} MiB");
                eprintln!("{what}");
                if let Some(ms) = failures.survive(&lab, &what, measure(&lab, size))? {
                    beside.entry((name, size)).or_default().push(ms);
                }
            }
        }
        Ok(())
    });
    fixture::diagnosed(&lab, outcome)?;
    lab.down()?;
    print(&cells, &beside);
    let by_size = |name: &str| -> serde_json::Map<String, Value> {
        let of_name = beside.iter().filter(|((of, _), _)| *of == name);
        of_name.map(|((_, size), ms)| (size.to_string(), json!(ms.median()))).collect()
    };
    let gaps: serde_json::Map<String, Value> = MODES
        .iter()
        .map(|mode| {
            let of_mode = cells.iter().filter(|((of, _), _)| of == mode);
            let medians =
                of_mode.map(|((_, size), cell)| (size.to_string(), json!(cell.gaps.median())));
            ((*mode).to_owned(), Value::Object(medians.collect()))
        })
        .collect();
    let details: Vec<Value> = cells
        .iter()
        .map(|((mode, size), cell)| {
            json!({
                "mode": mode,
                "mib": size,
                "gap_ms": cell.gaps.distribution(),
                "interruption_ms": cell.interruptions.distribution(),
                "total_ms": cell.totals.distribution(),
                "agents_peak_mib": cell.agents.distribution(),
            })
        })
        .collect();
    Ok(json!({
        "runs": runs,
        "summary": {
            "gap_ms": gaps,
            "floor_ms": by_size("floor"),
            "podman_ms": by_size("podman"),
        },
        "cells": details,
        "failures": failures.tell(),
    }))
}

/// Measures one way to move a container with so many mebibytes of memory, in milliseconds.
type Measure = fn(&Lab, usize) -> Result<f64>;

/// Migrates a fresh container under the default clients, checks every byte of its memory, and removes it.
fn move_once(lab: &Lab, mode: &str, size: usize) -> Result<Moved> {
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let server = fixture::start(a, c, Runtime::Crun, NAME, 7000, &["--memory", &size.to_string()])?;
    let clients = Clients::start(c, server)?;
    let over = AtomicBool::new(false);
    let peak = AtomicU64::new(0);
    let (window, report) = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                peak.fetch_max(memory_of_agents(), Ordering::Relaxed);
                thread::sleep(LOOK_EVERY);
            }
        });
        let moved = Window::around(|| {
            let options = ["--memory", mode, "--max-interruption", "120"];
            lab.attempt(NAME, "a", "b", &options)?.success()
        });
        over.store(true, Ordering::Relaxed);
        moved
    });
    let report = report?;
    let (tcp, _) = clients.stop()?;
    let stats = ["stats", &b.port(7001).to_string()];
    let seen = c.command(PROBE).args(stats).output()?.success()?;
    fixture::remove(b, NAME)?;
    if let Some(fault) = tcp.fault() {
        return Err(Error::Check(format!("the TCP connection did not stay whole: {fault}")));
    }
    if !seen.text().contains("\"memory_bad\":0") {
        return Err(Error::Check(format!("memory has changed: {}", seen.text())));
    }
    let agents = peak.load(Ordering::Relaxed) as f64 / 1024.0;
    Ok(Moved { gap: window.longest(&tcp.gaps), report, agents })
}

fn measure_floor(lab: &Lab, size: usize) -> Result<f64> {
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    let server = fixture::start(a, c, Runtime::Crun, NAME, 7000, &["--memory", &size.to_string()])?;
    let floor = floor::measure_running(lab, Runtime::Crun, || Clients::start(c, server))?;
    Ok(floor.whole)
}

fn measure_podman(lab: &Lab, size: usize) -> Result<f64> {
    podman_baseline::measure_with(lab, Runtime::Crun, &["--memory", &size.to_string()])
}

/// Returns the memory of all agents of this machine, in kibibytes: what is theirs alone (`RssAnon`, proc_pid_status(5)).
fn memory_of_agents() -> u64 {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_one = |status: String| {
        let value = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let is_agent = value("Name:").is_some_and(|name| AGENTS.contains(&name.trim()));
        let kib = value("RssAnon:").and_then(|kib| kib.trim().strip_suffix(" kB")?.parse().ok());
        kib.filter(|_| is_agent).unwrap_or(0_u64)
    };
    entries
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok())
        .map(of_one)
        .sum()
}

fn print(cells: &BTreeMap<(&str, usize), Cell>, beside: &BTreeMap<(&str, usize), Samples>) {
    println!(
        "{:>10} {:>8} {:>10} {:>14} {:>10} {:>12}",
        "mode", "MiB", "silence", "interruption", "total", "agents MiB"
    );
    for ((mode, size), cell) in cells {
        println!(
            "{mode:>10} {size:>8} {:>10.1} {:>14.1} {:>10.1} {:>12.1}",
            cell.gaps.median(),
            cell.interruptions.median(),
            cell.totals.median(),
            cell.agents.median(),
        );
    }
    for ((name, size), ms) in beside {
        println!("{name:>10} {size:>8} {:>10.1}", ms.median());
    }
}
