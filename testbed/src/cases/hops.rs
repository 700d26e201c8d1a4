//! Containers that move more than once with a connection of the first hour still open.

use super::subject::{Clients, serve};
use crate::ensure;
use crate::error::Result;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] =
    &[Case::new("hops-a-moved-container-moves-on", &["migration", "hops"], onwards)];

fn onwards(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c", "d"])?;
    let (a, b, c, d) = (lab.host("a")?, lab.host("b")?, lab.host("c")?, lab.host("d")?);
    serve(a, "web", 7000, &["--memory", "4"], d)?;
    let first = Clients::start(d, a.port(7000))?;
    let one = lab.migrate("web", "a", "b")?;
    // A second generation of connections has the second host for its anchor.
    d.probe().wait_for_echo(b.port(7000), std::time::Duration::from_secs(5))?;
    let second = Clients::start(d, b.port(7000))?;
    let two = lab.migrate("web", "b", "c")?;
    let (first, second) = (first.stop()?, second.stop()?);
    context.remark(format!(
        "interruptions {:.0} and {:.0} ms, {}; {}",
        one.interruption_ms,
        two.interruption_ms,
        first.gaps(),
        second.gaps()
    ));
    for host in [a, b] {
        let left = host.podman(["ps", "--all", "--format", "{{.Names}}"])?;
        ensure!(left.is_empty(), "host {} still has {left}", host.name());
    }
    let stats = c.probe().stats(c.port(7001))?;
    ensure!(stats.memory_bytes == 4 << 20 && stats.memory_bad == 0, "{stats:?}");
    Ok(())
}
