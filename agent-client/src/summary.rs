//! How the end of a migration is told, to people and to programs.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use indicatif::HumanBytes;
use migration::report::{MemoryReport, NewAddress};
use migration::{Failure, Report};
use serde::Serialize;
use state::blocker::Blocker;

use crate::exit::Exit;

/// Prints the report of a migration that reached its end, and returns the exit code.
#[must_use]
pub fn print(report: &Report, json: bool) -> Exit {
    if json {
        print_json(report);
    } else {
        print_for_people(report);
    }
    for lost in &report.lost {
        eprintln!("agent-client: lost: {lost}");
    }
    for unverified in &report.unverified {
        eprintln!("agent-client: not known to live: {unverified}");
    }
    for warning in &report.warnings {
        eprintln!("agent-client: warning: {warning}");
    }
    report.outcome.into()
}

/// Prints a migration that did not reach its end, as JSON.
pub fn print_failure(failure: &Failure, destination: &str) {
    #[derive(Serialize)]
    struct Out<'a> {
        outcome: &'static str,
        destination: &'a str,
        error: String,
        blockers: &'a [Blocker],
    }
    print_json(&Out {
        outcome: Exit::from(failure).outcome(),
        destination,
        error: failure.explain(),
        blockers: failure.blockers(),
    });
}

fn print_for_people(report: &Report) {
    println!(
        "{} runs at {} now: {:.2} s in all, interrupted for {:.0} ms.",
        report.container.name,
        report.destination,
        report.total_ms / 1e3,
        report.interruption_ms
    );
    println!(
        "{} TCP and {} UDP flows moved, {} packets held, {} of checkpoint; tunnel {}, queue {}.",
        report.flows.tcp,
        report.flows.udp,
        report.held_packets,
        HumanBytes(report.checkpoint_bytes),
        report.tunnel,
        report.queue
    );
    if report.memory.outstanding > 0 {
        println!(
            "{} of memory went over after the decision, in {:.1} s; for {} of it the container waited.",
            HumanBytes(report.memory.outstanding),
            report.memory.arrived_after_ms / 1e3,
            HumanBytes(report.memory.waited_for)
        );
    }
    if let MemoryReport { rounds, rest, longest_stop_ms, least_processors, .. } = &report.memory
        && !rounds.is_empty()
    {
        let all = HumanBytes(rounds.iter().sum());
        println!(
            "Memory went over in {} rounds, {all}, and {} once the container was frozen.",
            rounds.len(),
            HumanBytes(*rest)
        );
        if *longest_stop_ms > 0.0 {
            println!(
                "The container stood still for up to {longest_stop_ms:.1} ms in a round, so that the kernel could tell what it \
                 had written."
            );
        }
        if let Some(processors) = least_processors {
            println!(
                "It was slowed down to {processors:.2} processors, for it wrote its memory too fast."
            );
        }
    }
    for NewAddress { from, to } in &report.readdressed {
        println!("Its address there is {to} in place of {from}; its connections go on.");
    }
    let mut table = Table::new();
    table.load_style(NOTHING);
    for (name, ms) in report.parts_ms.rows() {
        table.add_row([format!("  {name}"), format!("{ms:.1} ms")]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("The interruption:\n{table}");
}

/// Prints a line of JSON.
pub fn print_json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => println!("{text}"),
        Err(e) => eprintln!("agent-client: cannot print JSON: {e}"),
    }
}
