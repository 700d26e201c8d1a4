//! The interruption by the number of open connections, and the floor, in which CRIU needs time for every socket.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::distribution::Samples;
use super::fixture::{self, AROUND, NAME, RATE, START_LIMIT, Window};
use super::floor::{self, Floor};
use super::{Bench, BenchPlan, chosen};
use crate::error::{Error, Result, chain};
use crate::host::Host;
use crate::lab::{Lab, MigrationReport, Runtime};
use crate::probe::EchoRun;

pub(super) const BENCH: Bench = Bench {
    name: "flows",
    about: "interruption with 1, 1,000, 10,000 and 30,000 open TCP connections",
    run,
};

const RUNS: u32 = 5;
const COUNTS: [u32; 4] = [1, 1_000, 10_000, 30_000];
/// The ports of the two servers. One process may not have enough descriptors for all connections.
const PORTS: [u16; 2] = [7000, 7100];
const SERVERS: &str = "netmig-probe serve --port 7100 --bulk-port 7101 & exec netmig-probe serve";
/// The range of client ports, instead of the kernel's 28,000 ports.
const CLIENT_PORTS: &str = "1024 65535";

#[derive(Default)]
struct Measured {
    interruption: Vec<f64>,
    gap: Vec<f64>,
    floor: Vec<Floor>,
    reports: Vec<MigrationReport>,
    /// Why the measurement ended early.
    failure: Option<String>,
}

impl Measured {
    /// Measures a migration and then the floor, each with a fresh container.
    fn round(&mut self, lab: &Lab, count: u32) -> Result<()> {
        let (report, gap) = move_with(lab, count)?;
        start(lab)?;
        let talk = || talk(lab.host("c")?, lab.host("a")?, count);
        let floor = floor::measure_running(lab, Runtime::Crun, floor::Restore::Whole, talk)?;
        self.interruption.push(report.interruption_ms);
        self.gap.push(gap);
        self.floor.push(floor);
        self.reports.push(report);
        Ok(())
    }
}

fn run(plan: &BenchPlan) -> Result<Value> {
    let runs = plan.runs.unwrap_or(RUNS).max(1);
    let lab = fixture::lab()?;
    lab.host("c")?.set_parameter("net/ipv4/ip_local_port_range", CLIENT_PORTS)?;
    let counts = chosen(&COUNTS, &[1], plan.only.as_deref())?;
    let mut all: Vec<Measured> = counts.iter().map(|_| Measured::default()).collect();
    let outcome = (0..runs).try_for_each(|round| {
        counts.iter().zip(&mut all).try_for_each(|(count, measured)| {
            eprintln!("round {} of {runs}, {count} connections", round + 1);
            if measured.failure.is_some() {
                return Ok(());
            }
            // A failure of one count does not end the benchmark.
            if let Err(error) = measured.round(&lab, *count) {
                measured.failure = Some(chain(&error));
                fixture::remove(lab.host("a")?, NAME)?;
                fixture::remove(lab.host("b")?, NAME)?;
            }
            Ok(())
        })
    });
    fixture::diagnosed(&lab, outcome)?;
    lab.down()?;
    println!(
        "{:>12}{:>17}{:>11}{:>11}{:>15}{:>22}",
        "connections",
        "interruption ms",
        "gap ms",
        "floor ms",
        "above floor",
        "above one connection"
    );
    let mut figures_of = serde_json::Map::new();
    let mut first = None;
    for (count, measured) in counts.iter().zip(all) {
        let floor = |part: fn(&Floor) -> f64| measured.floor.iter().map(part).collect::<Samples>();
        let [floor, dump, restore] =
            [floor(|floor| floor.whole), floor(|floor| floor.dump), floor(|floor| floor.restore)];
        let above: Samples =
            measured.interruption.iter().zip(&measured.floor).map(|(a, b)| a - b.whole).collect();
        let [interruption, gap]: [Samples; 2] =
            [measured.interruption, measured.gap].map(|v| v.into_iter().collect());
        if let Some(failure) = &measured.failure {
            println!("{count:>12}  failed: {failure}");
        }
        if interruption.is_empty() {
            figures_of.insert(count.to_string(), json!({ "failure": measured.failure }));
            continue;
        }
        let one = *first.get_or_insert(interruption.median());
        println!(
            "{count:>12}{:>17.1}{:>11.1}{:>11.1}{:>15.1}{:>22.1}",
            interruption.median(),
            gap.median(),
            floor.median(),
            above.median(),
            interruption.median() - one
        );
        let figures = json!({
            "interruption_ms": interruption.distribution(),
            "tcp_gap_ms": gap.distribution(),
            "floor_ms": floor.distribution(),
            "floor_parts_ms": { "dump": dump.median(), "restore": restore.median() },
            "parts_ms": fixture::parts(&measured.reports),
            "above_floor_ms": above.distribution(),
            "failure": measured.failure,
        });
        figures_of.insert(count.to_string(), figures);
    }
    Ok(json!({ "runs": runs, "connections": figures_of }))
}

/// Starts the container with both servers on `a`. Flushes conntrack first: with so many connections, the next ones
/// have the same ports as those of an earlier container.
fn start(lab: &Lab) -> Result<()> {
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    for host in lab.hosts() {
        host.run(["conntrack", "--flush"])?;
    }
    let words = ["--runtime", "crun", "run", "--detach", "--name", NAME];
    let ports = ["--publish", "7000:7000/tcp", "--publish", "7100:7100/tcp"];
    let command = ["probe:1", "sh", "-c", SERVERS];
    a.podman(words.into_iter().chain(ports).chain(command))?;
    PORTS.iter().try_for_each(|port| c.probe().wait_for_echo(a.port(*port), START_LIMIT))
}

/// Opens `count` connections. One of them carries messages.
fn talk(far: &Host, host: &Host, count: u32) -> Result<Vec<EchoRun>> {
    let [first, second]: [SocketAddr; 2] = PORTS.map(|port| host.port(port));
    let half = count / 2;
    let mut runs = Vec::new();
    if half > 0 {
        let idle = half - 1;
        runs.push(far.probe().tcp_echo(second).rate(1.0).idle(idle).start()?);
    }
    let idle = count - half - 1;
    runs.push(far.probe().tcp_echo(first).rate(RATE).idle(idle).start()?);
    std::thread::sleep(AROUND);
    Ok(runs)
}

/// Migrates the container with `count` connections. Returns the report and the silence on the connection with
/// messages in milliseconds.
fn move_with(lab: &Lab, count: u32) -> Result<(MigrationReport, f64)> {
    start(lab)?;
    let runs = talk(lab.host("c")?, lab.host("a")?, count)?;
    let (window, attempt) =
        Window::around(|| lab.attempt(NAME, "a", "b", &["--max-interruption", "60"]));
    let report = attempt?.success()?;
    let mut gap = 0.0;
    for run in runs {
        let seen = run.stop_after(AROUND)?;
        if let Some(fault) = seen.fault() {
            return Err(Error::Check(format!("with {count} connections: {fault}")));
        }
        gap = window.longest(&seen.gaps);
    }
    fixture::remove(lab.host("b")?, NAME)?;
    Ok((report, gap))
}
