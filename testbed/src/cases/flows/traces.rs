//! What netmig has in a host's kernel.

use std::time::{Duration, Instant};

use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::slowdown;

/// How long what a host does not need any more may take to go.
const LIMIT: Duration = Duration::from_secs(10);

/// Waits until nothing of netmig is left in the kernel of `host`.
pub(in crate::cases) fn none(host: &Host) -> Result<()> {
    none_within(host, LIMIT)
}

/// The same within a time of its own.
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

/// Everything of netmig in the kernel of `host`: table, interfaces, processes, rules, routes, marks.
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

/// Has the kernel forget flows soon after they have ended.
pub(in crate::cases) fn forget_soon(host: &Host) -> Result<()> {
    // Where nobody has asked for it yet, the kernel loads connection tracking now.
    host.run(["conntrack", "-L"])?;
    for (of, seconds) in [
        ("tcp_timeout_time_wait", "1"),
        // One that was tried in the moment in which all rules were gone.
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
