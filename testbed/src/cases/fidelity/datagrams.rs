//! Datagrams that a container sends, of which a migration loses none, and those that it has not read.

use std::time::Duration;

use serde_json::Value;

use super::scenarios::start;
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("fidelity-datagrams-that-it-sends", &["fidelity"], sends).exclusive(),
    Case::new("fidelity-datagrams-that-it-has-not-read", &["fidelity"], not_read_by_it).exclusive(),
];

const LIMIT: Duration = Duration::from_secs(40);
/// The seconds during which it sends.
const SECONDS: &str = "8";

/// The exit code of a move that has lost something.
const LOST: i32 = 7;

/// CRIU does not carry what a UDP socket has received. The loss is told.
fn not_read_by_it(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    lab.serve("b")?;
    start(lab.host("a")?, "web", "udp-unread", &[])?;
    let moved = lab.attempt("web", "a", "b", &[])?;
    ensure!(moved.code == Some(LOST), "exit code {:?}: {}", moved.code, moved.stderr);
    let is_told = moved.stderr.contains("lost: ") && moved.stderr.contains("datagrams");
    ensure!(is_told, "it is not told: {}", moved.stderr);
    Ok(())
}

/// Every datagram that was sent arrives. iperf3 sends a burst after an interruption, and its server may not read that
/// fast enough, as after `podman pause`. Such datagrams do not count as lost by the migration.
fn sends(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let c = lab.host("c")?;
    ["a", "b"].iter().try_for_each(|host| lab.serve(host))?;
    let ports = ["--publish", "5201:5201/tcp", "--publish", "5201:5201/udp"];
    for (from, to, rate) in [("a", "b", "5M"), ("b", "a", "20M"), ("a", "b", "50M")] {
        // A fresh server each time: iperf3 3.x ends about every second reverse test over UDP with SIGSEGV, also when
        // its container has never been moved. The client has its report by then.
        let host = lab.host(from)?;
        let run = [&["run", "--detach", "--name", "sender"][..], &ports, &["iperf3:1"]].concat();
        host.podman(run)?;
        std::thread::sleep(Duration::from_secs(1));
        let before = not_read(c)?;
        let server = host.address().to_string();
        let ask = ["--client", &server, "--udp", "--reverse", "--json", "--time", SECONDS];
        let client = c.command("iperf3").args(ask).args(["--bitrate", rate]).spawn()?;
        std::thread::sleep(Duration::from_secs(2));
        lab.migrate("sender", from, to)?;
        let report: Value = client.wait(LIMIT)?.success()?.json()?;
        let sum = &report["end"]["sum"];
        let figure = |name: &str| {
            let figure = sum[name].as_u64();
            figure.ok_or_else(|| Error::Check(format!("iperf3 does not tell {name}: {report}")))
        };
        let (sent, lost) = (figure("packets")?, figure("lost_packets")?);
        let not_read = not_read(c)? - before;
        ensure!(sent > 1_000, "only {sent} datagrams at {rate}");
        ensure!(
            lost <= not_read,
            "{lost} of {sent} datagrams lost at {rate}, {not_read} of them by the far end"
        );
        lab.host(to)?.podman(["rm", "--force", "--time", "0", "sender"])?;
        context.remark(format!("{rate}bit/s: {sent} sent, {lost} lost, {not_read} not read"));
    }
    Ok(())
}

/// Returns the number of datagrams that found the receive buffers of a host full (`RcvbufErrors`, snmp_counter.rst in
/// the kernel's documentation).
fn not_read(host: &Host) -> Result<u64> {
    let text = host.run(["cat", "/proc/net/snmp"])?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let mut pairs = names.split(' ').zip(values.split(' '));
    let found = pairs.find(|(name, _)| *name == "RcvbufErrors");
    let value = found.and_then(|(_, value)| value.parse().ok());
    value.ok_or_else(|| Error::Check(format!("no RcvbufErrors in {text}")))
}
