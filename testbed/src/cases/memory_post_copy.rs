//! Memory that goes over after the decision: the container runs while pages of its memory are still at the source.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::kernel_release::needs_kernel;
use super::memory::check_memory;
use super::page_server::{HOLDER, SERVER, process};
use super::promise::{LIMIT, settled, until};
use super::subject::{Clients, serve};
use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::Side;
use crate::faults::breakpoint::{self, Breakpoint};
use crate::faults::container_state::{self, State};
use crate::faults::injection_point::{accept_agent_packets, drop_agent_packets};
use crate::faults::observation::has_record;
use crate::faults::reboot::power_off;
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::lab::Lab;
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
    Case::new("memory-post-copy-whose-source-dies", &["memory"], source_dies).limit(300),
    Case::new("memory-post-copy-without-its-page-server", &["memory"], pages_killed).limit(300),
    Case::new("memory-post-copy-that-cannot-follow", &["memory"], both_killed).limit(240),
];

/// The memory of a server, in mebibytes.
const MEMORY: &str = "192";
/// The step in which the destination fetches pages.
const FETCHED: &str = "memory, while it runs there";
/// A rate at which that takes longer than anything else in a test.
const SLOWLY: &str = "1MB";
/// How long a program runs on before it is looked at.
const SETTLES: Duration = Duration::from_secs(2);

/// A lab with a server on `a` whose move to `b` is decided while most of its memory is still on `a`.
struct Outstanding {
    lab: Arc<Lab>,
    id: String,
    clients: Clients,
    order: HostProcess,
}

impl Outstanding {
    /// Starts the move. `arguments` are those of the destination's agent.
    fn begin(context: &Context, arguments: &[&str]) -> Result<Self> {
        needs_kernel()?;
        let lab = context.lab(&["a", "b", "c"])?;
        let (a, c) = (lab.host("a")?, lab.host("c")?);
        lab.serve_with("b", arguments)?;
        lab.serve("b")?;
        serve(a, "web", 7000, &["--memory", MEMORY], c)?;
        let id = container_state::id(a, "web")?;
        let clients = Clients::gentle(c, a.port(7000))?;
        let words = ["migrate", "web", "b", "--memory", "post-copy", "--bandwidth", SLOWLY];
        let limits = ["--max-interruption", "60", "--compress", "none"];
        let order = a.command("agent-client").args(words.iter().chain(&limits).copied()).spawn()?;
        until("pages are outstanding", LIMIT, || Ok(has_record(a, "pages-outstanding")))?;
        let this = Self { lab, id, clients, order };
        this.is_frozen_and_runs()?;
        Ok(this)
    }

    fn host(&self, name: &str) -> Result<&Host> {
        self.lab.host(name)
    }

    fn is_frozen_and_runs(&self) -> Result<()> {
        let of = |name: &str| Ok::<_, Error>(container_state::state(self.host(name)?, &self.id));
        ensure!(of("a")? == State::Frozen, "the original is not frozen but {:?}", of("a")?);
        ensure!(of("b")? == State::Running, "the copy does not run but is {:?}", of("b")?);
        Ok(())
    }

    /// Checks every byte, from the client's host: so all pages that are missing are needed at once.
    fn check_memory(&self) -> Result<()> {
        check_memory(&self.lab)
    }

    /// Waits until the move is done and checks that nothing is left.
    fn end(self) -> Result<String> {
        let said = self.order.wait(LIMIT)?.success()?.error_text();
        settled(&self.lab)?;
        let left = container_state::state(self.lab.host("a")?, &self.id);
        ensure!(left == State::Absent, "the original is still there: {left:?}");
        self.clients.stop()?;
        let pages = self.lab.host("b")?.run(["ls", "/run/netmig/lazy-pages"])?;
        ensure!(pages.is_empty(), "left on b: {pages}");
        Ok(said)
    }
}

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
    check_memory(&lab)?;
    context.remark(clients.stop()?.gaps());
    settled(&lab)?;
    for host in ["a", "b"] {
        let locks = lab.host(host)?.run(["ls", "/run/netmig/lazy-pages"])?;
        ensure!(locks.is_empty(), "left on {host}: {locks}");
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
    let program = ["probe:1", "netmig-probe", "scenario", "writing-memory"];
    a.podman(["run", "--detach", "--name", "web"].into_iter().chain(program))?;
    says(a, "checked")?;
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
    std::thread::sleep(SETTLES);
    let log = b.podman(["logs", "web"])?;
    ensure!(!log.contains("WRONG"), "{log}");
    let checked = |log: &str| log.lines().filter(|line| line.starts_with("checked")).count();
    let before = checked(&log);
    until("it goes on", LIMIT, || Ok(checked(&b.podman(["logs", "web"])?) > before))?;
    let log = b.podman(["logs", "web"])?;
    ensure!(!log.contains("WRONG"), "{log}");
    settled(&lab)
}

/// A program empties, moves, unmaps and shares its memory while it is not there yet.
fn changes(context: &Context) -> Result<()> {
    needs_kernel()?;
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    breakpoint::install(b)?;
    lab.serve("b")?;
    let program = ["probe:1", "netmig-probe", "scenario", "changing-memory"];
    a.podman(["run", "--detach", "--name", "web"].into_iter().chain(program))?;
    says(a, "ready")?;
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
    let (a, b, c) = (this.host("a")?, this.host("b")?, this.host("c")?);
    drop_agent_packets(b, a, "dport")?;
    until("the source notices", LIMIT, || Ok(this.order.stderr().contains("is not reached")))?;
    let address = format!("{}:7001", b.address());
    let mut check = c.command(PROBE).args(["stats", &address]).limit(LIMIT).spawn()?;
    std::thread::sleep(SETTLES);
    ensure!(check.is_running(), "it did not wait: {}", check.stdout());
    this.is_frozen_and_runs()?;
    accept_agent_packets(b)?;
    let seen = check.wait(LIMIT)?.success()?;
    ensure!(seen.text().contains("\"memory_bad\":0"), "memory has changed: {}", seen.text());
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
    let left = container_state::state(this.host("a")?, &this.id);
    ensure!(left == State::Absent, "the original is still there: {left:?}");
    ensure!(container_state::state(this.host("b")?, &this.id) == State::Running, "no copy");
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
    let left = container_state::state(a, &this.id);
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
    until("nothing waits for pages", LIMIT, || {
        Ok(b.run(["ls", "/run/netmig/lazy-pages"])?.is_empty())
    })?;
    c.probe().wait_for_echo(a.port(7000), LIMIT)
}

/// The source loses its power. The copy can never be whole: it is ended, by name, and nobody pretends otherwise.
fn source_dies(context: &Context) -> Result<()> {
    let mut this = Outstanding::begin(context, &["--memory-wait", "3"])?;
    power_off(&this.lab, Side::Source)?;
    let b = this.lab.host("b")?;
    until(
        "the copy has ended",
        LIMIT,
        || Ok(container_state::state(b, &this.id) == State::Absent),
    )?;
    until("the agent tells", LIMIT, || {
        Ok(this.lab.server_log("b").contains("container web ran here without all of its memory"))
    })?;
    let log = b.read("/run/netmig/lazy-pages.log")?;
    ensure!(log.contains("the source was not heard"), "no word of it: {log}");
    // No failure of the agent is its own here.
    this.order.await_end(LIMIT)?;
    let a = this.lab.host("a")?;
    let recovery = a.command("agent-client").args(["recover"]).limit(LIMIT).output()?;
    let said = recovery.error_text();
    ensure!(recovery.status.code() == Some(5), "exit {:?}: {said}", recovery.status.code());
    ensure!(said.contains("before all of its memory had arrived"), "{said}");
    Ok(())
}

/// Server after server of pages is killed while pages come from the source, and are needed. Each holder goes on, and no page is
/// wrong.
fn pages_killed(context: &Context) -> Result<()> {
    let this = Outstanding::begin(context, &[])?;
    let (b, c) = (this.host("b")?, this.host("c")?);
    let mut servers = vec![process(b, SERVER)?];
    let address = format!("{}:7001", b.address());
    let check = c.command(PROBE).args(["stats", &address]).limit(LIMIT).spawn()?;
    while servers.len() <= 3 {
        let last = servers[servers.len() - 1];
        b.run(["kill", "-KILL", &last.to_string()])?;
        until("its holder is the server", LIMIT, || {
            Ok(process(b, SERVER).is_ok_and(|server| server != last) && process(b, HOLDER).is_ok())
        })?;
        servers.push(process(b, SERVER)?);
        this.is_frozen_and_runs()?;
    }
    let seen = check.wait(LIMIT)?.success()?;
    ensure!(seen.text().contains("\"memory_bad\":0"), "memory has changed: {}", seen.text());
    this.check_memory()?;
    let log = b.read("/run/netmig/lazy-pages.log")?;
    let told = log.lines().filter(|line| line.contains("its holder goes on")).count();
    ensure!(told >= 3, "only {told} were replaced: {log}");
    this.end()?;
    Ok(())
}

/// What puts pages in place is killed with its holder. The copy is ended, the original is kept, and the agent says so.
fn both_killed(context: &Context) -> Result<()> {
    let this = Outstanding::begin(context, &[])?;
    let (a, b) = (this.lab.host("a")?, this.lab.host("b")?);
    let both = [process(b, SERVER)?, process(b, HOLDER)?].map(|pid| pid.to_string());
    b.run(["kill", "-KILL", &both[0], &both[1]])?;
    until(
        "the copy has ended",
        LIMIT,
        || Ok(container_state::state(b, &this.id) == State::Absent),
    )?;
    let end = this.order.wait(LIMIT)?;
    let said = end.error_text();
    ensure!(end.status.code() == Some(5), "exit {:?}: {said}", end.status.code());
    ensure!(said.contains("before all of its memory had arrived"), "{said}");
    ensure!(container_state::state(a, &this.id) == State::Frozen, "the original is not kept");
    Ok(())
}

fn says(host: &Host, words: &str) -> Result<()> {
    let mut log = String::new();
    until(words, LIMIT, || {
        log = host
            .command("podman")
            .args(["logs", "web"])
            .output()
            .map(|output| output.text() + &output.error_text())?;
        ensure!(!log.contains("WRONG"), "{log}");
        Ok(log.contains(words))
    })
}
