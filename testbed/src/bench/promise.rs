//! Several migrations of one container at once, many times, and a first pass over the files that exceeds every other
//! timeout.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Bench, BenchPlan, chosen};
use crate::cases::promise::long;
use crate::cases::promise::rivals::{self, Interference, Round};
use crate::error::{Error, Result, chain};
use crate::lab::Lab;

pub(super) const BENCH: Bench = Bench {
    name: "promise",
    about: "two and four moves of one container at once (--only long: a move whose first pass takes minutes)",
    run,
};

/// The default number of rounds.
const RUNS: u32 = 50;
/// The duration of a migration, over which the starts are spread.
const WHOLE_MOVE: Duration = Duration::from_millis(1600);
/// The bytes and the rate of a pass that exceeds the shim's timeout of 235 s.
const LONG: (usize, &str) = (66 << 20, "2200kbit");

/// The variants.
const PARTS: [&str; 3] = ["two", "four", "long"];

fn run(plan: &BenchPlan) -> Result<Value> {
    // The long pass takes minutes and runs only when it is named.
    let parts = match &plan.only {
        None => vec!["two", "four"],
        only => chosen(&PARTS, &[], only.as_deref())?,
    };
    let runs = plan.runs.unwrap_or(RUNS).max(1);
    let mut figures = serde_json::Map::new();
    let mut problems = 0;
    for part in parts {
        let figure = match part {
            "long" => long_pass()?,
            "four" => rounds(4, runs)?,
            _ => rounds(2, runs)?,
        };
        problems += figure["problems"].as_u64().unwrap_or_default();
        println!("{part}: {}", figure["summary"]);
        figures.insert(part.to_owned(), figure);
    }
    println!("{problems} rounds were not as promised");
    Ok(Value::Object(figures))
}

/// Returns the delays of the migrations of a round, and the interference. The delays spread over the duration of a
/// migration and differ between rounds. In every fifth round `recover` runs, and in every fifth an agent is killed.
fn order(rivals: usize, round: u32) -> (Vec<Duration>, Interference) {
    // 5 and 16 are coprime, so the steps reach every sixteenth before they repeat.
    let place = |number: u32| WHOLE_MOVE / 16 * (number * 5 % 16);
    let after =
        (0..rivals as u32).map(|number| place(number * (round % 7 + round % 2) + number * round));
    let after: Vec<Duration> = after.collect();
    let interference = match round % 5 {
        3 => Interference::Recover,
        4 => Interference::Kill(round as usize % rivals, place(round + 3)),
        _ => Interference::Nothing,
    };
    (after, interference)
}

fn rounds(rivals: usize, runs: u32) -> Result<Value> {
    let mut lab = Lab::start(&rivals::hosts(rivals))?;
    let mut all: Vec<Value> = Vec::new();
    let (mut good, mut bad) = (0, 0);
    for number in 0..runs {
        let (after, interference) = order(rivals, number);
        let (is_good, round) = match rivals::round(&lab, &after, interference) {
            Ok(round) => (round.problems.is_empty(), told(number, interference, &round)),
            Err(error) => {
                println!("FAILED {rivals} {number}: {}", chain(&error));
                (false, json!({ "error": chain(&error) }))
            }
        };
        all.push(round);
        if is_good {
            good += 1;
        } else {
            bad += 1;
            lab = Lab::start(&rivals::hosts(rivals))?;
        }
    }
    lab.down()?;
    let summary = json!({ "rivals": rivals, "rounds": runs, "as_promised": good });
    Ok(json!({ "rounds": all, "problems": bad, "summary": summary }))
}

fn told(number: u32, interference: Interference, round: &Round) -> Value {
    let verdict = if round.problems.is_empty() { "ok    " } else { "FAILED" };
    println!(
        "{verdict} {} orders, {number}: after {:?} ms, {interference:?}: exits {:?}, runs on {}",
        round.exits.len(),
        round.after_ms,
        round.exits,
        round.runs_on.as_deref().unwrap_or("-")
    );
    for problem in &round.problems {
        println!("       {problem}");
    }
    json!({ "interference": format!("{interference:?}"), "round": round })
}

fn long_pass() -> Result<Value> {
    let lab = Lab::start(&["a", "b", "c"])?;
    let moved = long::move_slowly(&lab, LONG.0, LONG.1);
    let figure = match moved {
        Ok(moved) => {
            let summary = json!({
                "first_pass_s": moved.pass.as_secs_f64(),
                "podman_ps_s": moved.longest_answer.as_secs_f64(),
            });
            json!({ "problems": 0, "summary": summary })
        }
        Err(error @ Error::Program { .. }) => {
            json!({ "problems": 1, "summary": format!("FAILED: {}", chain(&error)) })
        }
        Err(error) => return Err(error),
    };
    lab.down()?;
    Ok(figure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_spread_over_a_whole_move_and_the_first_is_given_at_once() {
        let mut places = std::collections::BTreeSet::new();
        for round in 0..50 {
            let (after, _) = order(2, round);
            assert_eq!(after[0], Duration::ZERO);
            assert!(after[1] < WHOLE_MOVE);
            places.insert(after[1]);
        }
        assert!(places.len() >= 8, "{places:?}");
    }
}
