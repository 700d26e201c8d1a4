//! Memory that goes over after the decision: the container runs while pages of its memory are still at the source.

use nix::sys::signal::Signal;

use super::kernel_release::needs_kernel;
use super::memory_programs::{
    MEMORY, SETTLES, check_memory, goes_on_checking, has_no_fault, is_all_in_place, says,
    start_changing, start_writing,
};
use super::outstanding_memory::Outstanding;
use super::promise::{LIMIT, settled, until};
use super::subject::{Clients, serve};
use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::breakpoint::{self, Breakpoint};
use crate::faults::container_state::{self, State};
use crate::faults::injection_point::accept_agent_packets;
use crate::programs::PROBE;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("memory-post-copy-from-host-to-host", &["memory"], follows).limit(300),
    Case::new("memory-post-copy-of-what-does-not-converge", &["memory"], written).limit(300),
    Case::new("memory-post-copy-of-a-program-that-changes-it", &["memory"], changes).limit(240),
    Case::new("memory-post-copy-sends-what-is-needed-first", &["memory"], needed_first).limit(240),
    Case::new("memory-post-copy-waits-for-the-link", &["memory"], link_cut).limit(300),
    Case::new("memory-post-copy-without-its-agent", &["memory"], agent_killed).limit(300),
    Case::new("memory-post-copy-is-recovered", &["memory"], recovered).limit(300),
    Case::new("memory-post-copy-without-the-destinations-agent", &["memory"], server_killed)
        .limit(300),
    Case::new("memory-post-copy-is-not-taken-back", &["memory"], cancelled).limit(240),
    Case::new("memory-post-copy-goes-back-before-the-decision", &["memory"], goes_back).limit(240),
];

/// The step in which the destination fetches pages.
const FETCHED: &str = "memory, while it runs there";

/// A server moves on as soon as its memory is whole; every byte is right on each host, and its connections notice a pause alone.
fn follows(context: &Context) -> Result<()> {
    needs_kernel()?;
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    lab.serve("a")?;
    lab.serve("b")?;
    serve(a, "web", 7000, &["--memory", MEMORY], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    for (from, to, mode) in [("a", "b", "post-copy"), ("b", "a", "hybrid"), ("a", "b", "hybrid")] {
        let options = ["--memory", mode, "--max-interruption", "60"];
        let moved = lab.attempt("web", from, to, &options)?.success()?;
        let step = moved.steps.iter().find(|step| step.name == FETCHED);
        let fetched = step.ok_or_else(|| Error::Check(format!("{:?}", moved.steps)))?.bytes >> 20;
        ensure!(mode == "hybrid" || fetched > 150, "only {fetched} MiB came later");
        context.remark(format!("{mode}: {fetched} MiB later, {:.0} ms", moved.interruption_ms));
    }
    check_memory(&lab, "b")?;
    context.remark(clients.stop()?.gaps());
    settled(&lab)?;
    for host in ["a", "b"] {
        ensure!(is_all_in_place(lab.host(host)?)?, "a lock is left on {host}");
    }
    Ok(())
}

/// A program that writes all of its memory faster than the link carries it goes over in rounds, and the rest after the decision.
/// It finds every page as it has left it.
fn written(context: &Context) -> Result<()> {
    needs_kernel()?;
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve("b")?;
    start_writing(a)?;
    let options = [
        "--memory",
        "pre-copy",
        "--non-converging",
        "post-copy",
        "--downtime-limit",
        "0.1",
        "--bandwidth",
        "30MB",
        "--max-interruption",
        "60",
    ];
    let moved = lab.attempt("web", "a", "b", &options)?.success()?;
    ensure!(moved.steps.iter().any(|step| step.name == FETCHED), "{:?}", moved.steps);
    goes_on_checking(b)?;
    settled(&lab)
}

/// A program empties, moves, unmaps and shares its memory while it is not there yet.
fn changes(context: &Context) -> Result<()> {
    needs_kernel()?;
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    breakpoint::install(b)?;
    lab.serve("b")?;
    start_changing(a)?;
    Breakpoint::AfterRestore.set(b)?;
    let words = ["migrate", "web", "b", "--memory", "post-copy", "--bandwidth", "20MB"];
    let limit = ["--max-interruption", "60"];
    let order = a.command("agent-client").args(words.into_iter().chain(limit)).spawn()?;
    until("the copy is restored", LIMIT, || Ok(Breakpoint::AfterRestore.is_hit(b)))?;
    // The program is to notice that it stood still.
    std::thread::sleep(SETTLES);
    Breakpoint::AfterRestore.release(b)?;
    let said = order.wait(LIMIT)?.success()?.error_text();
    ensure!(said.contains(FETCHED), "nothing came later: {said}");
    says(b, "all is right")?;
    settled(&lab)
}

/// Pages that the server needs come at once, whatever the others may take.
fn needed_first(context: &Context) -> Result<()> {
    let this = Outstanding::begin(context, &[])?;
    this.check_memory()?;
    let said = this.end()?;
    context.remark(said.lines().last().unwrap_or_default().trim().to_owned());
    Ok(())
}

/// The link is cut. What needs pages waits; once the link is there again, everything goes on.
fn link_cut(context: &Context) -> Result<()> {
    let this = Outstanding::begin(context, &[])?;
    let (b, c) = (this.host("b")?, this.host("c")?);
    this.cut_link()?;
    let address = format!("{}:7001", b.address());
    let mut check = c.command(PROBE).args(["stats", &address]).limit(LIMIT).spawn()?;
    std::thread::sleep(SETTLES);
    ensure!(check.is_running(), "it did not wait: {}", check.stdout());
    this.is_frozen_and_runs()?;
    accept_agent_packets(b)?;
    let seen = check.wait(LIMIT)?.success()?;
    has_no_fault(&seen.text())?;
    this.end()?;
    Ok(())
}

/// The source's agent is killed. Its guardian sends the rest, and removes the original then.
fn agent_killed(context: &Context) -> Result<()> {
    let mut this = Outstanding::begin(context, &[])?;
    this.host("a")?.run(["pkill", "-KILL", "-f", "agent-client migrate"])?;
    this.order.await_end(LIMIT)?;
    this.is_frozen_and_runs()?;
    this.check_memory()?;
    settled(&this.lab)?;
    let states = (this.state("a")?, this.state("b")?);
    ensure!(states == (State::Absent, State::Running), "original and copy: {states:?}");
    this.clients.stop_losing(u64::MAX).map(drop)
}

/// The source's agent and its guardian are killed. `recover` sends the rest, and removes the original then.
fn recovered(context: &Context) -> Result<()> {
    let mut this = Outstanding::begin(context, &[])?;
    let a = this.lab.host("a")?;
    let mut refused = a.command("agent-client").args(["migrate", "web", "b"]).spawn()?;
    refused.await_end(LIMIT)?;
    ensure!(refused.stderr().contains("pages are outstanding"), "{}", refused.stderr());
    // The guardian takes over otherwise.
    a.run(["pkill", "-KILL", "-f", "recover --watch"])?;
    a.run(["pkill", "-KILL", "-f", "agent-client migrate web b --memory"])?;
    this.order.await_end(LIMIT)?;
    std::thread::sleep(SETTLES);
    this.is_frozen_and_runs()?;
    let mut refused = a.command("agent-client").args(["migrate", "web", "b"]).spawn()?;
    refused.await_end(LIMIT)?;
    ensure!(
        refused.stderr().contains("pages of its memory are outstanding"),
        "{}",
        refused.stderr()
    );
    let recovery = a.command("agent-client").args(["recover"]).limit(LIMIT).output()?.success()?;
    let said = recovery.error_text();
    ensure!(said.contains("all memory has arrived"), "no word of it: {said}");
    settled(&this.lab)?;
    this.check_memory()?;
    let left = this.state("a")?;
    ensure!(left == State::Absent, "the original is still there: {left:?}");
    this.clients.stop_losing(u64::MAX).map(drop)
}

/// The destination's agent is killed. Its server of pages waits, and goes on with the next agent.
fn server_killed(context: &Context) -> Result<()> {
    let this = Outstanding::begin(context, &[])?;
    this.lab.stop_server("b", Signal::SIGKILL)?;
    std::thread::sleep(SETTLES);
    this.is_frozen_and_runs()?;
    this.lab.serve("b")?;
    this.check_memory()?;
    this.end()?;
    Ok(())
}

/// The user wants to end the agent, which says why it does not.
fn cancelled(context: &Context) -> Result<()> {
    let mut this = Outstanding::begin(context, &[])?;
    this.order.signal(Signal::SIGINT)?;
    until("it says why", LIMIT, || Ok(this.order.stderr().contains("the move is decided")))?;
    this.is_frozen_and_runs()?;
    this.check_memory()?;
    this.end()?;
    Ok(())
}

/// The user ends the agent before the decision. The original goes on, and nothing waits for pages of it any more.
fn goes_back(context: &Context) -> Result<()> {
    needs_kernel()?;
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    breakpoint::install(b)?;
    lab.serve("b")?;
    serve(a, "web", 7000, &["--memory", MEMORY], c)?;
    let id = container_state::id(a, "web")?;
    Breakpoint::AfterRestore.set(b)?;
    let words = ["migrate", "web", "b", "--memory", "post-copy", "--max-interruption", "60"];
    let mut order = a.command("agent-client").args(words).spawn()?;
    until("the copy is restored", LIMIT, || Ok(Breakpoint::AfterRestore.is_hit(b)))?;
    order.signal(Signal::SIGINT)?;
    Breakpoint::AfterRestore.release(b)?;
    let end = order.wait(LIMIT)?;
    ensure!(end.status.code() == Some(4), "exit {:?}: {}", end.status.code(), end.error_text());
    settled(&lab)?;
    ensure!(container_state::state(a, &id) == State::Running, "the original does not run");
    ensure!(container_state::state(b, &id) == State::Absent, "a copy is left");
    until("nothing waits for pages", LIMIT, || is_all_in_place(b))?;
    c.probe().wait_for_echo(a.port(7000), LIMIT)
}
