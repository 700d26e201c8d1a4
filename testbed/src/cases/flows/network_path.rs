//! Properties of the network path: MTUs that are too small for full packets in the tunnel, and NAT before a client.

use super::opener;
use crate::cases::subject::{Clients, serve};
use crate::ensure;
use crate::error::Result;
use crate::runner::{Case, Context};
use crate::slowdown;
use crate::traffic::client_report::Direction;

pub(super) const CASES: &[Case] = &[
    Case::new("flows-bulk-at-1500", &["flows", "mtu"], |context| bulk(context, 1500, true))
        .exclusive(),
    Case::new("flows-bulk-at-1400", &["flows", "mtu"], |context| bulk(context, 1400, true))
        .exclusive(),
    Case::new("flows-bulk-at-1400-without-icmp", &["flows", "mtu"], |context| {
        bulk(context, 1400, false)
    })
    .exclusive(),
    Case::new("flows-client-behind-nat", &["flows"], behind_nat),
];

/// Bytes a second of each transfer.
const RATE: f64 = 10_000_000.0;

fn bulk(context: &Context, underlay: u32, icmp: bool) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let _server = opener::server(c)?;
    // Only the path between the two hosts has a smaller MTU. The client's segment size is for 1500 bytes.
    for (from, to) in [(a, b), (b, a)] {
        let mtu = underlay.to_string();
        let (four, six) = (to.address().to_string(), to.address6().to_string());
        for address in [four, six] {
            from.run(["ip", "route", "add", &address, "dev", "eth0", "mtu", &mtu])?;
        }
    }
    if !icmp {
        let rules = "add table inet filter\n\
                     add chain inet filter in { type filter hook input priority 0; }\n\
                     add rule inet filter in icmp type destination-unreachable drop\n\
                     add rule inet filter in icmpv6 type packet-too-big drop\n";
        for host in [a, b, c] {
            host.command("nft").args(["-f", "-"]).input(rules).run()?;
        }
    }
    serve(a, "web", 7000, &[], c)?;
    opener::start(a, "client", c.port(7000), &[])?;
    let rate = slowdown::rate(RATE) as u64;
    let both = [Direction::Up, Direction::Down];
    let start = |direction| c.probe().bulk(a.port(7001), direction).rate_limit(rate).start();
    let [up, down] = both.map(start);
    let (up, down) = (up?, down?);
    lab.migrate("web", "a", "b")?;
    lab.migrate("client", "a", "b")?;
    for (direction, run) in both.into_iter().zip([up, down]) {
        let seen = run.stop()?;
        ensure!(seen.fault().is_none(), "{direction:?}: {:?} of {seen:?}", seen.fault());
        ensure!(seen.bytes > rate, "{direction:?}: only {} bytes", seen.bytes);
        context.remark(format!(
            "{direction:?} {} MB, gap {:.0} ms",
            seen.bytes / 1_000_000,
            seen.max_gap_ms
        ));
    }
    opener::stop(b, "client").map(drop)
}

/// The client is behind a router that translates its address.
fn behind_nat(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "router", "c"])?;
    let (a, router, c) = (lab.host("a")?, lab.host("router")?, lab.host("c")?);
    let rules = "add table ip nat\n\
                 add chain ip nat out { type nat hook postrouting priority 100; }\n\
                 add rule ip nat out ip saddr != 192.0.2.3 masquerade\n";
    router.command("nft").args(["-f", "-"]).input(rules).run()?;
    for interface in ["all", "eth0"] {
        // Router and client are on one segment, where a router would send redirects.
        router.set_parameter(&format!("net/ipv4/conf/{interface}/send_redirects"), "0")?;
    }
    let (to, by) = (a.address().to_string(), router.address().to_string());
    c.run(["ip", "route", "add", &to, "via", &by])?;
    serve(a, "web", 7000, &[], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    let migration = lab.migrate("web", "a", "b")?;
    context.remark(clients.stop()?.gaps());
    ensure!((migration.flows.tcp, migration.flows.udp) >= (1, 1), "{:?}", migration.flows);
    let seen = a.run(["conntrack", "-L", "-p", "tcp", "--dport", "7000"])?;
    let by = format!("src={by} ");
    ensure!(seen.contains(&by), "the router has not translated: {seen}");
    Ok(())
}
