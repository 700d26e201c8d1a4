//! Moves of services that are broken off: the unit is as it was, on both hosts.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::super::super::promise::{LIMIT, settled, until};
use super::super::super::subject::Clients;
use super::{UNIT, is_active, is_ordinary, lab_with_units, moved, one_at_a_time, property};
use crate::ensure;
use crate::error::Result;
use crate::faults::breakpoint::{self, Breakpoint};
use crate::faults::container_state;
use crate::faults::observation::has_record;
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(in super::super) const CASES: &[Case] = &[
    Case::new("containers-services-go-back-with-the-move", &["containers"], go_back).limit(300),
    Case::new("containers-services-when-agents-are-killed", &["containers"], agents_killed)
        .limit(400),
    Case::new("containers-services-after-the-decision", &["containers"], after_the_decision)
        .limit(400),
];

/// Orders a move and waits until its copy is restored, which goes no further.
fn begin(lab: &Lab, interruption: &str) -> Result<HostProcess> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    Breakpoint::AfterRestore.set(b)?;
    let words = ["migrate", "web", "b", "--max-interruption", interruption];
    let mut order = a.command("agent-client").args(words).spawn()?;
    until("the copy is restored", LIMIT, || {
        ensure!(order.is_running(), "the move ended: {}", order.stderr());
        Ok(Breakpoint::AfterRestore.is_hit(b))
    })?;
    let state = property(b, "ActiveState")?;
    ensure!(state == "activating", "the unit is {state} on b while its container arrives");
    Ok(order)
}

/// Ends a breakpoint at which nobody waits any more, too.
fn end_breakpoint(host: &Host) -> Result<()> {
    let _ = Breakpoint::AfterRestore.release(host);
    let file = "/run/breakpoints/restore-after";
    host.run(["rm", "-f", file, &format!("{file}.reached")]).map(drop)
}

/// Checks that the container runs by its unit on `a`, which restarts it as before, and that the unit is down on `b`.
fn is_undone(lab: &Lab, id: &str) -> Result<()> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    settled(lab)?;
    is_active(a)?;
    ensure!(container_state::id(a, "web")? == id, "it is another container");
    until("the unit is down on b", LIMIT, || Ok(property(b, "ActiveState")? == "inactive"))?;
    for host in [a, b] {
        is_ordinary(host)?;
    }
    ensure!(b.podman(["ps", "--all", "--quiet"])?.is_empty(), "b has a container");
    Ok(())
}

/// Recovers on `a` until nothing is left to recover.
fn recovered(a: &Host) -> Result<()> {
    until("it is settled", LIMIT, || {
        let recovery = a.command("agent-client").args(["recover"]).limit(LIMIT).output()?;
        Ok(recovery.error_text().contains("nothing to recover"))
    })
}

/// A move that fails in its last step leaves the unit as it was; it restarts its container again.
fn go_back(context: &Context) -> Result<()> {
    let lab = lab_with_units(context)?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    breakpoint::install(b)?;
    let id = container_state::id(a, "web")?;
    let clients = Clients::gentle(c, a.port(7000))?;
    let order = begin(&lab, "4")?;
    std::thread::sleep(Duration::from_secs(4));
    end_breakpoint(b)?;
    let ended = order.wait(LIMIT)?;
    ensure!(ended.status.code() == Some(4), "{:?}: {}", ended.status, ended.error_text());
    is_undone(&lab, &id)?;
    context.remark(clients.stop()?.gaps());
    a.podman(["kill", "web"])?;
    until("the unit has restarted its container", LIMIT, || {
        Ok(is_active(a).is_ok() && container_state::id(a, "web")? != id)
    })?;
    moved(&lab, a, b, &[]).map(drop)
}

/// Either agent is killed before the decision. Its guardian, or `recover`, undoes what was done to the unit.
fn agents_killed(context: &Context) -> Result<()> {
    let lab = lab_with_units(context)?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    breakpoint::install(b)?;
    let id = container_state::id(a, "web")?;
    for victim in ["client", "server"] {
        one_at_a_time(&lab, || {
            let order = begin(&lab, "60")?;
            if victim == "server" {
                lab.stop_server("b", Signal::SIGKILL)?;
            } else {
                a.run(["pkill", "-KILL", "--full", "agent-client migrate"])?;
            }
            end_breakpoint(b)?;
            order.wait(LIMIT)?;
            recovered(a)?;
            is_undone(&lab, &id)
        })?;
        lab.serve("b")?;
    }
    moved(&lab, a, b, &[]).map(drop)
}

/// The server is killed right after the decision. Its guardian has systemd take the container over.
fn after_the_decision(context: &Context) -> Result<()> {
    let lab = lab_with_units(context)?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let id = container_state::id(a, "web")?;
    one_at_a_time(&lab, || {
        let words = ["migrate", "web", "b", "--max-interruption", "60"];
        let order = a.command("agent-client").args(words).spawn()?;
        let decided = || Ok(has_record(b, "activated") || has_record(a, "acknowledged"));
        until("the copy is the container", LIMIT, decided)?;
        lab.stop_server("b", Signal::SIGKILL)?;
        lab.serve("b")?;
        order.wait(LIMIT)?;
        recovered(a)?;
        settled(&lab)
    })?;
    is_active(b)?;
    is_ordinary(b)?;
    ensure!(container_state::id(b, "web")? == id, "it is another container");
    super::stays_down(a)?;
    b.run(["systemctl", "restart", UNIT])?;
    is_active(b)
}
