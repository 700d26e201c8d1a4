//! One container that is ordered to several hosts at once, many times; and a first pass that takes longer
//! than anything waits for elsewhere.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Bench, BenchPlan, chosen};
use crate::cases::promise::long;
use crate::cases::promise::rivals::{self, Interference, Round};
use crate::error::{Error, Result, chain};
use crate::lab::Lab;

pub(super) const BENCH: Bench = Bench {
    name: "promise",
    about: "two and four moves of one container at once (--cells long: a move whose first pass takes minutes)",
    run,
};

/// Rounds of each, unless told otherwise.
const RUNS: u32 = 50;
/// The time in which a move is over, and over which orders are spread.
const WHOLE_MOVE: Duration = Duration::from_millis(1600);
/// Bytes and rate of a pass that outlives the shim's 235 s.
const LONG: (usize, &str) = (66 << 20, "2200kbit");

/// What is done.
const PARTS: [&str; 3] = ["two", "four", "long"];

fn run(plan: &BenchPlan) -> Result<Value> {
    // The long one takes minutes and is asked for by name.
    let parts = match &plan.cells {
        None => vec!["two", "four"],
        cells => chosen(&PARTS, &[], cells.as_deref())?,
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

/// Orders of one round are given over the time of a whole move, each round in another way; in every fifth
/// one somebody recovers beside them, in every fifth one is killed.
fn order(rivals: usize, round: u32) -> (Vec<Duration>, Interference) {
    // Steps that come everywhere before they come back: 5 has no factor in common with 16.
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
