//! Migrations to a destination without the image, compared with a destination that has it. The image must not
//! lengthen the interruption.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::distribution::{Distribution, Samples};
use super::fixture::{self, Failures, Moved};
use super::{Bench, BenchPlan};
use crate::error::Result;
use crate::lab::{Lab, Runtime};

pub(super) const BENCH: Bench =
    Bench { name: "cold", about: "destination without the image and with it", run };

const RUNS: u32 = 7;
/// One migration of each kind.
struct Round {
    cold: Moved,
    warm: Moved,
}

/// Selects a migration of a round.
type Kind = fn(&Round) -> &Moved;

impl Round {
    fn run(lab: &Lab) -> Result<Self> {
        lab.host("b")?.podman(["rmi", "--force", "--ignore", "probe:1"])?;
        let cold = fixture::move_once(lab, Runtime::Crun)?;
        let warm = fixture::move_once(lab, Runtime::Crun)?;
        Ok(Self { cold, warm })
    }
}

fn run(plan: &BenchPlan) -> Result<Value> {
    let runs = plan.runs.unwrap_or(RUNS).max(1);
    let lab = fixture::lab()?;
    let mut rounds = Vec::new();
    let mut failures = Failures::default();
    let outcome = (0..=runs).try_for_each(|round| {
        eprintln!("round {round} of {runs}");
        if round == 0 {
            // The first migration sets up the tunnel and reads programs from the disk.
            return fixture::move_once(&lab, Runtime::Crun).map(drop);
        }
        rounds.extend(failures.survive(&lab, &format!("round {round}"), Round::run(&lab))?);
        Ok(())
    });
    fixture::diagnosed(&lab, outcome)?;
    lab.down()?;
    let of = |kind: Kind, value: fn(&Moved) -> f64| -> Samples {
        rounds.iter().map(|round| value(kind(round))).collect()
    };
    let kinds: [(&str, Kind); 2] = [("cold", |round| &round.cold), ("warm", |round| &round.warm)];
    let gap = |moved: &Moved| moved.tcp_gap;
    let interruption = |moved: &Moved| moved.report.interruption_ms;
    let total = |moved: &Moved| moved.report.total_ms;
    println!("{:28}{}", "ms", Distribution::HEADINGS);
    let mut figures = json!({ "runs": runs });
    for (name, kind) in kinds {
        println!("{}", of(kind, interruption).row(&format!("{name}, interruption")));
        println!("{}", of(kind, gap).row(&format!("{name}, TCP gap")));
        println!("{}", of(kind, total).row(&format!("{name}, in all")));
        figures[name] = json!({
            "interruption_ms": of(kind, interruption).distribution(),
            "tcp_gap_ms": of(kind, gap).distribution(),
            "total_ms": of(kind, total).distribution(),
            "steps_ms": steps(rounds.iter().map(kind)),
            "parts_ms": fixture::parts(rounds.iter().map(|round| &kind(round).report)),
        });
    }
    let over = |round: &Round| interruption(&round.cold) / interruption(&round.warm);
    let ratio: Samples = rounds.iter().map(over).collect();
    println!("\n{:28}{}", "ratio, pair by pair", Distribution::HEADINGS);
    println!("{}", ratio.row("cold / warm, interruption"));
    figures["failures"] = failures.tell();
    figures["ratios"] = json!({ "cold_over_warm": ratio.median() });
    figures["ratio_spreads"] = json!({ "cold_over_warm": ratio.distribution() });
    Ok(figures)
}

/// Returns the medians of the steps' times.
fn steps<'a>(moves: impl Iterator<Item = &'a Moved>) -> BTreeMap<&'a str, f64> {
    let mut all: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for step in moves.flat_map(|moved| &moved.report.steps) {
        all.entry(&step.name).or_default().push(step.ms);
    }
    all.into_iter().map(|(name, ms)| (name, ms.into_iter().collect::<Samples>().median())).collect()
}
