//! What puts memory in place after a move is killed.

use nix::sys::signal::Signal;

use super::memory_programs::{
    FOLLOWS, HOLDER, MEMORY, SERVER, check_memory, is_all_in_place, process, says, start_changing,
};
use super::promise::{LIMIT, settled, until};
use super::subject::serve;
use crate::ensure;
use crate::error::Result;
use crate::faults::breakpoint::{self, Breakpoint};
use crate::faults::container_state::{self, State};
use crate::faults::injection_point::{accept_agent_packets, drop_agent_packets};
use crate::faults::observation::has_record;
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("memory-follows-without-its-server", &["memory"], server_killed).limit(240),
    Case::new("memory-follows-through-many-servers", &["memory"], servers_killed).limit(240),
    Case::new("memory-follows-without-its-holder", &["memory"], holder_killed).limit(240),
    Case::new("memory-that-is-lost-ends-the-container", &["memory"], |context| {
        both_killed(context, Agent::Runs)
    })
    .limit(240),
    Case::new("memory-that-is-lost-is-noticed-later", &["memory"], |context| {
        both_killed(context, Agent::Killed)
    })
    .limit(240),
    Case::new("memory-that-cannot-follow-ends-the-move", &["memory"], killed_before).limit(240),
];

/// Whether the destination's agent-server is there when memory is lost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Agent {
    Runs,
    Killed,
}

/// Begins a move in which all memory goes over in the interruption.
fn order(host: &Host) -> Result<HostProcess> {
    let words = ["migrate", "web", "b", "--max-interruption", "60", "--memory", "stop"];
    host.command("agent-client").args(words).spawn()
}

/// Leads a move to the moment at which it is decided, and the destination has not heard of it. Returns the order and the
/// server of pages there, which stands still. [`go_on`] leads on.
fn decided(lab: &Lab) -> Result<(HostProcess, i32)> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    Breakpoint::AfterRestore.set(b)?;
    let order = order(a)?;
    until("the copy is restored", LIMIT, || Ok(Breakpoint::AfterRestore.is_hit(b)))?;
    drop_agent_packets(b, a, "dport")?;
    Breakpoint::AfterRestore.release(b)?;
    until("the move is decided", LIMIT, || Ok(has_record(a, "committed")))?;
    let server = process(b, SERVER)?;
    b.run(["kill", "-STOP", &server.to_string()])?;
    Ok((order, server))
}

/// Has the destination hear of the decision.
fn go_on(lab: &Lab) -> Result<()> {
    let b = lab.host("b")?;
    accept_agent_packets(b)?;
    until("the copy is the container", LIMIT, || Ok(has_record(b, "activated")))
}

fn no_lock_is_left(host: &Host) -> Result<()> {
    until("the lock is gone", LIMIT, || is_all_in_place(host))?;
    let left = || host.command("pgrep").args(["--full", "netmig-shim"]).output();
    until("no server is left", LIMIT, || Ok(left()?.text().is_empty()))
}

/// The server is killed while a container waits for nearly all of its pages. Every byte is right in the end.
fn server_killed(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    breakpoint::install(b)?;
    lab.serve("b")?;
    serve(a, "web", 7000, &["--memory", MEMORY], c)?;
    let (order, server) = decided(&lab)?;
    go_on(&lab)?;
    b.run(["kill", "-KILL", &server.to_string()])?;
    order.wait(LIMIT)?.success()?;
    ensure!(lab.server_log("b").contains(FOLLOWS), "all memory was restored at once");
    c.probe().wait_for_echo(b.port(7000), LIMIT)?;
    check_memory(&lab, "b")?;
    let log = b.read("/run/netmig/lazy-pages.log")?;
    ensure!(log.contains("its holder goes on"), "no word of it: {log}");
    no_lock_is_left(b)?;
    settled(&lab)
}

/// One server after another is killed while a program empties, moves, unmaps and shares its memory.
fn servers_killed(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    breakpoint::install(b)?;
    lab.serve("b")?;
    start_changing(a)?;
    let (order, _) = decided(&lab)?;
    go_on(&lab)?;
    let mut killed = 0;
    while killed < 20 && !is_all_in_place(b)? {
        let Ok(server) = process(b, SERVER) else { continue };
        // Each server has a holder before it is killed. None is needed when all pages are in place.
        while process(b, HOLDER).is_err() && process(b, SERVER).is_ok() {}
        let _ = b.run(["kill", "-KILL", &server.to_string()]);
        killed += 1;
    }
    context.remark(format!("{killed} killed"));
    ensure!(killed > 0, "there was no server");
    order.wait(LIMIT)?.success()?;
    let told = b.read("/run/netmig/lazy-pages.log")?;
    ensure!(!told.contains("killing"), "{told}");
    says(b, "all is right")?;
    no_lock_is_left(b)?;
    settled(&lab)
}

/// The holder is killed, and then the server: there is another holder.
fn holder_killed(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    breakpoint::install(b)?;
    lab.serve("b")?;
    start_changing(a)?;
    let (order, server) = decided(&lab)?;
    let holder = process(b, HOLDER)?;
    b.run(["kill", "-KILL", &holder.to_string()])?;
    b.run(["kill", "-CONT", &server.to_string()])?;
    until("another holder", LIMIT, || Ok(process(b, HOLDER).is_ok_and(|other| other != holder)))?;
    b.run(["kill", "-STOP", &server.to_string()])?;
    go_on(&lab)?;
    b.run(["kill", "-KILL", &server.to_string()])?;
    order.wait(LIMIT)?.success()?;
    says(b, "all is right")?;
    no_lock_is_left(b)
}

/// Server and holder are killed at once. The container, which would go on with empty pages, is ended, and the log of agent-server
/// says so: at once, or when it starts.
fn both_killed(context: &Context, agent: Agent) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    breakpoint::install(b)?;
    lab.serve("b")?;
    serve(a, "web", 7000, &["--memory", MEMORY], c)?;
    let id = container_state::id(a, "web")?;
    let (order, server) = decided(&lab)?;
    let holder = process(b, HOLDER)?;
    go_on(&lab)?;
    let moved = order.wait(LIMIT)?;
    ensure!(moved.status.success(), "{}", moved.error_text());
    let both = [holder.to_string(), server.to_string()];
    match agent {
        Agent::Runs => drop(b.run(["kill", "-KILL", &both[0], &both[1]])?),
        Agent::Killed => {
            let agent = process(b, "agent-server")?.to_string();
            b.run(["kill", "-KILL", &agent, &both[0], &both[1]])?;
            lab.stop_server("b", Signal::SIGKILL)?;
            lab.serve("b")?;
        }
    }
    until("the copy has ended", LIMIT, || Ok(container_state::state(b, &id) == State::Absent))?;
    let words = ["was killed: memory", "web", "lazy-pages.log"];
    until("the log says so", LIMIT, || {
        let log = lab.server_log("b");
        Ok(words.iter().all(|word| log.contains(word)))
    })?;
    let code = b.podman(["inspect", "--format", "{{.State.ExitCode}}", "web"])?;
    ensure!(code.trim() == "137", "exit code {code}");
    no_lock_is_left(b)?;
    ensure!(container_state::state(a, &id) != State::Running, "the original runs again");
    Ok(())
}

/// The server is killed while the copy is restored: the original goes on.
fn killed_before(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    breakpoint::install(b)?;
    lab.serve("b")?;
    serve(a, "web", 7000, &["--memory", MEMORY], c)?;
    let id = container_state::id(a, "web")?;
    Breakpoint::AfterRestore.set(b)?;
    let order = order(a)?;
    until("the copy is restored", LIMIT, || Ok(Breakpoint::AfterRestore.is_hit(b)))?;
    b.run(["kill", "-KILL", &process(b, SERVER)?.to_string()])?;
    Breakpoint::AfterRestore.release(b)?;
    let end = order.wait(LIMIT)?;
    let said = end.error_text();
    ensure!(end.status.code() == Some(4), "exit {:?}: {said}", end.status.code());
    ensure!(said.contains("memory"), "no word of it: {said}");
    ensure!(container_state::state(a, &id) == State::Running, "the original does not run");
    c.probe().wait_for_echo(a.port(7000), LIMIT)?;
    no_lock_is_left(b)?;
    settled(&lab)
}
