//! Measures one cell once, with a fresh container that is removed afterwards.

use std::time::Duration;

use super::cell::{CONNECTIONS, Cell, Setting, Way};
use super::footprint::{self, Footprint};
use crate::bench::fixture::{self, NAME, RATE, Window};
use crate::bench::{floor, podman_baseline};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lab::{Lab, MigrationReport, Runtime};
use crate::probe::{EchoRun, ValuesRun};
use crate::programs::PROBE;
use crate::traffic::client_report::Latency;

/// How long clients talk before a move.
const BEFORE: Duration = Duration::from_secs(2);
/// How long they talk after it, and whose requests count.
const AFTER: Duration = Duration::from_secs(10);
/// The bytes that a limited link lets through at once.
const BURST: &str = "1mb";
/// The longest time for which a limited link keeps a packet.
const LATENCY: &str = "50ms";
/// The range of client ports, instead of the kernel's 28,000 ports.
const CLIENT_PORTS: &str = "1024 65535";
/// The port of redis.
const REDIS: u16 = 6379;
/// How often redis is asked whether it answers.
const ATTEMPTS: u32 = 100;

/// One move.
pub(super) struct Moved {
    /// The longest time without an answer, in milliseconds.
    pub(super) gap: f64,
    pub(super) report: MigrationReport,
    /// The 99th percentile of the time of a request, in milliseconds: before the move, and in [`AFTER`] from the end of the
    /// interruption on.
    pub(super) p99: [f64; 2],
    /// What was seen of the source and of the destination.
    pub(super) hosts: [Footprint; 2],
}

/// The result of a measurement.
pub(super) enum Measured {
    Moved(Box<Moved>),
    /// A time in milliseconds that moves are compared with.
    Beside(f64),
}

/// The clients of a cell.
enum Clients {
    Echo(Vec<EchoRun>),
    Redis(ValuesRun),
}

/// What clients have seen.
struct Seen {
    gap: f64,
    latencies: Vec<Latency>,
}

pub(super) fn measure(lab: &Lab, cell: Cell) -> Result<Measured> {
    let mebibytes = cell.size.to_string();
    let serve = ["--touch", "--memory", &mebibytes];
    let floor = |restore| -> Result<Measured> {
        let (a, c) = (lab.host("a")?, lab.host("c")?);
        let server = fixture::start(a, c, Runtime::Crun, NAME, 7000, &serve)?;
        let talk = || fixture::Clients::start(c, server);
        let floor = floor::measure_running(lab, Runtime::Crun, restore, talk)?;
        Ok(Measured::Beside(floor.whole))
    };
    match cell.way {
        Way::Floor => floor(floor::Restore::Whole),
        Way::LazyFloor => floor(floor::Restore::Lazy),
        Way::Podman => {
            podman_baseline::measure_with(lab, Runtime::Crun, &serve).map(Measured::Beside)
        }
        Way::Move(mode) => {
            let ends = [lab.host("a")?, lab.host("b")?];
            if let Setting::Link(gigabits) = cell.setting {
                ends.iter().try_for_each(|host| limit_link(host, gigabits))?;
            }
            let moved = move_once(lab, mode, cell);
            if let Setting::Link(_) = cell.setting {
                ends.iter().try_for_each(|host| free_link(host))?;
            }
            moved.map(|moved| Measured::Moved(Box::new(moved)))
        }
    }
}

/// Migrates a container under its clients, checks every byte of its memory, and removes it.
fn move_once(lab: &Lab, mode: &str, cell: Cell) -> Result<Moved> {
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let clients = start(lab, cell)?;
    std::thread::sleep(BEFORE);
    let options = ["--memory", mode, "--max-interruption", "120"];
    let (window, watched) = Window::around(|| {
        footprint::watch(lab, &[a, b], || lab.attempt(NAME, "a", "b", &options)?.success())
    });
    let (hosts, report) = watched?;
    std::thread::sleep(AFTER);
    let seen = match clients {
        Clients::Redis(run) => {
            let seen = run.stop()?;
            if let Some(fault) = seen.fault() {
                return Err(Error::Check(format!("redis did not stay whole: {fault}")));
            }
            Seen { gap: seen.longest_ms, latencies: seen.latencies }
        }
        Clients::Echo(runs) => {
            let mut seen = Seen { gap: 0.0, latencies: Vec::new() };
            for run in runs {
                let report = run.stop_after(Duration::ZERO)?;
                if let Some(fault) = report.fault() {
                    let text = format!("the TCP connections did not stay whole: {fault}");
                    return Err(Error::Check(text));
                }
                seen.gap = seen.gap.max(window.longest(&report.gaps));
                seen.latencies.extend(report.latencies);
            }
            check_memory(b, c)?;
            seen
        }
    };
    fixture::remove(b, NAME)?;
    let hosts = <[Footprint; 2]>::try_from(hosts)
        .map_err(|_| Error::Check("two hosts were to be watched".to_owned()))?;
    let p99 = p99(&seen.latencies, window);
    Ok(Moved { gap: seen.gap, report, p99, hosts })
}

fn start(lab: &Lab, cell: Cell) -> Result<Clients> {
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    if cell.setting == Setting::Redis {
        a.podman(["run", "--detach", "--name", NAME, "--publish", "6379:6379", "redis:1"])?;
        await_redis(c, a.name())?;
        let mebibytes = u32::try_from(cell.size).unwrap_or(u32::MAX);
        return c.probe().redis_values(a.port(REDIS), mebibytes).map(Clients::Redis);
    }
    let mebibytes = cell.size.to_string();
    let serve = ["--touch", "--memory", &mebibytes];
    let mut idle = 0;
    if cell.setting == Setting::Connections {
        c.set_parameter("net/ipv4/ip_local_port_range", CLIENT_PORTS)?;
        // The ports of earlier connections come again.
        for host in lab.hosts() {
            host.run(["conntrack", "--flush"])?;
        }
        idle = CONNECTIONS - 1;
    }
    let server = fixture::start(a, c, Runtime::Crun, NAME, 7000, &serve)?;
    let run = c.probe().tcp_echo(server).rate(RATE).idle(idle).latencies(true).start()?;
    Ok(Clients::Echo(vec![run]))
}

fn await_redis(client: &Host, server: &str) -> Result<()> {
    for _ in 0..ATTEMPTS {
        if client.command("redis-cli").args(["-h", server, "ping"]).output()?.text() == "PONG" {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(Error::Check("redis does not answer".to_owned()))
}

fn check_memory(host: &Host, client: &Host) -> Result<()> {
    let stats = ["stats", &host.port(7001).to_string()];
    let seen = client.command(PROBE).args(stats).output()?.success()?;
    match seen.text().contains("\"memory_bad\":0") {
        true => Ok(()),
        false => Err(Error::Check(format!("memory has changed: {}", seen.text()))),
    }
}

/// Returns the 99th percentile before a move, and in [`AFTER`] from the end of the longest wait of that time on.
fn p99(latencies: &[Latency], window: Window) -> [f64; 2] {
    let end = |of: &Latency| of.sent_unix_ns + (of.ms * 1e6) as u64;
    let during =
        latencies.iter().filter(|of| window.contains(of.sent_unix_ns) || window.contains(end(of)));
    let released = during.max_by(|a, b| a.ms.total_cmp(&b.ms)).map_or(u64::MAX, end);
    let until = released.saturating_add(AFTER.as_nanos() as u64);
    let percentile = |is_meant: &dyn Fn(u64) -> bool| {
        let meant = latencies.iter().filter(|of| is_meant(of.sent_unix_ns));
        let mut all: Vec<f64> = meant.map(|of| of.ms).collect();
        all.sort_by(f64::total_cmp);
        let place = (all.len() * 99).div_ceil(100).saturating_sub(1);
        all.get(place).copied().unwrap_or_default()
    };
    [
        percentile(&|sent| window.is_before(sent)),
        percentile(&|sent| (released..until).contains(&sent)),
    ]
}

/// Lets a host send so many gigabits a second.
fn limit_link(host: &Host, gigabits: u32) -> Result<()> {
    let rate = format!("{gigabits}gbit");
    let words = ["qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", &rate];
    let bounds = ["burst", BURST, "latency", LATENCY];
    host.run(["tc"].into_iter().chain(words).chain(bounds)).map(drop)
}

fn free_link(host: &Host) -> Result<()> {
    host.run(["tc", "qdisc", "del", "dev", "eth0", "root"]).map(drop)
}
