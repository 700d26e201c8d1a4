//! What is expected of an interruption, after earlier moves.

use std::time::Duration;

use super::promise::until;
use crate::ensure;
use crate::error::Result;
use crate::lab::MigrationReport;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("forecast-of-a-second-move", &["operator"], second_move).exclusive().limit(600),
    Case::new("forecast-with-a-damaged-file", &["operator"], damaged),
];

/// How many times as long as expected an interruption may take, and the other way round. A forecast is right within a factor of
/// two on a machine with nothing else to do.
const GENEROUS: f64 = 4.0;
/// The file with earlier moves.
const FILE: &str = "/var/lib/netmig/past-moves.json";

fn ratio(moved: &MigrationReport) -> f64 {
    moved.interruption_ms / moved.forecast_ms
}

/// Later moves of a small container and of one with much memory take as long as is expected.
fn second_move(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    ["a", "b"].iter().try_for_each(|host| lab.serve(host))?;
    let a = lab.host("a")?;
    a.podman(["run", "--detach", "--name", "small", "probe:1", "sleep", "100000"])?;
    let fill = "import os\nmemory = os.urandom(512 << 20)\nprint('ready', flush=True)\nimport time\ntime.sleep(1e6)";
    a.podman(["run", "--detach", "--name", "large", "python:1", "python3", "-c", fill])?;
    until("it has its memory", Duration::from_secs(60), || {
        Ok(a.podman(["logs", "large"])?.contains("ready"))
    })?;
    for (name, memory) in [("small", "stop"), ("large", "auto"), ("large", "stop")] {
        let options = ["--memory", memory, "--max-interruption", "60"];
        let mut moves = Vec::new();
        for _ in 0..3 {
            moves.push(lab.attempt(name, "a", "b", &options)?.success()?);
            lab.attempt(name, "b", "a", &options)?.success()?;
        }
        let told: Vec<String> = moves
            .iter()
            .map(|one| format!("{:.0} ms of {:.0}", one.interruption_ms, one.forecast_ms))
            .collect();
        context.remark(format!("{name}, {memory}: {}", told.join(", ")));
        // Other work of the machine may disturb one of them.
        let is_right = |one| (1.0 / GENEROUS..=GENEROUS).contains(&ratio(one));
        ensure!(moves[1..].iter().any(is_right), "{name}, {memory}: {told:?}");
    }
    Ok(())
}

/// A file that cannot be read is no obstacle, and the next move replaces it.
fn damaged(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    ["a", "b"].iter().try_for_each(|host| lab.serve(host))?;
    let a = lab.host("a")?;
    a.podman(["run", "--detach", "--name", "web", "probe:1", "sleep", "100000"])?;
    for text in ["", "{\"version\": 1, \"note\": {\"moves\": [{}]}}"] {
        a.run(["sh", "-c", "printf %s \"$0\" > /var/lib/netmig/past-moves.json", text])?;
        let moved = lab.attempt("web", "a", "b", &[])?.success()?;
        ensure!(moved.warnings.is_empty(), "{:?}", moved.warnings);
        ensure!(a.read(FILE)?.contains("measured"), "it is {:?}", a.read(FILE)?);
        lab.attempt("web", "b", "a", &[])?.success()?;
    }
    Ok(())
}
