//! Containers that migrate on, return, and swap hosts, with their first connections still open.

use std::time::Duration;

use super::{opener, traces};
use crate::cases::subject::{Clients, serve};
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("flows-return-home", &["flows", "hops"], home),
    Case::new("flows-leave-the-middle-host-out", &["flows", "hops"], middle),
    Case::new("flows-three-hosts-and-home", &["flows", "hops"], circle),
    Case::new("flows-swap-of-two-containers", &["flows", "hops"], swap),
];

const PUBLISHED: [&str; 4] = ["--publish", "7000-7001:7000-7001/tcp", "--publish", "7000:7000/udp"];
/// The time limit for a server to answer on its new host.
const ANSWERS: Duration = Duration::from_secs(5);

fn home(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let _server = opener::server(c)?;
    opener::start(a, "web", c.port(7000), &PUBLISHED)?;
    c.probe().wait_for_echo(a.port(7000), ANSWERS)?;
    let inbound = Clients::gentle(c, a.port(7000))?;
    for (from, to) in [("a", "b"), ("b", "a")] {
        let migration = lab.migrate("web", from, to)?;
        ensure!(migration.warnings.is_empty(), "{from} to {to}: {:?}", migration.warnings);
    }
    // The connections are open and need no rules any more.
    traces::none(a)?;
    traces::none(b)?;
    // A second time, since the first return must not prevent later migrations.
    lab.migrate("web", "a", "b")?;
    let last = lab.migrate("web", "b", "a")?;
    let seen = inbound.stop()?;
    let gap = opener::stop(a, "web")?;
    traces::none(a)?;
    traces::none(b)?;
    context.remark(format!(
        "last interruption {:.0} ms, {}, outbound {gap:.0} ms",
        last.interruption_ms,
        seen.gaps()
    ));
    Ok(())
}

fn middle(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c", "d"])?;
    let (a, b, c, d) = (lab.host("a")?, lab.host("b")?, lab.host("c")?, lab.host("d")?);
    lab.serve("a")?;
    let _server = opener::server(d)?;
    opener::start(a, "web", d.port(7000), &PUBLISHED)?;
    d.probe().wait_for_echo(a.port(7000), ANSWERS)?;
    let inbound = Clients::gentle(d, a.port(7000))?;
    for (from, to) in [("a", "b"), ("b", "c")] {
        let migration = lab.migrate("web", from, to)?;
        ensure!(migration.warnings.is_empty(), "{from} to {to}: {:?}", migration.warnings);
    }
    traces::none(b)?;
    lab.set_cable("b", false)?;
    let seen = inbound.stop()?;
    let gap = opener::stop(c, "web")?;
    context.remark(format!("{}, outbound {gap:.0} ms", seen.gaps()));
    Ok(())
}

fn circle(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c", "d"])?;
    let (a, b, c, d) = (lab.host("a")?, lab.host("b")?, lab.host("c")?, lab.host("d")?);
    let _server = opener::server(d)?;
    opener::start(a, "web", d.port(7000), &PUBLISHED)?;
    d.probe().wait_for_echo(a.port(7000), ANSWERS)?;
    let mut generations = vec![Clients::gentle(d, a.port(7000))?];
    lab.serve("a")?;
    let route: [(&str, &Host); 3] = [("a", b), ("b", c), ("c", a)];
    for (from, to) in route {
        let migration = lab.migrate("web", from, to.name())?;
        ensure!(migration.warnings.is_empty(), "{:?}", migration.warnings);
        d.probe().wait_for_echo(to.port(7000), ANSWERS)?;
        generations.push(Clients::gentle(d, to.port(7000))?);
    }
    // On the first host again: only the connections to the other two hosts come through tunnels.
    for (host, clients) in ["a", "b", "c", "a again"].iter().zip(generations) {
        let seen = clients.stop()?;
        context.remark(format!("{host}: {}", seen.gaps()));
    }
    let gap = opener::stop(a, "web")?;
    context.remark(format!("outbound {gap:.0} ms"));
    Ok(())
}

fn swap(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    serve(a, "one", 7000, &[], c)?;
    let other = ["run", "--detach", "--name", "two", "--ip", "10.88.0.77"];
    let ports = ["--publish", "7100-7101:7000-7001/tcp", "--publish", "7100:7000/udp"];
    b.podman([&other[..], &ports, &["probe:1", "netmig-probe", "serve"]].concat())?;
    c.probe().wait_for_echo(b.port(7100), ANSWERS)?;
    let clients = [Clients::gentle(c, a.port(7000))?, Clients::gentle(c, b.port(7100))?];
    lab.serve("a")?;
    lab.serve("b")?;
    let (there, back) = std::thread::scope(|scope| {
        let there = scope.spawn(|| lab.migrate("one", "a", "b"));
        let back = lab.migrate("two", "b", "a");
        let died = |_| Err(Error::Check("the thread of a migration died".to_owned()));
        (there.join().unwrap_or_else(died), back)
    });
    let both = [there?, back?];
    for (running, migration) in clients.into_iter().zip(both) {
        let seen = running.stop()?;
        context.remark(format!("{:.0} ms, {}", migration.interruption_ms, seen.gaps()));
    }
    for (host, name) in [(a, "two"), (b, "one")] {
        let names = host.podman(["ps", "--format", "{{.Names}}"])?;
        ensure!(names == name, "host {} runs {names}", host.name());
    }
    Ok(())
}
