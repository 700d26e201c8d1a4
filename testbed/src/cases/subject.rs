//! The container that most tests move, and the clients that talk to it meanwhile.

use std::net::SocketAddr;
use std::time::Duration;

use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::probe::EchoRun;
use crate::slowdown;
use crate::traffic::client_report::EchoReport;

/// How long a fresh container may take to answer.
const ANSWERS: Duration = Duration::from_secs(10);
/// Messages a second of each client.
const RATE: f64 = 1000.0;
/// The same of gentle ones, TCP and UDP: few enough for the kernel's default buffer of a socket to
/// take what comes in an interruption of some seconds, as there are on a busy machine.
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

/// The same with options of `podman run`, and the image and command that serve.
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
    /// Starts both and returns when both have had a reply.
    pub(super) fn start(client: &Host, server: SocketAddr) -> Result<Self> {
        Self::start_at(client, server, [RATE; 2])
    }

    /// The same at rates at which no datagram is lost to a full buffer on a busy machine either.
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

    /// Lets them go on for another second and checks that nothing was lost, sent twice, reset.
    pub(super) fn stop(self) -> Result<Seen> {
        self.stop_losing(0)
    }

    /// The same where so many datagrams at most may be lost.
    pub(super) fn stop_losing(self, datagrams: u64) -> Result<Seen> {
        let (tcp, udp) = (self.tcp.stop()?, self.udp.stop_after(Duration::ZERO)?);
        for ((name, seen), rate) in [("TCP", &tcp), ("UDP", &udp)].into_iter().zip(self.rates) {
            let fault = seen.fault_beyond(if name == "UDP" { datagrams } else { 0 });
            ensure!(fault.is_none(), "{name}: {fault:?} of {seen:?}");
            // They run for a second after whatever happened: a client that stood still shows.
            ensure!(seen.sent > (rate * 0.9) as u64, "{name}: only {} messages", seen.sent);
        }
        Ok(Seen { tcp, udp })
    }
}

/// What the two clients saw, which was nothing but a pause.
pub(super) struct Seen {
    pub(super) tcp: EchoReport,
    pub(super) udp: EchoReport,
}

impl Seen {
    /// The longest gaps, for a remark.
    pub(super) fn gaps(&self) -> String {
        format!("gaps {:.0} and {:.0} ms", self.tcp.max_gap_ms, self.udp.max_gap_ms)
    }
}

/// Checks that a file's lines begin with 0, 1, 2 and so on, and gives their number.
pub(super) fn numbered_lines(text: &str) -> Result<usize> {
    let wrong = (0..).zip(text.lines()).find(|(number, line)| {
        line.split_whitespace().next().is_none_or(|first| first != format!("{number}"))
    });
    ensure!(wrong.is_none(), "the sequence goes wrong at {wrong:?}");
    Ok(text.lines().count())
}
