//! Memory that goes over after the decision, when the copy, its source or what fetches it ends meanwhile.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::memory_programs::{HOLDER, SERVER, has_no_fault, process};
use super::outstanding_memory::Outstanding;
use super::promise::{LIMIT, settled, until};
use crate::ensure;
use crate::error::{Context as _, Result};
use crate::faults::Side;
use crate::faults::container_state::{self, State};
use crate::faults::injection_point::accept_agent_packets;
use crate::faults::reboot::power_off;
use crate::programs::PROBE;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("memory-post-copy-whose-source-dies", &["memory"], source_dies).limit(300),
    Case::new("memory-post-copy-without-its-page-server", &["memory"], pages_killed).limit(300),
    Case::new("memory-post-copy-that-cannot-follow", &["memory"], both_killed).limit(240),
    Case::new("memory-post-copy-of-what-ends-there", &["memory"], copy_ends).limit(240),
    Case::new("memory-post-copy-whose-original-ends", &["memory"], original_ends).limit(240),
    Case::new("memory-post-copy-whose-original-ran", &["memory"], original_ran).limit(240),
];

/// The source loses its power. The copy can never be whole: it is ended, by name, and nobody pretends otherwise.
fn source_dies(context: &Context) -> Result<()> {
    let mut this = Outstanding::begin(context, &["--memory-wait", "3"])?;
    power_off(&this.lab, Side::Source)?;
    let b = this.lab.host("b")?;
    this.copy_ends()?;
    until("the agent tells", LIMIT, || {
        Ok(this.lab.server_log("b").contains("container web ran here without all of its memory"))
    })?;
    let log = b.read("/run/netmig/lazy-pages.log")?;
    ensure!(log.contains("the source has sent nothing"), "no word of it: {log}");
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
    has_no_fault(&seen.text())?;
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
    let b = this.lab.host("b")?;
    let both = [process(b, SERVER)?, process(b, HOLDER)?].map(|pid| pid.to_string());
    b.run(["kill", "-KILL", &both[0], &both[1]])?;
    this.copy_ends()?;
    let end = this.order.wait(LIMIT)?;
    let said = end.error_text();
    ensure!(end.status.code() == Some(5), "exit {:?}: {said}", end.status.code());
    ensure!(said.contains("before all of its memory had arrived"), "{said}");
    ensure!(
        container_state::state(this.lab.host("a")?, &this.id) == State::Frozen,
        "the original is not kept"
    );
    Ok(())
}

/// The container is ended at the destination while the link is cut. The source hears of it later, and says that memory was lost.
fn copy_ends(context: &Context) -> Result<()> {
    let this = Outstanding::begin(context, &[])?;
    let b = this.host("b")?;
    this.cut_link()?;
    b.podman(["kill", "web"])?;
    this.copy_ends()?;
    until("the destination notes it", LIMIT, || {
        Ok(this.lab.server_log("b").contains("has ended before all of its memory had arrived"))
    })?;
    accept_agent_packets(b)?;
    let end = this.order.wait(LIMIT)?;
    let said = end.error_text();
    ensure!(end.status.code() == Some(7), "exit {:?}: {said}", end.status.code());
    ensure!(said.contains("before all of its memory had arrived"), "no word of it: {said}");
    let left = container_state::state(this.lab.host("a")?, &this.id);
    ensure!(left == State::Absent, "the original is still there: {left:?}");
    settled(&this.lab)
}

/// Somebody ends the original. Its copy can never be whole: it is ended at once, and nobody says that the original is kept.
fn original_ends(context: &Context) -> Result<()> {
    let this = Outstanding::begin(context, &[])?;
    let a = this.lab.host("a")?;
    for pid in container_state::processes(a, &this.id) {
        // One that has ended with another is fine.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    this.copy_ends()?;
    let end = this.order.wait(LIMIT)?;
    let said = end.error_text();
    ensure!(end.status.code() == Some(5), "exit {:?}: {said}", end.status.code());
    ensure!(said.contains("before all of its memory had arrived"), "{said}");
    a.command("podman").args(["rm", "--force", "web"]).output()?;
    until("nothing is in doubt", LIMIT, || {
        let recovery = a.command("agent-client").args(["recover"]).limit(LIMIT).output()?;
        Ok(recovery.error_text().contains("nothing to recover"))
    })?;
    settled(&this.lab)
}

/// Somebody sets the original going for a moment, so that its memory is not that of the copy any more. The copy gets none of it.
fn original_ran(context: &Context) -> Result<()> {
    let this = Outstanding::begin(context, &[])?;
    let (a, b) = (this.host("a")?, this.host("b")?);
    this.cut_link()?;
    for state in ["0", "1"] {
        for cgroup in container_state::cgroups(a, &this.id) {
            let file = cgroup.join("cgroup.freeze");
            fs::write(&file, state).context(|| format!("writing {}", file.display()))?;
        }
        let wanted = if state == "0" { State::Running } else { State::Frozen };
        until("the original does as it is told", LIMIT, || Ok(this.state("a")? == wanted))?;
    }
    accept_agent_packets(b)?;
    this.copy_ends()?;
    let end = this.order.wait(LIMIT)?;
    let said = end.error_text();
    ensure!(end.status.code() == Some(5), "exit {:?}: {said}", end.status.code());
    Ok(())
}
