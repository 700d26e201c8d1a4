//! Much memory moves while clients need it, and beside many connections.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::memory_programs::check_memory;
use super::promise::{LIMIT, settled};
use super::subject::serve;
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::probe::ValuesRun;
use crate::runner::{Case, Context};
use crate::traffic::client_report::Latency;

pub(super) const CASES: &[Case] = &[
    Case::new("memory-of-redis-under-requests", &["memory", "applications"], redis)
        .exclusive()
        .limit(300),
    Case::new("memory-beside-many-connections", &["memory", "flows"], connections)
        .exclusive()
        .limit(300),
];

/// Values of redis, in mebibytes.
const VALUES: u32 = 256;
/// Memory of a server with many connections, in mebibytes.
const MEMORY: &str = "256";
/// Its connections.
const CONNECTIONS: u32 = 2_000;
/// How long clients go on before a move and after it.
const AROUND: Duration = Duration::from_secs(2);
/// What a request may wait for pages that follow, in milliseconds.
const PAGES: f64 = 100.0;
/// The modes in which memory moves: in rounds while the container runs, and in the interruption.
const MODES: [&str; 2] = ["auto", "stop"];

/// Starts redis and a client with 1,000 requests a second.
fn start_redis(host: &Host, client: &Host) -> Result<ValuesRun> {
    host.podman(["run", "--detach", "--name", "db", "--publish", "6379:6379", "redis:1"])?;
    let end = Instant::now() + LIMIT;
    while client.command("redis-cli").args(["-h", host.name(), "ping"]).output()?.text() != "PONG" {
        if Instant::now() >= end {
            return Err(Error::Check("redis does not answer".to_owned()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    client.probe().redis_values(host.port(6379), VALUES)
}

/// redis moves with many values under 1,000 requests a second. No request fails, each value is the one that was written last, and
/// no request waits much longer than the container is interrupted.
fn redis(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("b")?;
    for mode in MODES {
        let client = start_redis(a, c)?;
        std::thread::sleep(AROUND);
        let began = now_ns();
        let options = ["--memory", mode, "--max-interruption", "60"];
        let moved = lab.attempt("db", "a", "b", &options)?.success()?;
        std::thread::sleep(AROUND);
        let seen = client.stop()?;
        ensure!(seen.fault().is_none(), "{mode}: {:?}", seen.fault());
        ensure!(seen.keys == u64::from(VALUES) * 128, "{} values", seen.keys);
        // A client that does not get to 1,000 requests a second notices less.
        ensure!(seen.requests > 2_000, "only {} requests", seen.requests);
        let before = seen.latencies.iter().filter(|of| of.sent_unix_ns < began);
        let before = before.map(|of| of.ms).fold(0.0, f64::max);
        let (longest, interruption) = (seen.longest_ms, moved.interruption_ms);
        context.remark(format!(
            "{mode}: {} requests, interruption {interruption:.0} ms, longest {longest:.0} ms, before {before:.0} ms",
            seen.requests
        ));
        // The pages that the first request needs come one after another.
        let is_short = longest <= 2.0 * interruption + before + PAGES;
        ensure!(
            is_short,
            "{mode}: a request took {longest:.0} ms, the interruption {interruption:.0} ms: {:?}",
            slowest(&seen.latencies, began)
        );
        settled(&lab)?;
        b.podman(["rm", "--force", "--time", "0", "db"])?;
    }
    Ok(())
}

/// Returns the slowest requests: how long after a moment each was sent, and how long it took, in milliseconds.
fn slowest(latencies: &[Latency], since_ns: u64) -> Vec<(f64, f64)> {
    let mut all: Vec<&Latency> = latencies.iter().collect();
    all.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    let after = |sent: u64| (sent as f64 - since_ns as f64) / 1e6;
    all.iter().take(8).map(|of| (after(of.sent_unix_ns).round(), of.ms.round())).collect()
}

/// Thousands of connections and much memory move together. Each connection lives, and every byte is right.
fn connections(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("b")?;
    for mode in MODES {
        for host in lab.hosts() {
            host.run(["conntrack", "--flush"])?;
        }
        serve(a, "web", 7000, &["--memory", MEMORY], c)?;
        let client = c.probe().tcp_echo(a.port(7000)).rate(200.0).idle(CONNECTIONS - 1).start()?;
        let options = ["--memory", mode, "--max-interruption", "60"];
        let moved = lab.attempt("web", "a", "b", &options)?.success()?;
        ensure!(moved.flows.tcp >= u64::from(CONNECTIONS), "{} flows", moved.flows.tcp);
        check_memory(&lab, "b")?;
        let seen = client.stop_after(AROUND)?;
        ensure!(seen.fault().is_none(), "{mode}: {:?}", seen.fault());
        ensure!(seen.idle_alive == u64::from(CONNECTIONS - 1), "{} live", seen.idle_alive);
        context.remark(format!("{mode}: interruption {:.0} ms", moved.interruption_ms));
        settled(&lab)?;
        b.podman(["rm", "--force", "--time", "0", "web"])?;
    }
    Ok(())
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}
