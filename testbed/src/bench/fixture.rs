//! The fixture of the benchmarks: a container on host `a`, clients on host `c`, a migration to host `b`, and the
//! clients' reports of it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::distribution::Samples;
use crate::error::{Context, Error, Result, chain};
use crate::host::Host;
use crate::lab::{Lab, LabBuilder, MigrationReport, Runtime};
use crate::probe::EchoRun;
use crate::traffic::client_report::{EchoReport, Gap};

/// The rate of each client in messages a second, unless a benchmark varies it.
pub(super) const RATE: f64 = 1000.0;
/// The time that the clients run before and after a measurement.
pub(super) const AROUND: Duration = Duration::from_millis(500);
/// The time limit for a container to answer at first.
pub(super) const START_LIMIT: Duration = Duration::from_secs(20);
/// The parts of an interruption, in the order in which they happen.
pub(super) const PARTS: [&str; 11] = [
    "hold", "drain", "freeze", "block", "dump", "transfer", "entries", "restore", "compare",
    "commit", "release",
];
/// The container's name.
pub(super) const NAME: &str = "web";

/// Starts a lab with a source `a`, a destination `b` and a host `c` for clients.
pub(super) fn lab() -> Result<Lab> {
    let lab = LabBuilder::new(&["a", "b", "c"]).start()?;
    lab.serve("b")?;
    Ok(lab)
}

/// Returns the median of each part of the interruption.
pub(super) fn parts<'a>(
    reports: impl IntoIterator<Item = &'a MigrationReport, IntoIter: Clone>,
) -> BTreeMap<&'static str, f64> {
    let reports = reports.into_iter();
    let of = |part: &str| -> Samples {
        reports.clone().map(|r| r.parts_ms.get(part).copied().unwrap_or_default()).collect()
    };
    PARTS.into_iter().map(|part| (part, of(part).median())).collect()
}

/// Prints the diagnosis of a lab if `outcome` is an error. Returns `outcome`.
pub(super) fn diagnosed<T>(lab: &Lab, outcome: Result<T>) -> Result<T> {
    if outcome.is_err() {
        eprint!("{}", lab.diagnosis());
    }
    outcome
}

/// The failed measurements. The benchmark reports them and goes on with the next one.
#[derive(Debug, Default)]
pub(super) struct Failures {
    all: Vec<String>,
    in_a_row: usize,
}

impl Failures {
    /// The number of failures in a row that ends the benchmark.
    const LIMIT: usize = 5;

    /// Returns the result of a measurement. If it failed, records that and prepares the hosts for the next one.
    ///
    /// # Errors
    /// [`Failures::LIMIT`] measurements have failed in a row.
    pub(super) fn survive<T>(
        &mut self,
        lab: &Lab,
        what: &str,
        outcome: Result<T>,
    ) -> Result<Option<T>> {
        let error = match outcome {
            Ok(value) => {
                self.in_a_row = 0;
                return Ok(Some(value));
            }
            Err(error) => error,
        };
        eprintln!("{what} failed: {}", chain(&error));
        self.all.push(format!("{what}: {}", chain(&error)));
        self.in_a_row += 1;
        if self.in_a_row >= Self::LIMIT {
            return Err(error);
        }
        for host in ["a", "b"].map(|name| lab.host(name)) {
            let host = host?;
            host.podman(["rm", "--all", "--force", "--time", "0"])?;
            remove_criu_options(host)?;
        }
        Ok(None)
    }

    /// Prints the failures and returns them as JSON.
    pub(super) fn tell(&self) -> Value {
        if !self.all.is_empty() {
            println!("\n{} measurements failed:", self.all.len());
        }
        for failure in &self.all {
            println!("  {failure}");
        }
        json!(self.all)
    }
}

/// Starts a container on a host, with echo at `port` (TCP and UDP) and bulk transfers at the port after it. `serve`
/// has further arguments of the server. Returns its address when it answers `far`.
pub(super) fn start(
    host: &Host,
    far: &Host,
    runtime: Runtime,
    name: &str,
    port: u16,
    serve: &[&str],
) -> Result<SocketAddr> {
    let (tcp, bulk) = (format!("{port}:7000/tcp"), format!("{}:7001/tcp", port + 1));
    let udp = format!("{port}:7000/udp");
    let mut words = vec!["--runtime", runtime.name(), "run", "--detach", "--name", name];
    words.extend(["--publish", &tcp, "--publish", &bulk, "--publish", &udp]);
    words.extend(["probe:1", "netmig-probe", "serve"]);
    words.extend(serve);
    host.podman(words)?;
    let server = host.port(port);
    far.probe().wait_for_echo(server, START_LIMIT)?;
    Ok(server)
}

/// Removes a container of a host.
pub(super) fn remove(host: &Host, name: &str) -> Result<()> {
    host.podman(["rm", "--force", "--time", "0", name]).map(drop)
}

/// The files from which CRIU, crun and runc read options. The product brings its own options and ignores these files.
const CRIU_OPTIONS: [&str; 3] =
    ["/etc/criu/default.conf", "/etc/criu/crun.conf", "/etc/criu/runc.conf"];

/// Sets CRIU's options on a host, for measurements without the product. Each line is one option.
pub(super) fn set_criu_options(host: &Host, options: &str) -> Result<()> {
    CRIU_OPTIONS.iter().try_for_each(|file| host.write(file, options))
}

/// Removes CRIU's options from a host. Absent files are not an error.
pub(super) fn remove_criu_options(host: &Host) -> Result<()> {
    CRIU_OPTIONS
        .iter()
        .try_for_each(|file| match fs::remove_file(host.path(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .context(|| format!("removing CRIU's options on host {}", host.name()))
}

/// The default clients: one TCP connection and one UDP flow.
#[derive(Debug)]
pub(super) struct Clients {
    tcp: EchoRun,
    udp: EchoRun,
}

impl Clients {
    /// Starts the clients on a host and waits for [`AROUND`].
    pub(super) fn start(host: &Host, server: SocketAddr) -> Result<Self> {
        let tcp = host.probe().tcp_echo(server).rate(RATE).start()?;
        let udp = host.probe().udp_echo(server).rate(RATE).start()?;
        std::thread::sleep(AROUND);
        Ok(Self { tcp, udp })
    }

    /// Stops the clients after [`AROUND`]. Returns the reports of the TCP and the UDP client.
    pub(super) fn stop(self) -> Result<(EchoReport, EchoReport)> {
        Ok((self.tcp.stop_after(AROUND)?, self.udp.stop_after(Duration::ZERO)?))
    }
}

/// A time window by the wall clock, which all lab hosts share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    from_ns: u64,
    to_ns: u64,
}

impl Window {
    /// Runs `action` and returns its window.
    pub(super) fn around<T>(action: impl FnOnce() -> T) -> (Self, T) {
        let from_ns = now_ns();
        let outcome = action();
        (Self { from_ns, to_ns: now_ns() }, outcome)
    }

    /// Returns whether a moment, in nanoseconds since the Unix epoch, lies in this window.
    pub(super) fn contains(self, unix_ns: u64) -> bool {
        (self.from_ns..self.to_ns).contains(&unix_ns)
    }

    /// Returns whether a moment comes before this window.
    pub(super) fn is_before(self, unix_ns: u64) -> bool {
        unix_ns < self.from_ns
    }

    /// Returns the longest gap that overlaps this window, in milliseconds; 0 if there is none. Gaps outside have
    /// other causes.
    pub(super) fn longest(self, gaps: &[Gap]) -> f64 {
        let overlaps = |gap: &&Gap| {
            let end = gap.at_unix_ns + (gap.ms * 1e6) as u64;
            gap.at_unix_ns < self.to_ns && end > self.from_ns
        };
        gaps.iter().filter(overlaps).map(|gap| gap.ms).fold(0.0, f64::max)
    }
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// A migration and the clients' reports.
#[derive(Debug, Clone)]
pub(super) struct Moved {
    /// The report of agent-client.
    pub(super) report: MigrationReport,
    /// The report of the TCP client.
    pub(super) tcp: EchoReport,
    /// The report of the UDP client.
    pub(super) udp: EchoReport,
    /// The longest silence on the TCP connection during the migration, in milliseconds.
    pub(super) tcp_gap: f64,
    /// The longest silence on the UDP flow during the migration, in milliseconds.
    pub(super) udp_gap: f64,
}

/// Migrates a fresh container under the default clients, and removes it.
pub(super) fn move_once(lab: &Lab, runtime: Runtime) -> Result<Moved> {
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let server = start(a, c, runtime, NAME, 7000, &[])?;
    let clients = Clients::start(c, server)?;
    let (window, report) = Window::around(|| lab.migrate(NAME, "a", "b"));
    let report = report?;
    let (tcp, udp) = clients.stop()?;
    remove(b, NAME)?;
    if let Some(fault) = tcp.fault() {
        return Err(Error::Check(format!("the TCP connection did not stay whole: {fault}")));
    }
    check_parts(&report)?;
    let (tcp_gap, udp_gap) = (window.longest(&tcp.gaps), window.longest(&udp.gaps));
    Ok(Moved { report, tcp, udp, tcp_gap, udp_gap })
}

/// Checks that the parts of an interruption add up to it within a tenth.
fn check_parts(report: &MigrationReport) -> Result<()> {
    let sum: f64 = PARTS.iter().filter_map(|part| report.parts_ms.get(*part)).sum();
    if (sum - report.interruption_ms).abs() <= report.interruption_ms / 10.0 {
        return Ok(());
    }
    Err(Error::Check(format!(
        "the parts of the interruption add up to {sum:.1} ms, the whole is {:.1} ms",
        report.interruption_ms
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_gaps_during_the_window_count() {
        let window = Window { from_ns: 1_000_000_000, to_ns: 2_000_000_000 };
        let gap = |at_ms: u64, ms: f64| Gap { at_unix_ns: at_ms * 1_000_000, ms };
        assert_eq!(window.longest(&[gap(100, 800.0), gap(2000, 900.0)]), 0.0);
        assert_eq!(window.longest(&[gap(100, 950.0), gap(1500, 20.0)]), 950.0);
        assert_eq!(window.longest(&[gap(1500, 20.0), gap(1990, 30.0), gap(3000, 99.0)]), 30.0);
    }

    #[test]
    fn parts_that_do_not_add_up_are_refused() {
        let text = r#"{"total_ms":1,"interruption_ms":100,"steps":[],"parts_ms":{"dump":85}}"#;
        let mut report: MigrationReport = serde_json::from_str(text).unwrap();
        assert!(check_parts(&report).is_err());
        report.parts_ms.insert("hold".to_owned(), 6.0);
        check_parts(&report).unwrap();
    }
}
