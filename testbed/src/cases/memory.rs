//! Memory that follows a container after its move.

use super::promise::{LIMIT, settled, until};
use super::subject::{Clients, serve};
use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::breakpoint::{self, Breakpoint};
use crate::faults::container_state::{self, State};
use crate::faults::injection_point::{accept_agent_packets, drop_agent_packets};
use crate::faults::observation::has_record;
use crate::host::Host;
use crate::programs::PROBE;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("memory-follows-from-host-to-host", &["memory"], follows).limit(240),
    Case::new("memory-is-right-for-a-program-that-changes-it", &["memory"], changes).limit(240),
    Case::new("memory-that-cannot-follow-ends-the-copy", &["memory"], |context| {
        killed(context, Moment::Decided)
    })
    .limit(240),
    Case::new("memory-that-cannot-follow-ends-the-move", &["memory"], |context| {
        killed(context, Moment::Restored)
    })
    .limit(240),
];

/// The memory of a server, in mebibytes.
const MEMORY: &str = "192";
/// What the destination's log says of memory that follows.
const FOLLOWS: &str = "MiB of memory follow";

/// When what puts memory in place is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// The copy is restored, and nothing is decided.
    Restored,
    /// The copy is the container.
    Decided,
}

/// A server moves on at once, before all of its memory is in place; every byte is right on each host.
fn follows(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    lab.serve("a")?;
    lab.serve("b")?;
    serve(a, "web", 7000, &["--memory", MEMORY], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b")] {
        let moved = lab.attempt("web", from, to, &["--max-interruption", "60"])?.success()?;
        ensure!(lab.server_log(to).contains(FOLLOWS), "{to} restored all memory at once");
        let part = |name: &str| moved.parts_ms.get(name).copied().unwrap_or_default();
        context.remark(format!("dump {:.0} ms, restore {:.0} ms", part("dump"), part("restore")));
    }
    let address = format!("{}:7001", lab.host("b")?.address());
    let seen = c.command(PROBE).args(["stats", &address]).output()?.success()?;
    ensure!(seen.text().contains("\"memory_bad\":0"), "memory has changed: {}", seen.text());
    context.remark(clients.stop()?.gaps());
    settled(&lab)?;
    for host in ["a", "b"] {
        let locks = lab.host(host)?.run(["ls", "/run/netmig/lazy-pages"])?;
        ensure!(locks.is_empty(), "a lock is left on {host}: {locks}");
    }
    Ok(())
}

/// A program empties, moves, unmaps and shares its memory as soon as it notices that it stood still.
fn changes(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve("b")?;
    let program = ["probe:1", "netmig-probe", "scenario", "changing-memory"];
    a.podman(["run", "--detach", "--name", "web"].into_iter().chain(program))?;
    says(a, "ready")?;
    lab.attempt("web", "a", "b", &["--max-interruption", "60"])?.success()?;
    ensure!(lab.server_log("b").contains(FOLLOWS), "all memory was restored at once");
    says(b, "all is right")
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

/// What puts memory in place is killed before it has. A container that would go on with empty pages is ended, and before
/// the decision the original goes on.
fn killed(context: &Context, moment: Moment) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    breakpoint::install(b)?;
    lab.serve("b")?;
    serve(a, "web", 7000, &["--memory", MEMORY], c)?;
    let id = container_state::id(a, "web")?;
    Breakpoint::AfterRestore.set(b)?;
    let words = ["migrate", "web", "b", "--max-interruption", "60"];
    let order = a.command("agent-client").args(words).spawn()?;
    until("the copy is restored", LIMIT, || Ok(Breakpoint::AfterRestore.is_hit(b)))?;
    let server = b.run(["pgrep", "--full", "netmig-shim lazy-pages"])?;
    let server = server.lines().next().ok_or_else(|| Error::Check("no server".to_owned()))?;
    if moment == Moment::Decided {
        // The destination does not receive the decision before the server stands still.
        drop_agent_packets(b, a, "dport")?;
        Breakpoint::AfterRestore.release(b)?;
        until("the move is decided", LIMIT, || Ok(has_record(a, "committed")))?;
        b.run(["kill", "-STOP", server])?;
        accept_agent_packets(b)?;
        until("the copy is the container", LIMIT, || Ok(has_record(b, "activated")))?;
        b.run(["kill", "-KILL", server])?;
        until("the copy has ended", LIMIT, || Ok(container_state::state(b, &id) == State::Absent))?;
        let log = b.read("/run/netmig/lazy-pages.log")?;
        ensure!(log.contains("killing the container"), "no word of it: {log}");
        order.wait(LIMIT)?;
        ensure!(container_state::state(a, &id) != State::Running, "the original runs again");
        return Ok(());
    }
    b.run(["kill", "-KILL", server])?;
    Breakpoint::AfterRestore.release(b)?;
    let end = order.wait(LIMIT)?;
    let said = end.error_text();
    ensure!(end.status.code() == Some(4), "exit {:?}: {said}", end.status.code());
    ensure!(said.contains("memory"), "no word of it: {said}");
    ensure!(container_state::state(a, &id) == State::Running, "the original does not run");
    c.probe().wait_for_echo(a.port(7000), LIMIT)
}
