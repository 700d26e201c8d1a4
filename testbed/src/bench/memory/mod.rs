//! The silence that clients see when a container has much memory, and what a move costs its hosts: by each mode, beside the
//! floor (CRIU's dump and restore alone, whole or lazy) and podman's own checkpoint and restore, all in turn.

mod cell;
mod footprint;
mod measure;

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Map, Value, json};

use super::distribution::Samples;
use super::fixture::{self, Failures};
use super::{Bench, BenchPlan};
use crate::error::{Error, Result};
use cell::{Cell, MODES, Setting, Way};
use measure::{Measured, Moved};

pub(super) const BENCH: Bench = Bench {
    name: "memory",
    about: "silence of containers with much memory, by each mode, and what it costs the hosts (--only MODE/MIB, --quick)",
    run,
};

/// The number of rounds.
const RUNS: u32 = 3;
const MIB: f64 = 1024.0 * 1024.0;

/// What was measured of the moves of a cell, by the name of the column.
#[derive(Default)]
struct Columns {
    all: BTreeMap<&'static str, Samples>,
    reports: Vec<crate::lab::MigrationReport>,
}

/// The columns of the table: the heading, and the name of what is measured.
const COLUMNS: [(&str, &str); 11] = [
    ("silence", "gap_ms"),
    ("interr.", "interruption_ms"),
    ("total", "total_ms"),
    ("p99 before", "p99_before_ms"),
    ("p99 after", "p99_after_ms"),
    ("sent MiB", "sent_mib"),
    ("agents MiB", "agents_peak_mib"),
    ("agents CPU s", "agents_cpu_s"),
    ("hosts CPU s", "hosts_cpu_s"),
    ("src peak x", "source_peak_ratio"),
    ("dst peak x", "destination_peak_ratio"),
];

impl Columns {
    fn add(&mut self, cell: Cell, moved: Moved) {
        let [source, destination] = &moved.hosts;
        let mut push = |name, value| self.all.entry(name).or_default().push(value);
        push("gap_ms", moved.gap);
        push("interruption_ms", moved.report.interruption_ms);
        push("total_ms", moved.report.total_ms);
        push("p99_before_ms", moved.p99[0]);
        push("p99_after_ms", moved.p99[1]);
        push("sent_mib", source.sent / MIB);
        push("agents_peak_mib", source.agents + destination.agents);
        push("agents_cpu_s", source.agents_cpu + destination.agents_cpu);
        push("hosts_cpu_s", source.cpu + destination.cpu);
        push("source_peak_mib", source.peak - source.before);
        push("destination_peak_mib", destination.peak - destination.before);
        // The source has the container before, the destination has not.
        if cell.size > 0 {
            let size = cell.size as f64;
            push("source_peak_ratio", (source.peak - source.before + size) / size);
            push("destination_peak_ratio", (destination.peak - destination.before) / size);
        }
        self.reports.push(moved.report);
    }

    fn median(&self, name: &str) -> f64 {
        self.all.get(name).map_or(0.0, Samples::median)
    }
}

fn run(plan: &BenchPlan) -> Result<Value> {
    let runs = plan.runs.unwrap_or(if plan.quick { 1 } else { RUNS }).max(1);
    let chosen = Cell::chosen(plan.quick, plan.only.as_deref());
    if chosen.is_empty() {
        let only = plan.only.as_deref().unwrap_or_default();
        return Err(Error::Refused(format!("no cell is called {only:?}")));
    }
    let load_before = load();
    let lab = fixture::lab()?;
    let mut failures = Failures::default();
    let mut moves: BTreeMap<Cell, Columns> = BTreeMap::new();
    let mut beside: BTreeMap<Cell, Samples> = BTreeMap::new();
    let outcome = (1..=runs).try_for_each(|round| {
        chosen.iter().try_for_each(|&cell| {
            let what = format!("round {round}, {cell}");
            eprintln!("{what}");
            match failures.survive(&lab, &what, measure::measure(&lab, cell))? {
                Some(Measured::Moved(moved)) => moves.entry(cell).or_default().add(cell, *moved),
                Some(Measured::Beside(ms)) => beside.entry(cell).or_default().push(ms),
                None => {}
            }
            Ok(())
        })
    });
    let to_floor = above_lazy_floor(&moves, &beside);
    print(&moves, &beside, &to_floor);
    // What was measured before is told all the same.
    fixture::diagnosed(&lab, outcome)?;
    lab.down()?;
    let details: Vec<Value> = moves.iter().map(|(cell, columns)| details(*cell, columns)).collect();
    Ok(json!({
        "runs": runs,
        "load": [load_before, load()],
        "summary": {
            "gap_ms": MODES.iter().map(|mode| {
                let of_mode = moves.iter().filter(|(cell, _)| {
                    cell.way == Way::Move(mode) && cell.setting == Setting::Plain
                });
                let medians = of_mode.map(|(cell, all)| (cell.size.to_string(), json!(all.median("gap_ms"))));
                ((*mode).to_owned(), Value::Object(medians.collect()))
            }).collect::<Map<String, Value>>(),
            "floor_ms": by_size(&beside, Way::Floor),
            "lazy_floor_ms": by_size(&beside, Way::LazyFloor),
            "podman_ms": by_size(&beside, Way::Podman),
            "stop_to_lazy_floor": to_floor.iter().map(|(size, all)| {
                (size.to_string(), json!(all.distribution()))
            }).collect::<Map<String, Value>>(),
        },
        "cells": details,
        "failures": failures.tell(),
    }))
}

fn by_size(beside: &BTreeMap<Cell, Samples>, way: Way) -> Map<String, Value> {
    let of_way = beside.iter().filter(|(cell, _)| cell.way == way);
    of_way.map(|(cell, ms)| (cell.size.to_string(), json!(ms.median()))).collect()
}

/// Returns the ratio of the interruption of a stop-and-copy to CRIU's dump and lazy restore, round by round, by size.
fn above_lazy_floor(
    moves: &BTreeMap<Cell, Columns>,
    beside: &BTreeMap<Cell, Samples>,
) -> BTreeMap<usize, Samples> {
    let floors = beside.iter().filter(|(cell, _)| cell.way == Way::LazyFloor);
    let ratios = floors.filter_map(|(cell, floors)| {
        let stop = Cell { way: Way::Move("stop"), ..*cell };
        let interruptions = moves.get(&stop)?.all.get("interruption_ms")?;
        let ratios = interruptions.iter().zip(floors.iter()).map(|(one, floor)| one / floor);
        Some((cell.size, ratios.collect()))
    });
    ratios.collect()
}

fn details(cell: Cell, columns: &Columns) -> Value {
    let all = columns.all.iter();
    let mut details: Map<String, Value> =
        all.map(|(name, samples)| ((*name).to_owned(), json!(samples.distribution()))).collect();
    details.insert("cell".to_owned(), json!(cell.to_string()));
    details.insert("way".to_owned(), json!(cell.way.to_string()));
    details.insert("mib".to_owned(), json!(cell.size));
    details.insert("parts_ms".to_owned(), json!(fixture::parts(&columns.reports)));
    Value::Object(details)
}

/// Returns the load average of the last minute (proc_loadavg(5)).
fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default()
}

fn print(
    moves: &BTreeMap<Cell, Columns>,
    beside: &BTreeMap<Cell, Samples>,
    to_floor: &BTreeMap<usize, Samples>,
) {
    const WIDTH: usize = 13;
    let headings: String =
        COLUMNS.iter().map(|(heading, _)| format!("{heading:>WIDTH$}")).collect();
    println!("{:32}{headings}", "");
    for (cell, columns) in moves {
        let values = COLUMNS.iter().map(|(_, name)| columns.median(name));
        let row: String = values
            .map(|value| match value < 30.0 {
                true => format!("{value:>WIDTH$.2}"),
                false => format!("{value:>WIDTH$.1}"),
            })
            .collect();
        println!("{:32}{row}", cell.to_string());
    }
    for (cell, ms) in beside {
        println!("{:32}{:>WIDTH$.1}", cell.to_string(), ms.median());
    }
    for (size, all) in to_floor {
        println!(
            "interruption of stop/{size} over lazy-floor/{size}, round by round: {}",
            all.distribution()
        );
    }
}
