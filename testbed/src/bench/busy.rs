//! A web server whose clients open a connection for each request, migrated back and forth.

use std::time::Duration;

use serde_json::{Value, json};

use super::distribution::{Distribution, Samples};
use super::{Bench, BenchPlan};
use crate::error::{Error, Result};
use crate::lab::Lab;
use crate::programs::PROBE;
use crate::traffic::client_report::RequestsReport;

pub(super) const BENCH: Bench = Bench {
    name: "busy",
    about: "a web server under clients without keep-alive, moved to and fro (--runs times)",
    run,
};

/// The default number of migrations.
const MOVES: u32 = 30;
/// The time limit for the clients to get an answer, and to end.
const LIMIT: Duration = Duration::from_secs(30);
/// The number of clients.
const CLIENTS: &str = "16";

/// The results.
#[derive(Debug)]
pub struct Busy {
    /// The report of the clients.
    pub requests: RequestsReport,
    /// The interruption of each migration in milliseconds.
    pub interruptions: Vec<f64>,
}

/// Migrates nginx `count` times between a and b while clients on c send requests. New connections are forwarded.
///
/// # Errors
/// A migration does not end with exit code 0, or a request fails.
pub fn moves(lab: &Lab, count: u32) -> Result<Busy> {
    ["a", "b"].iter().try_for_each(|host| lab.serve(host))?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    let run = ["run", "--detach", "--name", "www", "--publish", "80:80", "nginx:1", "sh", "-c"];
    let serve = "seq 1000 >/srv/numbers; exec nginx -c /etc/nginx.conf";
    a.podman([&run[..], &[serve]].concat())?;
    let answers = "--silent --fail --retry 20 --retry-connrefused --retry-delay 1 http://a/numbers";
    c.command("curl").args(answers.split(' ')).run()?;
    let server = a.port(80).to_string();
    let ask = ["requests", &server, "--path", "/numbers", "--clients", CLIENTS];
    let mut clients = c.command(PROBE).args(ask).args(["--until-stdin-closes"]).spawn()?;
    clients.wait_for("ready", LIMIT)?;
    let mut interruptions = Vec::new();
    for number in 0..count {
        let (from, to) = if number % 2 == 0 { ("a", "b") } else { ("b", "a") };
        std::thread::sleep(Duration::from_millis(300));
        let migration = lab.attempt("www", from, to, &["--forward"])?.success()?;
        interruptions.push(migration.interruption_ms);
    }
    std::thread::sleep(Duration::from_secs(1));
    clients.close_stdin();
    let requests: RequestsReport = clients.wait(LIMIT)?.success()?.json()?;
    if requests.failed > 0 || requests.answered < 100 {
        return Err(Error::Check(format!("{requests:?}")));
    }
    Ok(Busy { requests, interruptions })
}

fn run(plan: &BenchPlan) -> Result<Value> {
    let lab = Lab::start(&["a", "b", "c"])?;
    let count = plan.runs.unwrap_or(MOVES);
    let seen = moves(&lab, count);
    lab.down()?;
    let Busy { requests, interruptions } = seen?;
    let samples: Samples = interruptions.iter().copied().collect();
    println!(
        "{count} moves, none went back; {} requests, {} failed, the longest took {:.0} ms",
        requests.answered, requests.failed, requests.longest_ms
    );
    println!("{}\n{}", Distribution::HEADINGS, samples.row("interruption, ms"));
    Ok(json!({
        "moves": count,
        "answered": requests.answered,
        "failed": requests.failed,
        "longest_ms": requests.longest_ms,
        "interruptions_ms": interruptions,
    }))
}
