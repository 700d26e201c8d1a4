//! Migrations that are cancelled before their commit. The container goes on where it was.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::subject::{Clients, serve};
use super::untouched::Untouched;
use crate::ensure;
use crate::error::Result;
use crate::faults::breakpoint;
use crate::host::host_process::HostProcess;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("cancel-by-the-user", &["migration", "cancel"], by_the_user),
    Case::new("cancel-by-a-dead-destination", &["migration", "cancel"], dead_destination),
];

/// The exit code of a migration that was rolled back.
const ROLLED_BACK: i32 = 4;
/// The time limit for a rollback.
const LIMIT: Duration = Duration::from_secs(60);

/// Memory that makes the dump last long enough for a signal to arrive during it.
const MEMORY: [&str; 2] = ["--memory", "192"];

fn client(lab: &Lab) -> Result<HostProcess> {
    let words = ["migrate", "web", "b", "--max-interruption", "30"];
    lab.host("a")?.command("agent-client").args(words).spawn()
}

fn turned_back(process: HostProcess, words: &str) -> Result<()> {
    let output = process.wait(LIMIT)?;
    let text = output.error_text();
    ensure!(output.status.code() == Some(ROLLED_BACK), "{}: {text}", output.status);
    ensure!(text.contains("the container runs here as before"), "it says {text}");
    ensure!(text.contains(words) && !text.contains("still to be cleaned up"), "it says {text}");
    Ok(())
}

/// Ctrl-C while the destination stages, and again while the container is frozen.
fn by_the_user(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    lab.serve("b")?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    // The first container on a host leaves an empty table of netavark's.
    b.podman(["run", "--rm", "probe:1", "true"])?;
    breakpoint::install(b)?;
    breakpoint::delay_step(b, "restore", Duration::from_secs(1))?;
    serve(a, "web", 7000, &MEMORY, c)?;
    let clients = Clients::start(c, a.port(7000))?;
    // The line of a step appears at its end.
    for (after, pause) in [("tunnel", 20), ("files, first pass", 150)] {
        let before = Untouched::look(&lab, "a", "b", "web")?;
        let mut process = client(&lab)?;
        process.wait_for(after, LIMIT)?;
        std::thread::sleep(Duration::from_millis(pause));
        let state = a.run(["sh", "-c", "cat $(find /sys/fs/cgroup -name cgroup.events)"])?;
        process.signal(Signal::SIGINT)?;
        turned_back(process, "cancelled")?;
        context.remark(format!("after {after}: frozen {}", state.contains("frozen 1")));
        before.check()?;
    }
    context.remark(clients.stop()?.gaps());
    lab.migrate("web", "a", "b").map(drop)
}

/// The destination's agent is killed while it stages. The next agent finds the host ready for another attempt.
fn dead_destination(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    lab.serve("b")?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    serve(a, "web", 7000, &MEMORY, c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    let before = a.snapshot()?;
    let mut process = client(&lab)?;
    process.wait_for("tunnel", LIMIT)?;
    std::thread::sleep(Duration::from_millis(20));
    lab.stop_server("b", Signal::SIGKILL)?;
    turned_back(process, "closed the connection")?;
    before.await_return(a, LIMIT, super::untouched::without_own_state)?;
    let running = a.podman(["inspect", "--format", "{{.State.Status}}", "web"])?;
    ensure!(running == "running", "the container is {running}");
    let there = b.podman(["ps", "--quiet"])?;
    ensure!(there.is_empty(), "the destination runs {there}");
    context.remark(clients.stop()?.gaps());
    Ok(())
}
