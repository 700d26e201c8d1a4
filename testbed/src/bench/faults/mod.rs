//! The fault matrix: every cell some times, several labs side by side.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Bench, BenchPlan};
use crate::error::{Error, Result, chain};
use crate::faults::{Arena, Cell, Moment, Outcome, Problem, RunsOn};
use crate::prepare;

pub(super) const BENCH: Bench =
    Bench { name: "faults", about: "what comes of migrations that something happens to", run };

const RUNS: u32 = 3;
/// Labs side by side. Most of the time of a run is waiting.
const JOBS: u32 = 2;

/// One run of one cell.
#[derive(Debug, Serialize)]
struct Run {
    #[serde(flatten)]
    outcome: Option<Outcome>,
    problems: Vec<(Problem, String)>,
    /// Why there is no outcome.
    error: Option<String>,
    tcp_silent_ms: f64,
    udp_lost: u64,
    seconds: f64,
}

/// What all workers share.
struct Board {
    queue: Mutex<VecDeque<(usize, u32)>>,
    done: Mutex<Vec<Vec<Run>>>,
}

fn run(plan: &BenchPlan) -> Result<Value> {
    let runs = plan.runs.unwrap_or(RUNS).max(1);
    let jobs = plan.jobs.unwrap_or(JOBS).clamp(1, 16);
    let wanted = plan.cells.as_deref().unwrap_or_default();
    let cells: Vec<Cell> = Cell::all()
        .into_iter()
        .filter(|cell| wanted.split(',').any(|part| cell.to_string().contains(part)))
        .collect();
    if cells.is_empty() {
        return Err(Error::Refused(format!("no cell is called {wanted:?}")));
    }
    prepare::for_labs()?;
    let queue = (0..runs).flat_map(|run| (0..cells.len()).map(move |cell| (cell, run))).collect();
    let done = cells.iter().map(|_| Vec::new()).collect();
    let board = Board { queue: Mutex::new(queue), done: Mutex::new(done) };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(|| work(&cells, &board))).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| Err(Error::Check("a worker died".to_owned())))
        })
    })?;
    let done = board.done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let table: Vec<Value> = cells.iter().zip(&done).map(|(cell, runs)| row(*cell, runs)).collect();
    print_table(&cells, &done);
    let summary = summary(&done);
    println!("{summary}");
    Ok(json!({ "cells": table, "summary": summary }))
}

/// Takes cells from the board until there are none.
fn work(cells: &[Cell], board: &Board) -> Result<()> {
    let mut arena = None;
    loop {
        let Some((index, number)) = lock(&board.queue).pop_front() else { return Ok(()) };
        let cell = cells[index];
        let started = Instant::now();
        let ready = match arena.take() {
            Some(arena) => arena,
            None => Arena::start()?,
        };
        let outcome = ready.run(cell);
        let run = Run::new(cell, outcome, started);
        println!("{}", run.line(cell, number));
        if run.is_good() && !cell.spoils_the_lab() {
            arena = Some(ready);
        } else if let Some(error) = &run.error {
            eprintln!("{cell}: {error}");
            eprint!("{}", ready.lab().diagnosis());
        }
        lock(&board.done)[index].push(run);
    }
}

impl Run {
    fn new(cell: Cell, outcome: Result<Outcome>, started: Instant) -> Self {
        let (outcome, error) = match outcome {
            Ok(outcome) => (Some(outcome), None),
            Err(error) => (None, Some(chain(&error))),
        };
        let tcp = outcome.as_ref().map_or(0.0, |outcome| outcome.tcp.max_gap_ms);
        Self {
            problems: outcome.as_ref().map(|outcome| outcome.problems(cell)).unwrap_or_default(),
            tcp_silent_ms: tcp,
            udp_lost: outcome.as_ref().map_or(0, |outcome| outcome.udp.lost),
            outcome,
            error,
            seconds: started.elapsed().as_secs_f64(),
        }
    }

    fn is_good(&self) -> bool {
        self.error.is_none() && self.problems.is_empty()
    }

    fn line(&self, cell: Cell, number: u32) -> String {
        let verdict = if self.is_good() { "ok    " } else { "FAILED" };
        let mut text =
            format!("{verdict} {:34} {} {:5.1} s", cell.to_string(), number + 1, self.seconds);
        if let Some(outcome) = &self.outcome {
            let exit = outcome.exit.map_or("-".to_owned(), |code| code.to_string());
            text.push_str(&format!(
                "  exit {exit}, runs on {:?}{}, silent {:.0} ms, {} datagrams lost",
                outcome.runs_on,
                if outcome.ordered { " by order" } else { "" },
                self.tcp_silent_ms,
                self.udp_lost
            ));
        }
        for (problem, what) in &self.problems {
            text.push_str(&format!("\n       {problem:?}: {what}"));
        }
        if !self.problems.is_empty()
            && let Some(outcome) = &self.outcome
        {
            text.push_str(&format!("\n       it said: {}", outcome.said));
        }
        text
    }
}

/// Prints the matrix in Markdown: where the container runs afterwards, and the longest silence.
fn print_table(cells: &[Cell], done: &[Vec<Run>]) {
    let mut faults: Vec<String> = Vec::new();
    let mut rows: BTreeMap<Moment, BTreeMap<String, String>> = BTreeMap::new();
    for (cell, runs) in cells.iter().zip(done) {
        let fault = cell.fault.to_string();
        if !faults.contains(&fault) {
            faults.push(fault.clone());
        }
        rows.entry(cell.moment).or_default().insert(fault, entry(runs));
    }
    println!("\n| | {} |", faults.join(" | "));
    println!("| --- |{}", " --- |".repeat(faults.len()));
    for (moment, entries) in rows {
        let entries: Vec<&str> =
            faults.iter().map(|fault| entries.get(fault).map_or("", String::as_str)).collect();
        println!("| {} | {} |", moment.name(), entries.join(" | "));
    }
    println!();
}

/// One entry of the matrix.
fn entry(runs: &[Run]) -> String {
    let mut places: Vec<&str> = runs
        .iter()
        .filter_map(|run| run.outcome.as_ref())
        .map(|outcome| match outcome.runs_on {
            RunsOn::Source if outcome.ordered => "S by order",
            RunsOn::Source => "S",
            RunsOn::Destination => "D",
            RunsOn::Both => "BOTH",
            RunsOn::Neither => "ended",
        })
        .collect();
    places.sort_unstable();
    places.dedup();
    let bad = runs.iter().filter(|run| !run.is_good()).count();
    let silent = runs.iter().map(|run| run.tcp_silent_ms).fold(0.0, f64::max) / 1e3;
    let mut text = format!("{} {silent:.1} s", places.join("/"));
    if bad > 0 {
        text.push_str(&format!(", {bad} of {} NOT AS PROMISED", runs.len()));
    }
    text
}

fn row(cell: Cell, runs: &[Run]) -> Value {
    json!({
        "moment": cell.moment.name(),
        "fault": cell.fault.to_string(),
        "runs": runs,
        "good": runs.iter().filter(|run| run.is_good()).count(),
    })
}

/// Counts runs with each kind of problem.
fn summary(done: &[Vec<Run>]) -> Value {
    let runs = || done.iter().flatten();
    let with = |problem| {
        runs().filter(|run| run.problems.iter().any(|(found, _)| *found == problem)).count()
    };
    json!({
        "cells": done.len(),
        "runs": runs().count(),
        "two_audible": with(Problem::TwoAudible),
        "none": with(Problem::None),
        "resets": with(Problem::Reset),
        "datagrams": with(Problem::Datagrams),
        "leftovers": with(Problem::Leftover),
        "messages": with(Problem::Message),
        "errors": runs().filter(|run| run.error.is_some()).count(),
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
