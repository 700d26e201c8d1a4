//! The traces of netmig in a host's kernel.

use std::time::{Duration, Instant};

use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::slowdown;

/// The time limit for traces to go.
const LIMIT: Duration = Duration::from_secs(10);

/// Waits until the kernel of `host` has no traces of netmig.
pub(in crate::cases) fn none(host: &Host) -> Result<()> {
    none_within(host, LIMIT)
}

/// Like [`none`], with a time limit.
pub(in crate::cases) fn none_within(host: &Host, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + slowdown::limit(limit);
    loop {
        let left = all(host)?;
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "host {} still has {left:?}", host.name());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Lists the traces of netmig on `host`: table, interfaces, processes, rules, routes and marks.
pub(in crate::cases) fn all(host: &Host) -> Result<Vec<String>> {
    let sources: [(&[&str], &str); 7] = [
        (&["nft", "list", "tables"], " netmig"),
        (&["ip", "-oneline", "link"], "netmig"),
        (&["ps", "-eo", "args"], "wireguard-go"),
        (&["ip", "-4", "rule"], "lookup 3"),
        (&["ip", "-6", "rule"], "lookup 3"),
        (&["ip", "-4", "route", "show", "table", "all"], "proto 78"),
        (&["ip", "-6", "route", "show", "table", "all"], "proto 78"),
    ];
    let mut found = Vec::new();
    for (line, sign) in sources {
        let text = host.run(line.iter().copied())?;
        found.extend(text.lines().filter(|l| l.contains(sign)).map(str::to_owned));
    }
    let entries = host.run(["conntrack", "-L"])?;
    let marked = |l: &&str| l.contains(" mark=") && !l.contains(" mark=0 ");
    found.extend(entries.lines().filter(marked).map(str::to_owned));
    Ok(found)
}

/// Shortens the conntrack timeouts of ended flows.
pub(in crate::cases) fn forget_soon(host: &Host) -> Result<()> {
    // This loads connection tracking, so that its parameters exist.
    host.run(["conntrack", "-L"])?;
    for (of, seconds) in [
        ("tcp_timeout_time_wait", "1"),
        // A connection attempt at the time when all rules were flushed.
        ("tcp_timeout_syn_sent", "3"),
        ("tcp_timeout_close", "1"),
        ("udp_timeout", "3"),
        ("udp_timeout_stream", "3"),
    ] {
        let setting = format!("net.netfilter.nf_conntrack_{of}={seconds}");
        host.run(["sysctl", "-q", "-w", &setting])?;
    }
    Ok(())
}
