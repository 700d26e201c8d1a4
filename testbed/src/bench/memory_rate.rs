//! The interruption of containers that write their memory while they are moved, at parts of the rate at which memory gets to
//! the destination: by pre-copy, beside stop-and-copy of the same container in the same run.

use std::time::Duration;

use serde_json::{Value, json};

use super::distribution::Samples;
use super::fixture::{self, Failures, NAME};
use super::{Bench, BenchPlan};
use crate::cases::promise::long::slow_down;
use crate::cases::promise::until;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lab::{Lab, LabBuilder, MigrationReport};
use crate::slowdown;

pub(super) const BENCH: Bench = Bench {
    name: "memory-rate",
    about: "interruption of containers that write their memory meanwhile (--only 10,50, --quick: 64 MiB instead of 256)",
    run,
};

/// The memory in mebibytes, and that of a quick run.
const SIZE: u64 = 256;
const QUICK: u64 = 64;
/// How fast memory is written, in percent of the rate at which it gets to the destination.
const PERCENT: [u64; 4] = [0, 10, 50, 90];
/// From this part on the move is tried with `--non-converging go-back` as well.
const TOO_FAST: u64 = 90;
/// The number of rounds.
const RUNS: u32 = 1;
/// The step in which memory goes over while the container runs.
const ROUNDS: &str = "memory, while it runs";
/// How long a program may take to say something, and how long it runs on before it is looked at.
const SAYS: Duration = Duration::from_secs(120);
const SETTLES: Duration = Duration::from_secs(2);
/// The memory of the programs would be compressed to next to nothing.
const OPTIONS: [&str; 4] = ["--max-interruption", "120", "--compress", "none"];
/// The link between the hosts, in tc(8)'s notation: slower than the processors of this machine, and of an emulated one.
const LINK: &str = "400mbit";
const SLOW_LINK: &str = "160mbit";

/// What was measured of one rate.
#[derive(Default)]
struct Cell {
    pre_copy: Samples,
    stop: Samples,
    ratios: Samples,
    stops: Samples,
    rounds: Vec<u64>,
    rest: u64,
    gone_back: Option<i32>,
}

fn run(plan: &BenchPlan) -> Result<Value> {
    let size = if plan.quick { QUICK } else { SIZE };
    let is_chosen = |percent: &u64| {
        let name = percent.to_string();
        plan.only.as_deref().is_none_or(|only| only.split(',').any(|word| word == name))
    };
    let lab = LabBuilder::new(&["a", "b"]).start()?;
    lab.serve("b")?;
    let link = if slowdown::is_slow() { SLOW_LINK } else { LINK };
    slow_down(lab.host("a")?, link)?;
    let mut failures = Failures::default();
    let mut cells: Vec<(u64, Cell)> =
        PERCENT.into_iter().filter(is_chosen).map(|percent| (percent, Cell::default())).collect();
    let mut rate = 0.0;
    let outcome = (0..plan.runs.unwrap_or(RUNS).max(1)).try_for_each(|_| {
        let idle = move_once(&lab, size, 0, &["--memory", "pre-copy"])?;
        rate = rate_of(&idle)?;
        eprintln!("memory gets to the destination at {:.1} MiB/s", rate / MIB);
        for (percent, cell) in &mut cells {
            let what = format!("{percent} % of that, {size} MiB");
            eprintln!("{what}");
            let measured = measure(&lab, size, rate, *percent, cell);
            failures.survive(&lab, &what, measured)?;
        }
        Ok(())
    });
    fixture::diagnosed(&lab, outcome)?;
    lab.down()?;
    println!(
        "{:>8} {:>12} {:>10} {:>8} {:>12} {:>24}",
        "written", "pre-copy ms", "stop ms", "ratio", "in rounds ms", "rounds, rest (MiB)"
    );
    let mebibytes = |bytes: u64| bytes as f64 / MIB;
    for (percent, cell) in &cells {
        let rounds: Vec<String> =
            cell.rounds.iter().map(|bytes| format!("{:.1}", mebibytes(*bytes))).collect();
        println!(
            "{percent:>6} % {:>12.1} {:>10.1} {:>8.3} {:>12.1} {}, {:.1}{}",
            cell.pre_copy.median(),
            cell.stop.median(),
            cell.ratios.median(),
            cell.stops.median(),
            rounds.join(" "),
            mebibytes(cell.rest),
            cell.gone_back.map_or_else(String::new, |code| format!("; go-back: exit {code}")),
        );
    }
    let details = cells.iter().map(|(percent, cell)| {
        json!({
            "percent": percent,
            "pre_copy_ms": cell.pre_copy.distribution(),
            "stop_ms": cell.stop.distribution(),
            "ratio": cell.ratios.distribution(),
            "longest_stop_ms": cell.stops.distribution(),
            "rounds": cell.rounds,
            "rest": cell.rest,
            "go_back_exit": cell.gone_back,
        })
    });
    Ok(json!({
        "mib": size,
        "bytes_a_second": rate,
        "cells": details.collect::<Vec<_>>(),
        "failures": failures.tell(),
    }))
}

const MIB: f64 = (1 << 20) as f64;

fn measure(lab: &Lab, size: u64, rate: f64, percent: u64, cell: &mut Cell) -> Result<()> {
    let written = (rate / MIB * percent as f64 / 100.0).round() as u64;
    let stop = move_once(lab, size, written, &["--memory", "stop"])?;
    let moved = move_once(lab, size, written, &["--memory", "pre-copy"])?;
    cell.stop.push(stop.interruption_ms);
    cell.pre_copy.push(moved.interruption_ms);
    cell.ratios.push(moved.interruption_ms / stop.interruption_ms);
    cell.stops.push(moved.memory.longest_stop_ms);
    cell.rounds = moved.memory.rounds;
    cell.rest = moved.memory.rest;
    if percent >= TOO_FAST {
        cell.gone_back = go_back(lab, size, written)?;
    }
    Ok(())
}

/// Returns how fast memory went over in the first round of a move, in bytes a second.
fn rate_of(moved: &MigrationReport) -> Result<f64> {
    let step = moved.steps.iter().find(|step| step.name == ROUNDS);
    let step = step.ok_or_else(|| Error::Check(format!("no rounds: {:?}", moved.steps)))?;
    Ok(step.bytes as f64 / (step.ms / 1e3))
}

/// Starts a container with so many mebibytes of memory that writes so many of them in a second.
fn start(host: &Host, size: u64, written: u64) -> Result<()> {
    let variables = [format!("MEMORY_MIB={size}"), format!("WRITE_MIB={written}")];
    let run = ["run", "--detach", "--name", NAME, "--env", &variables[0], "--env", &variables[1]];
    let program = ["probe:1", "netmig-probe", "scenario", "paced-memory"];
    host.podman([&run[..], &program].concat())?;
    until("it writes", SAYS, || Ok(host.podman(["logs", NAME])?.contains("checked")))
}

/// Moves a fresh container, checks its memory, and removes it.
fn move_once(lab: &Lab, size: u64, written: u64, options: &[&str]) -> Result<MigrationReport> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    start(a, size, written)?;
    let moved = lab.attempt(NAME, "a", "b", &[options, &OPTIONS].concat())?.success()?;
    end(b)?;
    Ok(moved)
}

/// Orders a move that is to go back if it does not converge; returns its exit code.
fn go_back(lab: &Lab, size: u64, written: u64) -> Result<Option<i32>> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    start(a, size, written)?;
    let options = ["--memory", "pre-copy", "--non-converging", "go-back"];
    let attempt = lab.attempt(NAME, "a", "b", &[&options[..], &OPTIONS].concat())?;
    end(if attempt.code == Some(0) { b } else { a })?;
    Ok(attempt.code)
}

/// Checks the memory of a container that has run on, and removes it.
fn end(host: &Host) -> Result<()> {
    std::thread::sleep(SETTLES);
    let checks = || host.podman(["logs", NAME]).map(|log| log.matches("checked").count());
    let before = checks()?;
    until("it goes on", SAYS, || Ok(checks()? > before))?;
    let log = host.podman(["logs", NAME])?;
    fixture::remove(host, NAME)?;
    match log.contains("WRONG") {
        true => Err(Error::Check(format!("memory has changed: {log}"))),
        false => Ok(()),
    }
}
