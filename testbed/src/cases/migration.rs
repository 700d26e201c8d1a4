//! Migrations of containers under traffic.

use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::subject::{Clients, numbered_lines, serve};
use crate::ensure;
use crate::error::{Context as _, Result};
use crate::lab::Runtime;
use crate::runner::{Case, Context};
use crate::slowdown;
use crate::traffic::client_report::Direction;

pub(super) const CASES: &[Case] = &[
    Case::new("migration-crun-keeps-tcp-and-udp", &["migration", "flows"], |context| {
        keeps_tcp_and_udp(context, Runtime::Crun)
    })
    .exclusive(),
    Case::new("migration-runc-keeps-tcp-and-udp", &["migration", "flows"], |context| {
        keeps_tcp_and_udp(context, Runtime::Runc)
    })
    .exclusive(),
    Case::new("migration-keeps-2000-connections", &["migration", "flows"], many_connections)
        .exclusive(),
    Case::new("migration-keeps-bulk-transfers", &["migration", "flows"], bulk).exclusive(),
    Case::new("migration-of-a-second-container", &["migration"], second_container).exclusive(),
    Case::new("migration-ships-a-missing-image", &["migration"], missing_image).exclusive(),
    Case::new("migration-criu-is-spared-the-connections", &["migration"], spared).exclusive(),
    Case::new("hops-a-moved-container-moves-on", &["migration", "hops"], onwards),
];

fn keeps_tcp_and_udp(context: &Context, runtime: Runtime) -> Result<()> {
    let lab = context.lab_with(&["a", "b", "c"], runtime)?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    serve(a, "web", 7000, &["--memory", "16", "--log", "/tmp/log"], c)?;
    let clients = Clients::start(c, a.port(7000))?;
    let migration = lab.migrate("web", "a", "b")?;
    let seen = clients.stop()?;
    let left = a.podman(["ps", "--all", "--format", "{{.Names}}"])?;
    ensure!(left.is_empty(), "the source still has {left}");
    let lines = numbered_lines(&b.podman(["exec", "web", "cat", "/tmp/log"])?)?;
    ensure!(lines > 20, "the log has {lines} lines");
    let stats = b.probe().stats(b.port(7001))?;
    ensure!(stats.memory_bytes == 16 << 20 && stats.memory_bad == 0, "{stats:?}");
    ensure!((migration.flows.tcp, migration.flows.udp) >= (1, 1), "{:?}", migration.flows);
    context.remark(format!("interruption {:.0} ms, {}", migration.interruption_ms, seen.gaps()));
    Ok(())
}

/// CRIU gets the object that keeps it from walking over the table of connections and from starting tar, for the dump
/// alone, and does without where the object is not installed.
fn spared(context: &Context) -> Result<()> {
    const OBJECT: &str = "/usr/local/bin/libnetmig_criu.so";
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    serve(a, "web", 7000, &[], c)?;
    let watch = |path: &str| {
        let watch = || {
            let watch = Inotify::init(InitFlags::IN_NONBLOCK)?;
            watch.add_watch(&a.path(path), AddWatchFlags::IN_OPEN)?;
            nix::Result::Ok(watch)
        };
        watch().context(|| format!("watching {path}"))
    };
    // All hosts of a lab have the same file of the product's, and each has a tar of its own.
    let (object, tar) = (watch(OBJECT)?, watch("/usr/bin/tar")?);
    let clients = Clients::start(c, a.port(7000))?;
    lab.migrate("web", "a", "b")?;
    ensure!(object.read_events().is_ok(), "nothing has opened {OBJECT}");
    ensure!(tar.read_events().is_err(), "tar was started in the dump");
    b.run(["mount", "--bind", "/dev/null", OBJECT])?;
    lab.migrate("web", "b", "a")?;
    ensure!(object.read_events().is_err(), "{OBJECT} was opened in a move without it");
    clients.stop()?;
    Ok(())
}

fn many_connections(context: &Context) -> Result<()> {
    let connections = slowdown::rate(2000.0) as u32;
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    serve(a, "web", 7000, &[], c)?;
    let client =
        c.probe().tcp_echo(a.port(7000)).rate(slowdown::rate(4000.0)).connections(connections);
    let run = client.start()?;
    let migration = lab.migrate("web", "a", "b")?;
    // Each connection sends twice a second: six more messages, however short the migration was.
    let seen = run.stop_after(Duration::from_secs(3))?;
    ensure!(seen.fault().is_none(), "{:?} of {seen:?}", seen.fault());
    ensure!(seen.connections == u64::from(connections), "{seen:?}");
    // Every connection has sent several messages, before and after.
    ensure!(seen.sent >= 4 * u64::from(connections), "only {} messages", seen.sent);
    ensure!(migration.flows.tcp >= u64::from(connections), "{:?}", migration.flows);
    let told = (migration.interruption_ms, seen.max_gap_ms);
    context.remark(format!("interruption {:.0} ms, gap {:.0} ms", told.0, told.1));
    Ok(())
}

fn bulk(context: &Context) -> Result<()> {
    // Bytes a second of each transfer.
    let rate = slowdown::rate(20_000_000.0) as u64;
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    serve(a, "web", 7000, &[], c)?;
    let both = [Direction::Up, Direction::Down];
    let start = |direction| c.probe().bulk(a.port(7001), direction).rate_limit(rate).start();
    let [up, down] = both.map(start);
    let (up, down) = (up?, down?);
    let migration = lab.migrate("web", "a", "b")?;
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
    context.remark(format!("interruption {:.0} ms", migration.interruption_ms));
    Ok(())
}

fn second_container(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    serve(a, "one", 7000, &[], c)?;
    serve(a, "two", 7100, &[], c)?;
    let clients = [Clients::start(c, a.port(7000))?, Clients::start(c, a.port(7100))?];
    lab.migrate("one", "a", "b")?;
    let tunnels = |host: &crate::host::Host| -> Result<(String, String)> {
        let processes = host.run(["sh", "-c", "pgrep -x wireguard-go || true"])?;
        Ok((host.run(["wg", "show", "all", "public-key"])?, processes))
    };
    let before = (tunnels(a)?, tunnels(b)?);
    ensure!(!before.0.0.is_empty() && !before.1.0.is_empty(), "no tunnel: {before:?}");
    lab.migrate("two", "a", "b")?;
    let after = (tunnels(a)?, tunnels(b)?);
    ensure!(before == after, "the tunnel was {before:?} and is {after:?}");
    for running in clients {
        context.remark(running.stop()?.gaps());
    }
    let names = b.podman(["ps", "--sort", "names", "--format", "{{.Names}}"])?;
    ensure!(names == "one\ntwo", "the destination runs {names}");
    Ok(())
}

fn missing_image(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    serve(a, "web", 7000, &[], c)?;
    b.podman(["rmi", "probe:1"])?;
    let image = |host: &crate::host::Host| -> Result<String> {
        host.podman(["image", "inspect", "--format", "{{.Id}} {{.RepoTags}}", "probe:1"])
    };
    let original = image(a)?;
    ensure!(image(b).is_err(), "the destination still has the image");
    let clients = Clients::start(c, a.port(7000))?;
    let migration = lab.migrate("web", "a", "b")?;
    context.remark(clients.stop()?.gaps());
    ensure!(image(b)? == original, "the image was {original} and is {}", image(b)?);
    let used = b.podman(["inspect", "--format", "{{.ImageName}}", "web"])?;
    ensure!(used.ends_with("probe:1"), "the container's image is {used}");
    ensure!(migration.steps.iter().any(|step| step.name == "image"), "{:?}", migration.steps);
    Ok(())
}

/// A container migrates twice with connections from before the first migration.
fn onwards(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c", "d"])?;
    let (a, b, c, d) = (lab.host("a")?, lab.host("b")?, lab.host("c")?, lab.host("d")?);
    serve(a, "web", 7000, &["--memory", "4"], d)?;
    let first = Clients::start(d, a.port(7000))?;
    let one = lab.migrate("web", "a", "b")?;
    // The anchor of the second generation of connections is the second host.
    d.probe().wait_for_echo(b.port(7000), Duration::from_secs(5))?;
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
