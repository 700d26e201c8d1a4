//! Traffic through podman's network without a migration, on which all other tests rely.

use std::time::Duration;

use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::lab::{Lab, Runtime};
use crate::runner::{Case, Context};
use crate::traffic::client_report::Direction;

pub(super) const CASES: &[Case] = &[
    Case::new("traffic-crun-undisturbed-is-without-loss", &["traffic"], |context| {
        undisturbed(context, Runtime::Crun)
    })
    .exclusive(),
    Case::new("traffic-runc-undisturbed-is-without-loss", &["traffic"], |context| {
        undisturbed(context, Runtime::Runc)
    })
    .exclusive(),
    Case::new("traffic-many-connections", &["traffic"], many_connections).exclusive(),
    Case::new("traffic-bulk-both-ways", &["traffic"], bulk).exclusive(),
    Case::new("traffic-a-killed-server-is-noticed", &["traffic"], killed_server).exclusive(),
    Case::new("traffic-a-pause-is-measured", &["traffic"], pause).exclusive(),
    Case::new("traffic-test-images-work", &["traffic"], images).exclusive(),
];

/// Starts the probe server on host `a`, published on the ports 7000 and 7001.
fn serve<'a>(lab: &'a Lab, arguments: &[&str]) -> Result<(&'a Host, &'a Host)> {
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    let start = ["run", "--detach", "--name", "web", "--publish", "7000-7001:7000-7001/tcp"];
    let image = ["--publish", "7000:7000/udp", "probe:1", "netmig-probe", "serve"];
    a.podman([&start, &image[..], arguments].concat())?;
    c.probe().wait_for_echo(a.port(7000), Duration::from_secs(10))?;
    Ok((a, c))
}

fn undisturbed(context: &Context, runtime: Runtime) -> Result<()> {
    let lab = context.lab_with(&["a", "b", "c"], runtime)?;
    let (a, c) = serve(&lab, &["--memory", "8", "--log", "/tmp/log"])?;
    let used = a.podman(["inspect", "--format", "{{.OCIRuntime}}", "web"])?;
    ensure!(used == runtime.name(), "the runtime is {used}");
    let tcp = c.probe().tcp_echo(a.port(7000)).rate(1000.0).start()?;
    let udp = c.probe().udp_echo(a.port(7000)).rate(1000.0).start()?;
    std::thread::sleep(Duration::from_secs(1));
    let (tcp, udp) = (tcp.stop()?, udp.stop()?);
    for (name, seen) in [("TCP", &tcp), ("UDP", &udp)] {
        ensure!(seen.fault().is_none(), "{name}: {:?} of {seen:?}", seen.fault());
        let rate = seen.sent as f64 / seen.seconds;
        ensure!((900.0..1050.0).contains(&rate), "{name}: {rate:.0} messages a second");
    }
    let stats = c.probe().stats(a.port(7001))?;
    ensure!(stats.udp_received == udp.sent, "{stats:?} of {udp:?}");
    ensure!(stats.memory_bytes == 8 << 20 && stats.memory_bad == 0, "{stats:?}");
    let log = a.podman(["exec", "web", "cat", "/tmp/log"])?;
    let numbered = (0..).zip(log.lines()).all(|(number, line)| {
        line.split_once(' ').is_some_and(|(first, _)| first == format!("{number}"))
    });
    ensure!(numbered && log.lines().count() > 100, "the log is {log}");
    context.remark(format!("gaps {:.0} and {:.0} ms", tcp.max_gap_ms, udp.max_gap_ms));
    Ok(())
}

fn many_connections(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "c"])?;
    let (a, c) = serve(&lab, &[])?;
    let client = c.probe().tcp_echo(a.port(7000)).rate(2000.0).connections(1000).idle(1000);
    let seen = client.start()?.stop()?;
    ensure!(seen.fault().is_none(), "{:?}", seen.fault());
    ensure!(seen.connections == 1000 && seen.idle_alive == 1000, "{seen:?}");
    Ok(())
}

fn bulk(context: &Context) -> Result<()> {
    const BYTES: u64 = 200_000_000;
    let lab = context.lab(&["a", "c"])?;
    let (a, c) = serve(&lab, &[])?;
    for direction in [Direction::Up, Direction::Down] {
        let run = c.probe().bulk(a.port(7001), direction).bytes(BYTES).start()?;
        let seen = run.finish(Duration::from_secs(30))?;
        ensure!(seen.fault().is_none() && seen.bytes == BYTES, "{seen:?}");
        context.remark(format!("{:.0} Mbit/s", seen.mbit_s));
        let endless = c.probe().bulk(a.port(7001), direction).rate_limit(10_000_000).start()?;
        let seen = endless.stop()?;
        ensure!(seen.fault().is_none() && seen.bytes > 5_000_000, "{seen:?}");
    }
    Ok(())
}

/// The clients detect a killed server.
fn killed_server(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "c"])?;
    let (a, c) = serve(&lab, &[])?;
    let tcp = c.probe().tcp_echo(a.port(7000)).connections(5).idle(3).start()?;
    let udp = c.probe().udp_echo(a.port(7000)).start()?;
    let bulk = c.probe().bulk(a.port(7001), Direction::Down).rate_limit(1_000_000).patience(2);
    let bulk = bulk.start()?;
    a.podman(["kill", "web"])?;
    let (tcp, udp, bulk) = (tcp.stop()?, udp.stop()?, bulk.stop()?);
    ensure!(tcp.resets + tcp.eof == 5 && tcp.idle_alive == 0, "{tcp:?}");
    ensure!(udp.lost > 500, "{udp:?}");
    ensure!(bulk.fault().is_some(), "{bulk:?}");
    Ok(())
}

fn pause(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "c"])?;
    let (a, c) = serve(&lab, &[])?;
    let tcp = c.probe().tcp_echo(a.port(7000)).start()?;
    std::thread::sleep(Duration::from_millis(300));
    a.podman(["pause", "web"])?;
    std::thread::sleep(Duration::from_millis(400));
    a.podman(["unpause", "web"])?;
    let seen = tcp.stop()?;
    ensure!(seen.fault().is_none(), "{:?}", seen.fault());
    ensure!((400.0..900.0).contains(&seen.max_gap_ms), "{seen:?}");
    Ok(())
}

fn images(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    a.podman(["run", "--detach", "--name", "redis", "--publish", "6379:6379", "redis:1"])?;
    a.podman(
        ["run", "--detach", "--name", "nginx", "--publish", "80:80", "nginx:1", "sh", "-c"]
            .into_iter()
            .chain(["seq 100000 >/srv/numbers; exec nginx -c /etc/nginx.conf"]),
    )?;
    let python = "import os, socket, subprocess, threading; print(os.getpid())";
    let said = a.podman(["run", "--rm", "python:1", "python3", "-c", python])?;
    ensure!(said == "1", "python said {said}");
    let counted = c.command("sh").args(["-c"]).args([
        "for i in 1 2 3 4 5 6 7 8 9 10; do redis-cli -h a incr x && exit; sleep 0.2; done; exit 1",
    ]);
    ensure!(counted.run()?.text() == "1", "redis does not count");
    let fetched = c.command("sh").args(["-c", "curl --silent --retry 5 http://a/numbers | wc -l"]);
    ensure!(fetched.run()?.text() == "100000", "nginx does not serve");
    Ok(())
}
