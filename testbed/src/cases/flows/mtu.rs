//! Bulk transfers by a tunnel through which full packets do not fit.

use super::opener;
use crate::cases::subject::serve;
use crate::ensure;
use crate::error::Result;
use crate::pace;
use crate::runner::{Case, Context};
use crate::traffic::report::Direction;

pub(super) const CASES: &[Case] = &[
    Case::new("flows-bulk-at-1500", &["flows", "mtu"], |context| bulk(context, 1500, true)),
    Case::new("flows-bulk-at-1400", &["flows", "mtu"], |context| bulk(context, 1400, true)),
    Case::new("flows-bulk-at-1400-without-icmp", &["flows", "mtu"], |context| {
        bulk(context, 1400, false)
    }),
];

/// Bytes a second of each transfer.
const RATE: f64 = 10_000_000.0;

fn bulk(context: &Context, underlay: u32, icmp: bool) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let _server = opener::server(c)?;
    // Between the two hosts of the tunnel alone: the far end has a segment size for 1500 bytes.
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
    let rate = pace::rate(RATE) as u64;
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
