//! Starts and stops traffic clients on lab hosts and returns their reports.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::programs::PROBE;
use crate::slowdown;
use crate::traffic::client_report::{
    BulkReport, Direction, EchoReport, ServerStats, ValuesReport, WireReport,
};

/// The time limit for the first reply to come.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// The default time that a client goes on before it is stopped, so that its report shows the state after the test.
const TAIL: Duration = Duration::from_secs(1);
/// The time limit for a client to write or to read all values of a redis.
const FILL_LIMIT: Duration = Duration::from_secs(300);
/// The time limit for a client to end. It waits for missing replies.
const END_LIMIT: Duration = Duration::from_secs(60);

/// Starts traffic clients on one host.
#[derive(Debug, Clone, Copy)]
pub struct Prober<'a> {
    host: &'a Host,
}

impl Host {
    /// Starts traffic clients on this host.
    pub fn probe(&self) -> Prober<'_> {
        Prober::new(self)
    }
}

impl<'a> Prober<'a> {
    pub(crate) fn new(host: &'a Host) -> Self {
        Self { host }
    }

    /// Prepares a TCP echo client.
    pub fn tcp_echo(self, server: SocketAddr) -> EchoClient<'a> {
        EchoClient::new(self.host, "tcp-echo", server)
    }

    /// Prepares a UDP echo client.
    pub fn udp_echo(self, server: SocketAddr) -> EchoClient<'a> {
        EchoClient::new(self.host, "udp-echo", server)
    }

    /// Prepares a bulk transfer.
    pub fn bulk(self, server: SocketAddr, direction: Direction) -> BulkClient<'a> {
        BulkClient { host: self.host, server, direction, bytes: 0, rate_limit: 0, patience: 20 }
    }

    /// Starts a capture of the packets that arrive from a server.
    ///
    /// # Errors
    /// The program could not be started.
    pub fn wire(self, server: SocketAddr) -> Result<WireRun> {
        let mut process = self.host.command(PROBE).args(["wire", &server.to_string()]).spawn()?;
        process.wait_for("ready", READY_LIMIT)?;
        Ok(WireRun { process })
    }

    /// Asks a server's control port for its counters.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn stats(self, control: SocketAddr) -> Result<ServerStats> {
        self.host.command(PROBE).args(["stats", &control.to_string()]).run()?.json()
    }

    /// Fills redis with values and starts to ask for them and to change them, 1,000 times a second. Returns when redis is
    /// filled.
    ///
    /// # Errors
    /// The program could not be started, or redis could not be filled.
    pub fn redis_values(self, server: SocketAddr, mebibytes: u32) -> Result<ValuesRun> {
        let words = ["values", &server.to_string(), "--until-stdin-closes"];
        let size = ["--mebibytes", &mebibytes.to_string()];
        let mut process = self.host.command(PROBE).args(words).args(size).spawn()?;
        process.wait_for("ready", FILL_LIMIT)?;
        Ok(ValuesRun { process })
    }

    /// Waits until a TCP echo server answers a new connection.
    ///
    /// # Errors
    /// No echo came within `limit`.
    pub fn wait_for_echo(self, server: SocketAddr, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + slowdown::limit(limit);
        loop {
            let once = ["--seconds", "0", "--rate", "1000", "--drain", "1"];
            let output = self
                .host
                .command(PROBE)
                .args(["tcp-echo", &server.to_string()])
                .args(once)
                .output()?;
            if output.json::<EchoReport>().is_ok_and(|report| report.fault().is_none()) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::Check(format!(
                    "no echo from {server} to host {}: {}{}",
                    self.host.name(),
                    output.error_text(),
                    output.text()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// An echo client that has not been started.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until start is called"]
pub struct EchoClient<'a> {
    host: &'a Host,
    action: &'static str,
    server: SocketAddr,
    rate: f64,
    connections: u32,
    idle: u32,
    size: Option<u32>,
    latencies: bool,
}

impl<'a> EchoClient<'a> {
    fn new(host: &'a Host, action: &'static str, server: SocketAddr) -> Self {
        Self {
            host,
            action,
            server,
            rate: 1000.0,
            connections: 1,
            idle: 0,
            size: None,
            latencies: false,
        }
    }

    /// Sets the messages a second over all connections together. The default is 1,000.
    pub fn rate(mut self, rate: f64) -> Self {
        self.rate = rate;
        self
    }

    /// Sets the number of connections or flows that share the rate. The default is 1.
    pub fn connections(mut self, connections: u32) -> Self {
        self.connections = connections;
        self
    }

    /// Sets the number of further TCP connections that are idle until the end.
    pub fn idle(mut self, idle: u32) -> Self {
        self.idle = idle;
        self
    }

    /// Sets the size of a message in bytes.
    pub fn size(mut self, size: u32) -> Self {
        self.size = Some(size);
        self
    }

    /// Sets whether the client reports the round-trip time of each message. The default is not to.
    pub fn latencies(mut self, latencies: bool) -> Self {
        self.latencies = latencies;
        self
    }

    /// Starts the client. Returns when all connections are open and the first reply has come.
    ///
    /// # Errors
    /// The client could not be started, or no reply came in time.
    pub fn start(self) -> Result<EchoRun> {
        let mut command = self
            .host
            .command(PROBE)
            .args([self.action, &self.server.to_string(), "--until-stdin-closes"])
            .args(["--rate", &self.rate.to_string()])
            .args(["--connections", &self.connections.to_string()])
            .args(["--idle", &self.idle.to_string()]);
        if let Some(size) = self.size {
            command = command.args(["--size", &size.to_string()]);
        }
        if self.latencies {
            command = command.args(["--latencies"]);
        }
        let mut process = command.spawn()?;
        process.wait_for("ready", READY_LIMIT)?;
        Ok(EchoRun { process })
    }
}

/// An echo client that is running.
#[derive(Debug)]
pub struct EchoRun {
    process: HostProcess,
}

impl EchoRun {
    /// Stops the client after another second and returns its report.
    ///
    /// # Errors
    /// The client failed, or its output is not a report.
    pub fn stop(self) -> Result<EchoReport> {
        self.stop_after(TAIL)
    }

    /// Stops the client after `tail` and returns its report.
    ///
    /// # Errors
    /// As for [`EchoRun::stop`].
    pub fn stop_after(mut self, tail: Duration) -> Result<EchoReport> {
        std::thread::sleep(tail);
        self.process.close_stdin();
        self.process.wait(END_LIMIT)?.success()?.json()
    }

    /// Returns whether the client still runs. It ends by itself when all connections have ended.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }
}

/// A client of redis that is running.
#[derive(Debug)]
pub struct ValuesRun {
    process: HostProcess,
}

impl ValuesRun {
    /// Ends the requests, has every value read, and returns the report.
    ///
    /// # Errors
    /// The client failed, or its output is not a report.
    pub fn stop(mut self) -> Result<ValuesReport> {
        self.process.close_stdin();
        self.process.wait(FILL_LIMIT)?.success()?.json()
    }
}

/// A bulk transfer that has not been started.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until start is called"]
pub struct BulkClient<'a> {
    host: &'a Host,
    server: SocketAddr,
    direction: Direction,
    bytes: u64,
    rate_limit: u64,
    patience: u64,
}

impl BulkClient<'_> {
    /// Sets the number of bytes. The default is to transfer until stopped.
    pub fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = bytes;
        self
    }

    /// Sets the bytes a second. The default is no limit.
    pub fn rate_limit(mut self, rate_limit: u64) -> Self {
        self.rate_limit = rate_limit;
        self
    }

    /// Sets the seconds without progress after which the client gives up. The default is 20.
    pub fn patience(mut self, patience: u64) -> Self {
        self.patience = patience;
        self
    }

    /// Starts the transfer. Returns when the first bytes have arrived.
    ///
    /// # Errors
    /// The client could not be started, or no bytes arrived in time.
    pub fn start(self) -> Result<BulkRun> {
        let direction = match self.direction {
            Direction::Up => "up",
            Direction::Down => "down",
        };
        let mut process = self
            .host
            .command(PROBE)
            .args(["bulk", &self.server.to_string(), "--until-stdin-closes"])
            .args(["--direction", direction])
            .args(["--bytes", &self.bytes.to_string()])
            .args(["--rate-limit", &self.rate_limit.to_string()])
            .args(["--patience", &self.patience.to_string()])
            .spawn()?;
        process.wait_for("ready", READY_LIMIT)?;
        Ok(BulkRun { process })
    }
}

/// A bulk transfer under way.
#[derive(Debug)]
pub struct BulkRun {
    process: HostProcess,
}

impl BulkRun {
    /// Stops the transfer after another second and returns its report.
    ///
    /// # Errors
    /// The client failed, or its output is not a report.
    pub fn stop(mut self) -> Result<BulkReport> {
        std::thread::sleep(TAIL);
        self.process.close_stdin();
        self.finish(END_LIMIT)
    }

    /// Waits until all bytes have arrived and returns the report.
    ///
    /// # Errors
    /// The client did not end within `limit`, failed, or its output is not a report.
    pub fn finish(self, limit: Duration) -> Result<BulkReport> {
        self.process.wait(limit)?.success()?.json()
    }
}

/// A packet capture under way.
#[derive(Debug)]
pub struct WireRun {
    process: HostProcess,
}

impl WireRun {
    /// Ends the capture and returns its report.
    ///
    /// # Errors
    /// The program failed, or its output is not a report.
    pub fn stop(mut self) -> Result<WireReport> {
        self.process.close_stdin();
        self.process.wait(END_LIMIT)?.success()?.json()
    }
}
