//! Benchmarks: named measurements with figures for people and JSON for programs.

pub mod busy;
mod cold;
mod connection_count;
mod direct;
mod distribution;
mod downtime;
mod endurance;
mod faults;
mod fixture;
pub mod floor;
mod goodput;
mod lab_startup;
mod parallel;
mod podman_baseline;
mod promise;
mod udp_loss;

use std::fmt::{Debug, Display};
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::error::{Context, Error, Result};

/// How a benchmark is to be run.
#[derive(Debug, Clone)]
pub struct BenchPlan {
    /// How often each measurement is repeated; `None`: as the benchmark finds right.
    pub runs: Option<u32>,
    /// Parts of names, with commas between them, that select what the benchmark has many of.
    pub cells: Option<String>,
    /// How many labs to use side by side; `None`: as the benchmark finds right.
    pub jobs: Option<u32>,
    /// Where to write the figures as JSON.
    pub json: Option<PathBuf>,
    /// Where each result is added as it comes, and what is there is not measured again.
    pub resume: Option<PathBuf>,
}

/// A benchmark.
#[derive(Debug, Clone, Copy)]
pub struct Bench {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it measures, in one line.
    pub about: &'static str,
    /// Measures, prints figures for people on standard output, and returns them as JSON.
    pub run: fn(&BenchPlan) -> Result<Value>,
}

/// All benchmarks.
pub const ALL: &[Bench] = &[
    downtime::BENCH,
    udp_loss::BENCH,
    connection_count::BENCH,
    cold::BENCH,
    parallel::BENCH,
    goodput::BENCH,
    direct::BENCH,
    faults::BENCH,
    busy::BENCH,
    endurance::BENCH,
    promise::BENCH,
    lab_startup::BENCH,
];

/// Those of `all` that are named by `--cells`, and those that are always measured; all if none is
/// named.
fn chosen<T: Copy + PartialEq + Display + Debug>(
    all: &[T],
    always: &[T],
    cells: Option<&str>,
) -> Result<Vec<T>> {
    let Some(cells) = cells else { return Ok(all.to_vec()) };
    let asked = |one: &T| cells.split(',').any(|cell| cell == one.to_string());
    if !all.iter().any(asked) {
        return Err(Error::Refused(format!("none of {all:?} is among {cells}")));
    }
    Ok(all.iter().copied().filter(|one| always.contains(one) || asked(one)).collect())
}

/// Runs a benchmark.
///
/// # Errors
/// There is none of that name, it failed, or its JSON could not be written.
pub fn run(name: &str, plan: &BenchPlan) -> Result<()> {
    let Some(bench) = ALL.iter().find(|bench| bench.name == name) else {
        let known: Vec<String> =
            ALL.iter().map(|bench| format!("{} ({})", bench.name, bench.about)).collect();
        return Err(Error::Refused(format!(
            "no benchmark is called {name:?}; there are: {}",
            known.join(", ")
        )));
    };
    let figures = (bench.run)(plan)?;
    if let Some(path) = &plan.json {
        fs::write(path, format!("{figures}\n"))
            .context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
