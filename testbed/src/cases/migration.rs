//! Containers that move while clients talk to them.

use std::time::Duration;

use crate::ensure;
use crate::error::Result;
use crate::lab::Runtime;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("migration-crun-keeps-tcp-and-udp", &["migration", "flows"], |context| {
        keeps_tcp_and_udp(context, Runtime::Crun)
    }),
    Case::new("migration-runc-keeps-tcp-and-udp", &["migration", "flows"], |context| {
        keeps_tcp_and_udp(context, Runtime::Runc)
    }),
];

fn keeps_tcp_and_udp(context: &Context, runtime: Runtime) -> Result<()> {
    let lab = context.lab_with(&["a", "b", "c"], runtime)?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let start = "run --detach --name web --publish 7000-7001:7000-7001/tcp \
                 --publish 7000:7000/udp probe:1 netmig-probe serve --memory 16 --log /tmp/log";
    a.podman(start.split_whitespace())?;
    c.probe().wait_for_echo(a.port(7000), Duration::from_secs(10))?;
    let tcp = c.probe().tcp_echo(a.port(7000)).rate(1000.0).start()?;
    let udp = c.probe().udp_echo(a.port(7000)).rate(1000.0).start()?;
    let migration = lab.migrate("web", "a", "b")?;
    let (tcp, udp) = (tcp.stop()?, udp.stop_after(Duration::ZERO)?);
    for (name, seen) in [("TCP", &tcp), ("UDP", &udp)] {
        ensure!(seen.fault().is_none(), "{name}: {:?} of {seen:?}", seen.fault());
    }
    let left = a.podman(["ps", "--all", "--format", "{{.Names}}"])?;
    ensure!(left.is_empty(), "the source still has {left}");
    let log = b.podman(["exec", "web", "cat", "/tmp/log"])?;
    let gap = (0..).zip(log.lines()).find(|(number, line)| {
        line.split_once(' ').is_none_or(|(first, _)| first != format!("{number}"))
    });
    ensure!(gap.is_none() && log.lines().count() > 100, "the log goes wrong at {gap:?}");
    let stats = b.probe().stats(b.port(7001))?;
    ensure!(stats.memory_bytes == 16 << 20 && stats.memory_bad == 0, "{stats:?}");
    context.remark(format!(
        "interruption {:.0} ms, gaps {:.0} and {:.0} ms",
        migration.interruption_ms, tcp.max_gap_ms, udp.max_gap_ms
    ));
    Ok(())
}
