//! An active copy that is lost. Only the operator may let the original run again.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{LIMIT, settled, until};
use crate::cases::terminal::Terminal;
use crate::ensure;
use crate::error::{Context as _, Result};
use crate::faults::breakpoint::{self, Breakpoint};
use crate::faults::container_state::{self, State};
use crate::faults::injection_point::{accept_agent_packets, drop_agent_packets};
use crate::faults::observation::has_record;
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("promise-a-lost-copy-is-not-denied", &["promise"], |context| {
        lost(context, Operator::TakesBack)
    })
    .limit(300),
    Case::new("promise-a-second-copy-is-told-of", &["promise"], |context| {
        lost(context, Operator::Unpauses)
    })
    .limit(300),
    Case::new("promise-a-lost-copy-is-looked-for-again", &["promise"], |context| {
        lost(context, Operator::FindsPodmanSilent)
    })
    .limit(300),
    Case::new("promise-a-lost-copy-and-no-original", &["promise"], |context| {
        lost(context, Operator::Removes)
    })
    .limit(300),
    Case::new("promise-a-second-copy-is-told-of-after-the-answer", &["promise"], second).limit(300),
];

/// A podman that fails when it is asked about a container, as long as a file exists.
const SILENT: &str = r#"#!/bin/sh
for word; do
    case "$word" in
        ID) [ -e /run/podman-is-silent ] && exit 125 ;;
    esac
done
exec /usr/bin/podman "$@"
"#;
/// The time for which podman is silent after the start of agent-server.
const SILENCE: Duration = Duration::from_secs(4);

/// What the operator does about the original of a move in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    /// Orders that it run again.
    TakesBack,
    /// Lets it run by the container engine, which netmig cannot prevent.
    Unpauses,
    /// Removes it.
    Removes,
    /// Has an engine at the destination that tells nothing of the container when the agent starts again.
    FindsPodmanSilent,
}

/// The exit code of a migration in doubt.
const IN_DOUBT: i32 = 5;
/// The exit code when something is left to do at the source.
const LEFT_OVER: i32 = 6;
/// The time during which the original is observed.
const WATCHED: Duration = Duration::from_secs(5);

/// Moves a container whose copy is the container now, while the source does not hear of it. Returns the container's ID and
/// the agent.
fn unanswered(a: &Host, b: &Host, lab: &Lab) -> Result<(String, HostProcess)> {
    breakpoint::install(b)?;
    lab.serve("b")?;
    let run = ["run", "--detach", "--name", "web", "probe:1", "netmig-probe", "serve"];
    let id = a.podman(run)?;
    Breakpoint::AfterRestore.set(b)?;
    let words = ["migrate", "web", "b", "--max-interruption", "60"];
    let order = a.command("agent-client").args(words).spawn()?;
    until("the copy is restored", LIMIT, || Ok(Breakpoint::AfterRestore.is_hit(b)))?;
    // The decision is made, and the destination does not receive it.
    drop_agent_packets(b, a, "dport")?;
    Breakpoint::AfterRestore.release(b)?;
    until("the move is decided", LIMIT, || Ok(has_record(a, "committed")))?;
    // Now the destination receives the decision, and the source does not receive the answer.
    drop_agent_packets(a, b, "sport")?;
    accept_agent_packets(b)?;
    until("the copy is the container", LIMIT, || Ok(has_record(b, "activated")))?;
    Ok((id, order))
}

fn lost(context: &Context, operator: Operator) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let (id, order) = unanswered(a, b, &lab)?;
    end_everything(b, &id)?;
    if operator == Operator::FindsPodmanSilent {
        b.write("/usr/local/bin/podman", SILENT.replace("ID", &id))?;
        b.run(["chmod", "755", "/usr/local/bin/podman"])?;
        b.write("/run/podman-is-silent", "")?;
    }
    lab.serve("b")?;
    accept_agent_packets(a)?;
    if operator == Operator::FindsPodmanSilent {
        std::thread::sleep(SILENCE);
        b.run(["rm", "/run/podman-is-silent"])?;
    }

    let end = order.wait(LIMIT)?;
    let said = end.error_text();
    ensure!(end.status.code() == Some(IN_DOUBT), "exit {:?}: {said}", end.status.code());
    ensure!(said.contains("is gone"), "no word of the loss: {said}");
    std::thread::sleep(WATCHED);
    let (here, there) = (container_state::state(a, &id), container_state::state(b, &id));
    ensure!(
        here == State::Frozen && there == State::Absent,
        "the original is {here:?}, the copy {there:?}"
    );
    let recovery = a.command("agent-client").args(["recover"]).output()?;
    // The guardian may hold the journal at this time.
    ensure!(recovery.status.code() == Some(IN_DOUBT), "{recovery:?}");
    ensure!(container_state::state(a, &id) == State::Frozen, "the original runs after recover");

    // podman would make a second copy of a container that runs as far as it knows.
    let status = || a.podman(["inspect", "--format", "{{.State.Status}}", "web"]);
    ensure!(status()? == "paused", "podman shows it as {}", status()?);
    for order in ["restart", "start"] {
        let output = a.command("podman").args([order, "web"]).output()?;
        ensure!(!output.status.success(), "podman {order} is obeyed");
    }
    if operator == Operator::Unpauses {
        a.podman(["unpause", "web"])?;
        let recovery = a.command("agent-client").args(["recover"]).output()?;
        let said = recovery.error_text();
        ensure!(recovery.status.code() == Some(IN_DOUBT), "{recovery:?}");
        ensure!(
            said.contains("although its move to b:7472 is decided"),
            "no word of a second copy: {said}"
        );
        return Ok(());
    }
    if operator == Operator::Removes {
        a.podman(["rm", "--force", "--time", "0", "web"])?;
        until("nothing is left to decide", LIMIT, || {
            let recovery = a.command("agent-client").args(["recover"]).limit(LIMIT).output()?;
            Ok(recovery.status.success())
        })?;
        ensure!(!has_record(a, "committed"), "the journal is left");
        let forwarded = a.run(["agent-client", "forward", "list"])?;
        ensure!(forwarded.contains("Nothing is forwarded"), "{forwarded}");
        return settled(&lab);
    }
    let back = ["recover", "--rollback-anyway", "web"];
    let mut terminal = Terminal::start(a.command("agent-client").args(back))?;
    terminal.expect("two of it will", LIMIT)?;
    terminal.send("web\r")?;
    terminal.expect("runs on this host again", LIMIT)?;
    ensure!(terminal.finish(LIMIT)? == Some(0), "{}", terminal.screen());
    ensure!(container_state::state(a, &id) == State::Running, "the original does not run");
    ensure!(status()? == "running", "podman shows it as {}", status()?);
    Ok(())
}

/// A move is in doubt since the answers of the destination do not arrive, and a person lets the original run. Once the
/// destination answers, there are two copies, and `recover` says so until one of them is stopped.
fn second(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let (id, mut order) = unanswered(a, b, &lab)?;
    // Neither the agent nor its guardian settles the move before the person acts.
    order.signal(Signal::SIGKILL)?;
    until("podman shows the original as paused", LIMIT, || {
        let status = a.podman(["inspect", "--format", "{{.State.Status}}", "web"])?;
        if status != "paused" {
            let _ = a.command("agent-client").args(["recover"]).limit(LIMIT).output()?;
        }
        Ok(status == "paused")
    })?;
    a.podman(["unpause", "web"])?;
    accept_agent_packets(a)?;
    until("the guardian has given up", LIMIT, || {
        let recovery = a.command("agent-client").args(["recover"]).limit(LIMIT).output()?;
        Ok(recovery.error_text().contains("There are two of it: stop one"))
    })?;
    for _ in 0..2 {
        let recovery = a.command("agent-client").args(["recover"]).limit(LIMIT).output()?;
        let said = recovery.error_text();
        ensure!(recovery.status.code() == Some(LEFT_OVER), "{:?}: {said}", recovery.status);
        ensure!(said.contains("There are two of it: stop one"), "no word of it: {said}");
    }
    let running = |host| container_state::state(host, &id) == State::Running;
    ensure!(running(a) && running(b), "recover has stopped one of two");
    a.podman(["stop", "--time", "0", "web"])?;
    let recovery = a.command("agent-client").args(["recover"]).limit(LIMIT).output()?;
    ensure!(recovery.status.success(), "{}", recovery.error_text());
    ensure!(running(b), "the copy does not run any more");
    let left = a.podman(["ps", "--all", "--quiet"])?;
    ensure!(left.is_empty(), "the original is left");
    Ok(())
}

/// Kills the copy and every process that could restore or report it.
pub(super) fn end_everything(host: &Host, id: &str) -> Result<()> {
    for program in ["agent-server", "exe", "podman", "conmon", "netmig-shim", "crun"] {
        // Not every program runs.
        let _ = host.command("pkill").args(["-KILL", "-x", program]).output()?;
    }
    for cgroup in container_state::cgroups(host, id) {
        let path = cgroup.join("cgroup.kill");
        fs::write(&path, "1").context(|| format!("writing {}", path.display()))?;
    }
    until("the copy is gone", LIMIT, || Ok(container_state::processes(host, id).is_empty()))
}
