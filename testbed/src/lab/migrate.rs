//! Runs migrations in the lab by the product's command lines.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::Lab;
use crate::error::{Error, Result};
use crate::host::host_process::HostProcess;
use crate::subprocess::Output;

/// The time limit for a server to open its port.
const SERVER_LIMIT: Duration = Duration::from_secs(10);
/// The time limit for a server to end when it is told to.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// The time limit for a migration.
const LIMIT: Duration = Duration::from_secs(90);
/// What a server writes to its log when its port is open.
const LISTENING: &str = "listening on";
/// What a server writes to its log when it also answers. podman's first run on a host may take long.
const READY: &str = "ready for other hosts";

/// A step of a migration and how long it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// The time that it took, in milliseconds.
    pub ms: f64,
    /// The number of bytes that it moved.
    #[serde(default)]
    pub bytes: u64,
    /// The number of bytes that these were on the way.
    #[serde(default)]
    pub sent: u64,
}

/// Flows that were moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCount {
    /// TCP connections.
    pub tcp: u64,
    /// UDP flows.
    pub udp: u64,
}

/// An address that the container got instead of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewAddress {
    /// The address at the source.
    pub from: IpAddr,
    /// The address at the destination.
    pub to: IpAddr,
}

/// How memory got to the destination.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryFigures {
    /// Bytes of each round.
    #[serde(default)]
    pub rounds: Vec<u64>,
    /// Bytes that were sent while the container was frozen.
    #[serde(default)]
    pub rest: u64,
    /// The longest time for which the container was stopped in a round, in milliseconds.
    #[serde(default)]
    pub longest_stop_ms: f64,
    /// The fewest processors that the container was left, if it was slowed down.
    #[serde(default)]
    pub least_processors: Option<f64>,
}

/// The output of `agent-client migrate --json` after a successful migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MigrationReport {
    /// `moved`, or `moved-with-leftovers`.
    #[serde(default)]
    pub outcome: String,
    /// The time from the start to the end, in milliseconds.
    pub total_ms: f64,
    /// The time from the first held packet to the first released one, in milliseconds.
    #[serde(default)]
    pub interruption_ms: f64,
    /// The same as it was expected before, in milliseconds.
    #[serde(default)]
    pub forecast_ms: f64,
    /// The steps in order.
    pub steps: Vec<Step>,
    /// The parts of the interruption, in milliseconds.
    #[serde(default)]
    pub parts_ms: BTreeMap<String, f64>,
    /// Flows that were moved.
    #[serde(default)]
    pub flows: FlowCount,
    /// The number of bytes of checkpoint images.
    #[serde(default)]
    pub checkpoint_bytes: u64,
    /// How memory got to the destination.
    #[serde(default)]
    pub memory: MemoryFigures,
    /// Kind of the tunnel.
    #[serde(default)]
    pub tunnel: String,
    /// Kind of the packet queue.
    #[serde(default)]
    pub queue: String,
    /// The addresses that differ at the destination.
    #[serde(default)]
    pub readdressed: Vec<NewAddress>,
    /// The warnings.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// The result of `agent-client migrate`, successful or not.
#[derive(Debug)]
pub struct Attempt {
    /// The exit code of `agent-client`; `None` after a signal.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it ran.
    pub elapsed: Duration,
    output: Output,
}

impl Attempt {
    fn new(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: output.text(),
            stderr: output.error_text(),
            elapsed: output.elapsed,
            output,
        }
    }

    /// Parses the report of a successful migration.
    ///
    /// # Errors
    /// The migration failed, or its output is not a report.
    pub fn success(self) -> Result<MigrationReport> {
        self.output.success()?.json()
    }

    /// Parses the standard output as JSON.
    ///
    /// # Errors
    /// The output is not JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        self.output.json()
    }
}

impl Lab {
    /// Migrates a container. Starts the server on the destination if it does not run.
    ///
    /// # Errors
    /// The migration failed in any way.
    pub fn migrate(&self, container: &str, from: &str, to: &str) -> Result<MigrationReport> {
        self.serve(to)?;
        self.attempt(container, from, to, &[])?.success()
    }

    /// Runs `agent-client migrate CONTAINER DESTINATION --json ARGUMENTS…` on host `from`. Starts no server. A failed
    /// migration is not an error.
    ///
    /// # Errors
    /// The program could not be started or did not end.
    pub fn attempt(
        &self,
        container: &str,
        from: &str,
        destination: &str,
        arguments: &[&str],
    ) -> Result<Attempt> {
        self.attempt_by(&["agent-client"], container, from, destination, arguments)
    }

    /// Like [`Lab::attempt`], with a command line that runs the program.
    ///
    /// # Errors
    /// It could not be run, or took too long.
    pub fn attempt_by(
        &self,
        line: &[&str],
        container: &str,
        from: &str,
        destination: &str,
        arguments: &[&str],
    ) -> Result<Attempt> {
        let (program, words) = line.split_first().unwrap_or((&"agent-client", &[]));
        let output = self
            .host(from)?
            .command(program)
            .args(words)
            .args(["migrate", container, destination, "--json"])
            .args(arguments)
            .env("NETMIG_LOG", "debug")
            .limit(LIMIT)
            .output()?;
        let log = self.host(from)?.log_path("agent-client", "err");
        // The log only helps to diagnose a failure, so an error here does not matter.
        let _ = std::fs::write(log, &output.stderr);
        Ok(Attempt::new(output))
    }

    /// Starts `agent-server` on a host, unless it runs there, and pairs every other host of the lab with it.
    ///
    /// # Errors
    /// The server did not open its port, or hosts could not be paired.
    pub fn serve(&self, host: &str) -> Result<()> {
        self.serve_with(host, &[])?;
        for other in self.hosts() {
            if other.name() != host {
                self.pair(other.name(), host)?;
            }
        }
        Ok(())
    }

    /// Starts `agent-server` with arguments on a host, unless it runs there, and pairs no host.
    ///
    /// # Errors
    /// The server did not open its port.
    pub fn serve_with(&self, host: &str, arguments: &[&str]) -> Result<()> {
        let mut servers = self.servers();
        if servers.get_mut(host).is_some_and(HostProcess::is_running) {
            return Ok(());
        }
        let mut server = self
            .host(host)?
            .command("agent-server")
            .args(arguments)
            .env("NETMIG_LOG", "debug")
            .spawn()?;
        server.wait_for(LISTENING, SERVER_LIMIT)?;
        servers.insert(host.to_owned(), server);
        Ok(())
    }

    /// Ends the server of a host by a signal and returns its log.
    ///
    /// # Errors
    /// No server was started there, or it did not end.
    pub fn stop_server(&self, host: &str, signal: Signal) -> Result<String> {
        let Some(mut server) = self.servers().remove(host) else {
            return Err(Error::Refused(format!("no agent-server was started on host {host}")));
        };
        server.signal(signal)?;
        Ok(server.wait(STOP_LIMIT)?.error_text())
    }

    /// Returns what the server of a host wrote to its log so far.
    pub fn server_log(&self, host: &str) -> String {
        self.servers().get(host).map(HostProcess::stderr).unwrap_or_default()
    }

    /// Returns the process ID of a host's server in this machine's PID namespace.
    pub fn server_pid(&self, host: &str) -> Option<i32> {
        self.servers().get(host).map(HostProcess::pid)
    }

    /// Pairs a source with a destination whose server runs, by `invite` and `join`, unless they are paired.
    ///
    /// # Errors
    /// One of the commands failed.
    pub fn pair(&self, source: &str, destination: &str) -> Result<()> {
        let pair = (source.to_owned(), destination.to_owned());
        let mut pairs = self.pairs.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if pairs.contains(&pair) {
            return Ok(());
        }
        if let Some(server) = self.servers().get_mut(destination) {
            server.wait_for(READY, SERVER_LIMIT)?;
        }
        let token = self.host(destination)?.run(["agent-server", "invite", "--once"])?;
        self.host(source)?.run(["agent-client", "join", &token])?;
        pairs.insert(pair);
        Ok(())
    }

    pub(super) fn servers(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, HostProcess>> {
        self.servers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_needs_only_times_and_steps_and_may_have_more() {
        let text = r#"{"total_ms":1.5,"steps":[{"name":"dump","ms":1.0,"bytes":7}],"more":true}"#;
        let report: MigrationReport = serde_json::from_str(text).unwrap();
        assert_eq!(report.steps, [Step { name: "dump".to_owned(), ms: 1.0, bytes: 7, sent: 0 }]);
        assert!(serde_json::from_str::<MigrationReport>(r#"{"outcome":"refused"}"#).is_err());
    }
}
