//! The container that most tests migrate, and its clients.

use std::net::SocketAddr;
use std::time::Duration;

use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::probe::EchoRun;
use crate::slowdown;
use crate::traffic::client_report::EchoReport;

/// The time limit for a fresh container to answer.
const ANSWERS: Duration = Duration::from_secs(10);
/// The rate of each client in messages a second.
const RATE: f64 = 1000.0;
/// The rates of gentle clients, TCP and UDP. The default receive buffer takes their messages of an interruption of
/// some seconds, as it occurs on a busy machine.
const GENTLE: [f64; 2] = [200.0, 20.0];

/// Starts the probe server on `host` with its echo service at `port` (TCP and UDP) and its bulk
/// service at the port after it, and waits until `client` gets an echo.
pub(super) fn serve(
    host: &Host,
    name: &str,
    port: u16,
    arguments: &[&str],
    client: &Host,
) -> Result<()> {
    let command = [&["probe:1", "netmig-probe", "serve"][..], arguments].concat();
    serve_by(host, name, port, &[], &command, client)
}

/// Like [`serve`], with options of `podman run`, and the image and command of the server.
pub(super) fn serve_by(
    host: &Host,
    name: &str,
    port: u16,
    options: &[&str],
    command: &[&str],
    client: &Host,
) -> Result<()> {
    let tcp = format!("{port}-{}:7000-7001/tcp", port + 1);
    let udp = format!("{port}:7000/udp");
    let start = ["run", "--detach", "--name", name, "--publish", &tcp, "--publish", &udp];
    host.podman([&start, options, command].concat())?;
    client.probe().wait_for_echo(host.port(port), ANSWERS)
}

/// A TCP and a UDP client at 1,000 messages a second each, whose every message is accounted for.
pub(super) struct Clients {
    tcp: EchoRun,
    udp: EchoRun,
    rates: [f64; 2],
}

impl Clients {
    /// Starts both clients and returns when both have received a reply.
    pub(super) fn start(client: &Host, server: SocketAddr) -> Result<Self> {
        Self::start_at(client, server, [RATE; 2])
    }

    /// Starts both clients at rates at which no datagram is lost to a full buffer, even on a busy machine.
    pub(super) fn gentle(client: &Host, server: SocketAddr) -> Result<Self> {
        Self::start_at(client, server, GENTLE)
    }

    fn start_at(client: &Host, server: SocketAddr, rates: [f64; 2]) -> Result<Self> {
        let rates = rates.map(slowdown::rate);
        Ok(Self {
            tcp: client.probe().tcp_echo(server).rate(rates[0]).start()?,
            udp: client.probe().udp_echo(server).rate(rates[1]).start()?,
            rates,
        })
    }

    /// Stops the clients after another second. Checks that nothing was lost, duplicated or reset.
    pub(super) fn stop(self) -> Result<Seen> {
        self.stop_losing(0)
    }

    /// Like [`Clients::stop`], where at most `datagrams` datagrams may be lost.
    pub(super) fn stop_losing(self, datagrams: u64) -> Result<Seen> {
        let (tcp, udp) = (self.tcp.stop()?, self.udp.stop_after(Duration::ZERO)?);
        for ((name, seen), rate) in [("TCP", &tcp), ("UDP", &udp)].into_iter().zip(self.rates) {
            let fault = seen.fault_beyond(if name == "UDP" { datagrams } else { 0 });
            ensure!(fault.is_none(), "{name}: {fault:?} of {seen:?}");
            // They run for a second after the migration, so this finds a client that stood still.
            ensure!(seen.sent > (rate * 0.9) as u64, "{name}: only {} messages", seen.sent);
        }
        Ok(Seen { tcp, udp })
    }
}

/// The reports of two clients that have noticed nothing but a pause.
pub(super) struct Seen {
    pub(super) tcp: EchoReport,
    pub(super) udp: EchoReport,
}

impl Seen {
    /// Formats the longest gaps for a remark.
    pub(super) fn gaps(&self) -> String {
        format!("gaps {:.0} and {:.0} ms", self.tcp.max_gap_ms, self.udp.max_gap_ms)
    }
}

/// Checks that the lines of a file begin with 0, 1, 2 and so on. Returns their number.
pub(super) fn numbered_lines(text: &str) -> Result<usize> {
    let wrong = (0..).zip(text.lines()).find(|(number, line)| {
        line.split_whitespace().next().is_none_or(|first| first != format!("{number}"))
    });
    ensure!(wrong.is_none(), "the sequence goes wrong at {wrong:?}");
    Ok(text.lines().count())
}
