//! `agent-client flows end` ends carried connections at once on all hosts.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::cases::flows::{opener, traces};
use crate::cases::subject::serve;
use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::probe::EchoRun;
use crate::runner::{Case, Context};
use crate::slowdown;

pub(super) const CASES: &[Case] = &[
    Case::new("flows-end-at-the-anchor", &["fidelity", "flows"], at_the_anchor),
    Case::new("flows-end-while-the-peer-is-silent", &["fidelity", "flows"], silent),
    Case::new("flows-end-where-the-container-is", &["fidelity", "flows"], at_the_container),
];

/// The exit code of success.
const DONE: i32 = 0;
/// The exit code of an order that another host could not be told.
const LEFT: i32 = 6;
const USAGE: i32 = 2;
const REFUSED: i32 = 3;
/// The time limit for traces to go.
const END: Duration = Duration::from_secs(40);
/// The time limit for a reset to arrive.
const AT_ONCE: Duration = Duration::from_secs(10);

fn at_the_anchor(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let _server = opener::server(c)?;
    let ports = ["--publish", "7100-7101:7000-7001/tcp", "--publish", "7100:7000/udp"];
    opener::start(a, "web", c.port(7000), &ports)?;
    c.probe().wait_for_echo(a.port(7100), AT_ONCE)?;
    let tcp = c.probe().tcp_echo(a.port(7100)).rate(20.0).start()?;
    let mut idle = c.probe().tcp_echo(a.port(7100)).rate(0.1).start()?;
    lab.migrate("web", "a", "b")?;
    // Other connections are not touched.
    let ends = ["--from", "192.0.2.9:1", "--to", "192.0.2.1:7100"];
    said(a, &ends, REFUSED, "carries no such flow")?;
    said(a, &["other"], REFUSED, "carries no such flow")?;
    said(a, &["web", "--far-end", "192.0.2.9"], REFUSED, "carries no such flow")?;
    said(a, &[], USAGE, "CONTAINER")?;
    ensure!(idle.is_running(), "a connection has ended");
    // First the UDP flows and the outbound connections, by their far end.
    let far = format!("{}:7000", c.address());
    let before = flows(a)?;
    said(a, &["web", "--far-end", &far], DONE, "ended")?;
    ensure!(flows(a)? < before, "no flow has ended of {before}");
    said(a, &["web"], DONE, "ended")?;
    gone(idle)?;
    gone(tcp)?;
    for host in [a, b] {
        traces::none_within(host, END)?;
    }
    said(a, &["web"], REFUSED, "carries no such flow")?;
    // The container runs and can be migrated.
    lab.serve("a")?;
    lab.migrate("web", "b", "a")?;
    c.probe().wait_for_echo(a.port(7100), AT_ONCE)
}

fn at_the_container(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    for host in [a, b] {
        traces::forget_soon(host)?;
    }
    serve(a, "web", 7000, &[], c)?;
    let tcp = c.probe().tcp_echo(a.port(7000)).rate(20.0).start()?;
    let idle = c.probe().tcp_echo(a.port(7000)).rate(0.1).start()?;
    lab.migrate("web", "a", "b")?;
    let mut ended = 0;
    for flow in listed(b)? {
        let ends = [&flow["original"]["from"], &flow["original"]["to"]];
        let [from, to] = ends.map(|end| end.as_str().unwrap_or_default());
        said(b, &["--from", from, "--to", to], DONE, "ended 1 flows of web")?;
        ended += 1;
    }
    ensure!(ended >= 2, "only {ended} flows");
    gone(idle)?;
    gone(tcp)?;
    for host in [a, b] {
        traces::none_within(host, END)?;
    }
    Ok(())
}

/// A peer that cannot be told is named, and the order is no success.
fn silent(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    serve(a, "web", 7000, &[], c)?;
    let tcp = c.probe().tcp_echo(a.port(7000)).rate(20.0).start()?;
    lab.serve("a")?;
    lab.serve("b")?;
    lab.attempt("web", "a", "b", &["--forward"])?.success()?;
    lab.stop_server("b", Signal::SIGTERM)?;
    let order = ["forward", "remove", "web"];
    told(a, &order, LEFT, "run agent-client forward remove web on b")?;
    let listed = a.run(["agent-client", "forward", "list"])?;
    ensure!(listed.contains("Nothing is forwarded"), "{listed}");
    said(a, &["web"], LEFT, "run agent-client flows end web on b")?;
    ensure!(flows(a)? == 0, "flows are left");
    // What is left at the peer ends as the message says.
    lab.serve("b")?;
    told(b, &order, DONE, "not forwarded")?;
    if flows(b)? > 0 {
        said(b, &["web"], DONE, "ended")?;
    }
    drop(tcp.stop());
    for host in [a, b] {
        traces::none_within(host, END)?;
    }
    Ok(())
}

/// Runs `agent-client flows end` and checks its output.
fn said(host: &Host, arguments: &[&str], code: i32, word: &str) -> Result<()> {
    told(host, &[&["flows", "end"], arguments].concat(), code, word)
}

/// Runs `agent-client` and checks its output.
fn told(host: &Host, arguments: &[&str], code: i32, word: &str) -> Result<()> {
    let output = host.command("agent-client").args(arguments.iter().copied()).output()?;
    let said = format!("{}{}", output.text(), output.error_text());
    ensure!(output.status.code() == Some(code), "{arguments:?}: {:?}, {said}", output.status);
    ensure!(said.contains(word), "{arguments:?}: no {word:?} in {said}");
    Ok(())
}

/// Waits until a client's connection has ended.
fn gone(mut client: EchoRun) -> Result<()> {
    let deadline = Instant::now() + slowdown::limit(AT_ONCE);
    while client.is_running() {
        ensure!(Instant::now() < deadline, "a connection goes on");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn listed(host: &Host) -> Result<Vec<serde_json::Value>> {
    let list: serde_json::Value =
        host.command("agent-client").args(["flows", "--json"]).run()?.json()?;
    Ok(list["flows"].as_array().cloned().unwrap_or_default())
}

fn flows(host: &Host) -> Result<usize> {
    listed(host).map(|list| list.len())
}
