//! A destination that lacks the image, beside one that has it: all that takes long has to happen
//! before the interruption.

use serde_json::{Value, json};

use super::scene::{self, Failures, Moved};
use super::statistics::{Distribution, Samples};
use super::{Bench, BenchPlan};
use crate::error::Result;
use crate::lab::Runtime;

pub(super) const BENCH: Bench =
    Bench { name: "cold", about: "destination without the image and with it", run };

const RUNS: u32 = 7;

fn run(plan: &BenchPlan) -> Result<Value> {
    let runs = plan.runs.unwrap_or(RUNS).max(1);
    let lab = scene::lab()?;
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    let mut failures = Failures::default();
    let outcome = (0..=runs).try_for_each(|round| {
        eprintln!("round {round} of {runs}");
        if round == 0 {
            // The first move makes the tunnel, and reads programs from the disk.
            return scene::move_once(&lab, Runtime::Crun).map(drop);
        }
        let pair = (|| {
            lab.host("b")?.podman(["rmi", "--force", "--ignore", "probe:1"])?;
            let cold = scene::move_once(&lab, Runtime::Crun)?;
            Ok((cold, scene::move_once(&lab, Runtime::Crun)?))
        })();
        if let Some(pair) = failures.survive(&lab, &format!("round {round}"), pair)? {
            cold.push(pair.0);
            warm.push(pair.1);
        }
        Ok(())
    });
    scene::diagnosed(&lab, outcome)?;
    lab.down()?;
    let of = |moves: &[Moved], value: fn(&Moved) -> f64| -> Samples {
        moves.iter().map(value).collect()
    };
    let gap = |moved: &Moved| moved.tcp_gap;
    let interruption = |moved: &Moved| moved.report.interruption_ms;
    let total = |moved: &Moved| moved.report.total_ms;
    println!("{:28}{}", "ms", Distribution::HEADINGS);
    let mut figures = json!({ "runs": runs });
    for (name, moves) in [("cold", &cold), ("warm", &warm)] {
        println!("{}", of(moves, interruption).row(&format!("{name}, interruption")));
        println!("{}", of(moves, gap).row(&format!("{name}, TCP gap")));
        println!("{}", of(moves, total).row(&format!("{name}, in all")));
        figures[name] = json!({
            "interruption_ms": of(moves, interruption).distribution(),
            "tcp_gap_ms": of(moves, gap).distribution(),
            "total_ms": of(moves, total).distribution(),
        });
    }
    let ratio: Samples =
        cold.iter().zip(&warm).map(|(c, w)| interruption(c) / interruption(w)).collect();
    println!("\n{:28}{}", "ratio, pair by pair", Distribution::HEADINGS);
    println!("{}", ratio.row("cold / warm, interruption"));
    figures["failures"] = failures.tell();
    figures["ratios"] = json!({ "cold_over_warm": ratio.median() });
    figures["ratio_spreads"] = json!({ "cold_over_warm": ratio.distribution() });
    Ok(figures)
}
