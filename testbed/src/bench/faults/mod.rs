//! The fault matrix: runs every cell several times, with several labs in parallel.

mod result_log;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

use super::{Bench, BenchPlan};
use crate::error::{Error, Result};
use crate::faults::{Cell, Harness, InjectionPoint, Memory, Problem, RunsOn};
use crate::prepare;
use result_log::{Record, Records};

pub(super) const BENCH: Bench =
    Bench { name: "faults", about: "what comes of migrations that something happens to", run };

const RUNS: u32 = 3;
/// The default number of parallel labs. A run mostly waits.
const JOBS: u32 = 2;

/// The state that all workers share.
struct Board {
    product: String,
    records: Option<Records>,
    queue: Mutex<VecDeque<(usize, u32)>>,
    done: Mutex<Vec<Vec<Record>>>,
}

fn run(plan: &BenchPlan) -> Result<Value> {
    let runs = plan.runs.unwrap_or(RUNS).max(1);
    let jobs = plan.jobs.unwrap_or(JOBS).clamp(1, 16);
    let wanted = plan.only.as_deref().unwrap_or_default();
    let cells: Vec<Cell> = Cell::all()
        .into_iter()
        .filter(|cell| wanted.split(',').any(|part| cell.to_string().contains(part)))
        .collect();
    if cells.is_empty() {
        return Err(Error::Refused(format!("no cell is called {wanted:?}")));
    }
    let product = result_log::product(&prepare::for_labs()?)?;
    let (records, known) = match &plan.resume {
        Some(path) => {
            let (records, known) = Records::open(path, &product)?;
            (Some(records), known)
        }
        None => (None, Vec::new()),
    };
    let (queue, done) = missing(&cells, runs, known);
    if plan.resume.is_some() {
        println!("{} runs are there, {} are missing", done.iter().flatten().count(), queue.len());
    }
    let board = Board { product, records, queue: Mutex::new(queue), done: Mutex::new(done) };
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

/// Returns the runs that are missing, and the known results by cell.
fn missing(
    cells: &[Cell],
    runs: u32,
    known: Vec<Record>,
) -> (VecDeque<(usize, u32)>, Vec<Vec<Record>>) {
    let mut done: Vec<Vec<Record>> = cells.iter().map(|_| Vec::new()).collect();
    for record in known {
        let index = cells.iter().position(|cell| cell.to_string() == record.cell);
        if let Some(runs_of_it) = index.and_then(|index| done.get_mut(index)) {
            runs_of_it.push(record);
        }
    }
    let is_there = |index: usize, run| {
        done.get(index).is_some_and(|all| all.iter().any(|record| record.number == run))
    };
    let all = (0..runs).flat_map(|run| (0..cells.len()).map(move |cell| (cell, run)));
    let queue = all.filter(|(cell, run)| !is_there(*cell, *run)).collect();
    (queue, done)
}

/// Runs cells of the queue until it is empty.
fn work(cells: &[Cell], board: &Board) -> Result<()> {
    let mut harness = None;
    loop {
        let Some((index, number)) = lock(&board.queue).pop_front() else { return Ok(()) };
        let cell = cells[index];
        let started = Instant::now();
        let ready = match harness.take() {
            Some(harness) => harness,
            None => Harness::start()?,
        };
        let outcome = ready.run(cell);
        let seconds = started.elapsed().as_secs_f64();
        let record = Record::new(&board.product, cell, number, outcome, seconds);
        println!("{}", record.line());
        if record.is_good() && !cell.fault.needs_fresh_lab() {
            harness = Some(ready);
        } else if let Some(error) = &record.error {
            eprintln!("{cell}: {error}");
            eprint!("{}", ready.lab().diagnosis());
        }
        if let Some(records) = &board.records {
            records.append(&record)?;
        }
        lock(&board.done)[index].push(record);
    }
}

/// Prints the matrix in Markdown: where the container runs afterwards and the longest silence.
fn print_table(cells: &[Cell], done: &[Vec<Record>]) {
    let mut faults: Vec<String> = Vec::new();
    let mut rows: BTreeMap<(Memory, InjectionPoint), BTreeMap<String, String>> = BTreeMap::new();
    for (cell, runs) in cells.iter().zip(done) {
        let fault = cell.fault.to_string();
        if !faults.contains(&fault) {
            faults.push(fault.clone());
        }
        rows.entry((cell.memory, cell.point)).or_default().insert(fault, entry(runs));
    }
    println!("\n| | {} |", faults.join(" | "));
    println!("| --- |{}", " --- |".repeat(faults.len()));
    for ((memory, point), entries) in rows {
        let entries: Vec<&str> =
            faults.iter().map(|fault| entries.get(fault).map_or("", String::as_str)).collect();
        println!("| {memory}{} | {} |", point.name(), entries.join(" | "));
    }
    println!();
}

/// Formats one entry of the matrix.
fn entry(runs: &[Record]) -> String {
    let mut places: Vec<&str> = runs
        .iter()
        .filter_map(|run| Some((run.runs_on?, run.ordered)))
        .map(|(place, ordered)| match place {
            RunsOn::Source if ordered => "S by order",
            RunsOn::Source => "S",
            RunsOn::Destination => "D",
            RunsOn::Third => "third",
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

fn row(cell: Cell, runs: &[Record]) -> Value {
    json!({
        "injection_point": format!("{}{}", cell.memory, cell.point.name()),
        "fault": cell.fault.to_string(),
        "runs": runs,
        "good": runs.iter().filter(|run| run.is_good()).count(),
    })
}

/// Counts the runs with each kind of problem.
fn summary(done: &[Vec<Record>]) -> Value {
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
        "memory": with(Problem::Memory),
        "messages": with(Problem::Message),
        "authority": with(Problem::Authority),
        "errors": runs().filter(|run| run.error.is_some()).count(),
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::{Fault, Side};

    #[test]
    fn only_what_is_missing_is_run() {
        let fault = Fault::Kill(Side::Source);
        let cell = |point| Cell { memory: Memory::Little, point, fault };
        let cells = [cell(InjectionPoint::Dump), cell(InjectionPoint::Commit)];
        let end = || Err(Error::Check("no".to_owned()));
        let known = vec![
            Record::new("p", cells[1], 0, end(), 1.0),
            Record::new("p", cell(InjectionPoint::Hold), 0, end(), 1.0),
        ];
        let (queue, done) = missing(&cells, 2, known);
        assert_eq!(queue, [(0, 0), (0, 1), (1, 1)]);
        assert_eq!((done[0].len(), done[1].len()), (0, 1));
    }
}
