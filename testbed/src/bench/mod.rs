//! Benchmarks: named measurements that print tables and write JSON.

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
mod memory;
mod memory_rate;
mod parallel;
mod podman_baseline;
mod promise;
mod udp_loss;

use std::fmt::{Debug, Display};
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::error::{Context, Error, Result};

/// The settings of a benchmark.
#[derive(Debug, Clone)]
pub struct BenchPlan {
    /// The number of repetitions; `None`: the benchmark's default.
    pub runs: Option<u32>,
    /// The variants to measure, separated by commas; `None`: all.
    pub only: Option<String>,
    /// The number of labs that run in parallel; `None`: the benchmark's default.
    pub jobs: Option<u32>,
    /// Whether to measure less.
    pub quick: bool,
    /// The file for the figures as JSON.
    pub json: Option<PathBuf>,
    /// The file to which each result is appended, and whose results are not measured again.
    pub resume: Option<PathBuf>,
}

/// A benchmark.
#[derive(Debug, Clone, Copy)]
pub struct Bench {
    /// The name on the command line.
    pub name: &'static str,
    /// What it measures, in one line.
    pub about: &'static str,
    /// Measures, prints a table on standard output, and returns the figures as JSON.
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
    memory::BENCH,
    memory_rate::BENCH,
    direct::BENCH,
    faults::BENCH,
    busy::BENCH,
    endurance::BENCH,
    promise::BENCH,
    lab_startup::BENCH,
];

/// Returns the variants that `--only` names and those that are always measured; all variants without `--only`.
fn chosen<T: Copy + PartialEq + Display + Debug>(
    all: &[T],
    always: &[T],
    only: Option<&str>,
) -> Result<Vec<T>> {
    let Some(only) = only else { return Ok(all.to_vec()) };
    let asked = |one: &T| only.split(',').any(|word| word == one.to_string());
    if !all.iter().any(asked) {
        return Err(Error::Refused(format!("none of {all:?} is among {only}")));
    }
    Ok(all.iter().copied().filter(|one| always.contains(one) || asked(one)).collect())
}

/// Runs a benchmark.
///
/// # Errors
/// No benchmark has this name, it failed, or its JSON could not be written.
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
