//! The demo: a container with clients over TCP and UDP moves from host `a` to host `b`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::error::{Context, Result};
use crate::lab::{LabBuilder, MigrationReport, Runtime};
use crate::latency_chart;
use crate::slowdown;
use crate::traffic::client_report::EchoReport;

/// The rate of each client in messages a second.
const RATE: f64 = 1000.0;
/// The time that the clients run before the migration, and again after it.
const AROUND: Duration = Duration::from_secs(1);
/// The time limit for the container to answer at first.
const START_LIMIT: Duration = Duration::from_secs(10);

/// The results of the demo.
#[derive(Debug, Serialize)]
pub struct Demo {
    /// The hosts' OCI runtime.
    pub runtime: Runtime,
    /// The report of agent-client.
    #[serde(flatten)]
    pub migration: MigrationReport,
    /// The report of the TCP client.
    pub tcp: EchoReport,
    /// The report of the UDP client.
    pub udp: EchoReport,
    /// The containers on the source afterwards.
    pub source_containers: Vec<String>,
    /// The containers on the destination afterwards.
    pub destination_containers: Vec<String>,
}

impl Demo {
    /// Returns why the demo has failed, if it has. The TCP connection must be intact, and the container must have
    /// moved.
    pub fn fault(&self) -> Option<String> {
        if let Some(fault) = self.tcp.fault() {
            return Some(format!("TCP: {fault}"));
        }
        if self.udp.received == 0 {
            return Some("UDP: not one reply".to_owned());
        }
        if !self.source_containers.is_empty() {
            return Some(format!("the source still has {}", self.source_containers.join(", ")));
        }
        if self.destination_containers != ["web"] {
            return Some(format!("the destination has {:?}", self.destination_containers));
        }
        None
    }

    /// Formats the results as a table.
    pub fn table(&self) -> String {
        let mut lines = vec!["step                              ms".to_owned()];
        let row = |name: &str, ms: f64| format!("{name:<26}{ms:>10.1}");
        lines.extend(self.migration.steps.iter().map(|step| row(&step.name, step.ms)));
        lines.push(row("total", self.migration.total_ms));
        lines.push(row("interruption", self.migration.interruption_ms));
        lines.push(String::new());
        lines.push(format!(
            "{:8}{:>9}{:>10}{:>7}{:>11}{:>10}{:>8}{:>13}{:>13}",
            "client",
            "sent",
            "received",
            "lost",
            "duplicated",
            "reordered",
            "resets",
            "longest gap",
            "longest rtt"
        ));
        for (name, seen) in [("TCP", &self.tcp), ("UDP", &self.udp)] {
            lines.push(format!(
                "{name:8}{:>9}{:>10}{:>7}{:>11}{:>10}{:>8}{:>10.1} ms{:>10.1} ms",
                seen.sent,
                seen.received,
                seen.lost,
                seen.duplicated,
                seen.reordered,
                seen.resets,
                seen.max_gap_ms,
                seen.max_rtt_ms
            ));
        }
        lines.push(String::new());
        lines.push(format!(
            "runtime {}, tunnel {}, packet queue {}",
            self.runtime.name(),
            self.migration.tunnel,
            self.migration.queue
        ));
        lines.join("\n")
    }
}

/// Runs the demo and reports its progress on standard error. Writes a drawing of the clients' latencies to `svg`.
///
/// # Errors
/// The lab could not be started, the migration failed, or the drawing could not be written.
pub fn run(runtime: Runtime, svg: Option<&Path>) -> Result<Demo> {
    let lab = LabBuilder::new(&["a", "b", "c"]).runtime(runtime).start()?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    eprintln!("lab up: a {}, b {}, c {}", a.address(), b.address(), c.address());
    a.podman(
        "run --detach --name web --publish 7000:7000/tcp --publish 7000:7000/udp probe:1"
            .split(' '),
    )?;
    let server = a.port(7000);
    c.probe().wait_for_echo(server, START_LIMIT)?;
    lab.serve("b")?;
    let rate = slowdown::rate(RATE);
    let tcp = c.probe().tcp_echo(server).rate(rate).latencies(svg.is_some()).start()?;
    let udp = c.probe().udp_echo(server).rate(rate).latencies(svg.is_some()).start()?;
    eprintln!(
        "container web runs on a; TCP and UDP clients on c, {rate:.0} messages a second each"
    );
    std::thread::sleep(AROUND);
    let migration = match lab.migrate("web", "a", "b") {
        Ok(migration) => migration,
        Err(error) => {
            eprint!("{}", lab.diagnosis());
            return Err(error);
        }
    };
    eprintln!("container web moved to b");
    let (mut tcp, mut udp) = (tcp.stop_after(AROUND)?, udp.stop_after(Duration::ZERO)?);
    if let Some(path) = svg {
        fs::write(path, latency_chart::draw(&tcp, &udp))
            .context(|| format!("writing {}", path.display()))?;
        // The JSON has thousands of them otherwise.
        tcp.latencies.clear();
        udp.latencies.clear();
    }
    let names = |listed: String| listed.lines().map(str::to_owned).collect();
    let list = ["ps", "--format", "{{.Names}}"];
    let demo = Demo {
        runtime,
        migration,
        tcp,
        udp,
        source_containers: names(a.podman(list)?),
        destination_containers: names(b.podman(list)?),
    };
    if demo.fault().is_some() {
        eprint!("{}", lab.diagnosis());
    }
    lab.down()?;
    Ok(demo)
}
