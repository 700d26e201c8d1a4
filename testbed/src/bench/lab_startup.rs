//! The times to start and to end a lab.

use std::time::Instant;

use serde_json::{Value, json};

use super::distribution::Distribution;
use super::{Bench, BenchPlan};
use crate::error::Result;
use crate::lab::Lab;
use crate::{lab, prepare};

pub(super) const BENCH: Bench =
    Bench { name: "lab", about: "start and end of a lab of three hosts", run };

const RUNS: u32 = 5;

fn run(plan: &BenchPlan) -> Result<Value> {
    let needed = prepare::for_labs()?;
    lab::storage_template::template(&needed)?;
    let runs = plan.runs.unwrap_or(RUNS).max(1);
    let (mut up, mut first, mut down) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        let started = Instant::now();
        let lab = Lab::start(&["a", "b", "c"])?;
        up.push(started.elapsed().as_secs_f64() * 1e3);
        let started = Instant::now();
        lab.host("a")?.podman(["run", "--detach", "probe:1"])?;
        first.push(started.elapsed().as_secs_f64() * 1e3);
        let started = Instant::now();
        lab.down()?;
        down.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let parts = [("up", up), ("first podman run", first), ("down", down)];
    let mut figures = json!({ "runs": runs });
    for (name, values) in parts {
        if let Some(distribution) = Distribution::of(&values) {
            println!("{name:18} {distribution} ms");
            figures[format!("{}_ms", name.replace(' ', "_"))] = json!(distribution);
        }
    }
    Ok(figures)
}
