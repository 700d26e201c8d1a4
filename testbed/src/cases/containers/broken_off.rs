//! Moves of containers with volumes that are broken off: nothing is left at the destination, nothing is lost at the source.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::super::promise::{LIMIT, settled, until};
use super::files::{data, listing};
use super::{anonymous, start, writes_on, written};
use crate::ensure;
use crate::error::Result;
use crate::faults::breakpoint::{self, Breakpoint};
use crate::faults::container_state::{self, State};
use crate::faults::observation::has_record;
use crate::host::Host;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("containers-volumes-go-back-with-the-move", &["containers"], go_back).limit(300),
    Case::new("containers-volumes-when-agents-are-killed", &["containers"], agents_killed)
        .limit(400),
    Case::new("containers-volumes-on-a-full-disk", &["containers"], full_disk).limit(300),
    Case::new("containers-volumes-after-the-decision", &["containers"], killed_after_the_decision)
        .limit(300),
];

/// Options with which the passes over volumes last for some seconds.
const SLOWLY: [&str; 4] = ["--bandwidth", "4MB", "--max-interruption", "60"];

/// Returns the volumes that a host's engine has, and the directories beside them.
fn volumes(host: &Host) -> Result<(String, String)> {
    let directory = "/var/lib/containers/storage/volumes";
    let listed = host.command("ls").args(["--almost-all", directory]).output()?.text();
    Ok((host.podman(["volume", "ls", "--quiet"])?, listed))
}

/// Checks that the original writes on, and that the destination is as before.
fn is_undone(lab: &Lab, before: &(String, String), odd: &str) -> Result<()> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    settled(lab)?;
    let id = container_state::id(a, "web")?;
    ensure!(container_state::state(a, &id) == State::Running, "the original does not run");
    writes_on(a)?;
    ensure!(listing(a, &data("odd"))? == odd, "the odd files have changed");
    until("nothing is left", LIMIT, || Ok(volumes(b)? == *before)).map_err(|e| {
        crate::error::Error::Check(format!("{e}: {:?}, and before {before:?}", volumes(b)))
    })
}

/// Ends a breakpoint at which nobody waits any more, too.
fn end_breakpoint(breakpoint: Breakpoint, host: &Host) -> Result<()> {
    if breakpoint.release(host).is_err() {
        host.run(["rm", "-f", "/run/breakpoints/restore-after"])?;
    }
    host.run(["rm", "-f", "/run/breakpoints/restore-after.reached"])?;
    Ok(())
}

/// Attempts a move that goes back since the restore takes too long: the copy is in the volumes by then.
fn restored_too_late(lab: &Lab) -> Result<()> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    Breakpoint::AfterRestore.set(b)?;
    let order = ["migrate", "web", "b", "--max-interruption", "4"];
    let order = a.command("agent-client").args(order).spawn()?;
    until("the copy is restored", LIMIT, || Ok(Breakpoint::AfterRestore.is_hit(b)))?;
    std::thread::sleep(Duration::from_secs(4));
    end_breakpoint(Breakpoint::AfterRestore, b)?;
    let ended = order.wait(LIMIT)?;
    let said = ended.error_text();
    ensure!(ended.status.code() == Some(4), "exit {:?}: {said}", ended.status.code());
    Ok(())
}

/// A move that fails in its last step before the decision leaves everything as it was, also a volume that an earlier move
/// has left.
fn go_back(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    breakpoint::install(b)?;
    lab.serve("a")?;
    lab.serve("b")?;
    start(a, c)?;
    let odd = listing(a, &data("odd"))?;
    let before = volumes(b)?;
    restored_too_late(&lab)?;
    is_undone(&lab, &before, &odd)?;

    // There and back, so that the destination has what an earlier move has left.
    lab.attempt("web", "a", "b", &["--max-interruption", "60"])?.success()?;
    lab.attempt("web", "b", "a", &["--max-interruption", "60"])?.success()?;
    settled(&lab)?;
    let (before, left) = (volumes(b)?, listing(b, &data("data"))?);
    let log = listing(b, &data(&anonymous(a)?))?;
    restored_too_late(&lab)?;
    is_undone(&lab, &before, &odd)?;
    ensure!(listing(b, &data("data"))? == left, "what was left on b has changed");
    ensure!(listing(b, &data(&anonymous(a)?))? == log, "what was left without a name has changed");
    Ok(())
}

/// Agents are killed while files go over, while the container is staged and when the copy is restored.
fn agents_killed(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    breakpoint::install(b)?;
    lab.serve("b")?;
    start(a, c)?;
    let random = format!("of={}/random", data("odd"));
    a.run(["dd", "if=/dev/urandom", &random, "bs=1M", "count=40", "status=none"])?;
    let odd = listing(a, &data("odd"))?;
    let before = volumes(b)?;
    let order = |options: &[&str]| {
        let words = [&["migrate", "web", "b"][..], options].concat();
        a.command("agent-client").args(words).spawn()
    };
    let recovered = || {
        until("it is settled", LIMIT, || {
            let recovery = a.command("agent-client").args(["recover"]).limit(LIMIT).output()?;
            Ok(recovery.error_text().contains("nothing to recover"))
        })
    };

    // The client, while files of volumes go over.
    let moving = order(&SLOWLY)?;
    until("files go over", LIMIT, || Ok(moving.stderr().contains("files, first pass")))?;
    std::thread::sleep(Duration::from_secs(1));
    a.run(["pkill", "-KILL", "--full", "agent-client migrate"])?;
    moving.wait(LIMIT)?;
    recovered()?;
    is_undone(&lab, &before, &odd)?;

    // The server, at the same moment.
    let moving = order(&SLOWLY)?;
    until("files go over", LIMIT, || Ok(moving.stderr().contains("files, first pass")))?;
    std::thread::sleep(Duration::from_secs(1));
    lab.stop_server("b", Signal::SIGKILL)?;
    let end = moving.wait(LIMIT)?;
    ensure!(end.status.code() == Some(4), "exit {:?}: {}", end.status.code(), end.error_text());
    is_undone(&lab, &before, &odd)?;
    lab.serve("b")?;

    // The server, when the copy is restored in the volumes.
    for victim in ["server", "client"] {
        Breakpoint::AfterRestore.set(b)?;
        let moving = order(&["--max-interruption", "60"])?;
        until("the copy is restored", LIMIT, || Ok(Breakpoint::AfterRestore.is_hit(b)))?;
        if victim == "server" {
            lab.stop_server("b", Signal::SIGKILL)?;
        } else {
            a.run(["pkill", "-KILL", "--full", "agent-client migrate"])?;
        }
        end_breakpoint(Breakpoint::AfterRestore, b)?;
        moving.wait(LIMIT)?;
        recovered()?;
        is_undone(&lab, &before, &odd)?;
        lab.serve("b")?;
    }
    lab.attempt("web", "a", "b", &["--max-interruption", "60"])?.success()?;
    ensure!(listing(b, &data("odd"))? == odd, "the odd files differ");
    writes_on(b)
}

/// The server is killed when it has noted that the copy is the container. Its guardian hands it over, with its volumes.
fn killed_after_the_decision(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("a")?;
    lab.serve("b")?;
    start(a, c)?;
    let odd = listing(a, &data("odd"))?;
    let moving = a
        .command("agent-client")
        .args(["migrate", "web", "b", "--max-interruption", "60"])
        .spawn()?;
    let decided = || Ok(has_record(b, "activated") || has_record(a, "acknowledged"));
    until("the copy is the container", LIMIT, decided)?;
    lab.stop_server("b", Signal::SIGKILL)?;
    lab.serve("b")?;
    moving.wait(LIMIT)?;
    until("it is settled", LIMIT, || {
        let recovery = a.command("agent-client").args(["recover"]).limit(LIMIT).output()?;
        Ok(recovery.error_text().contains("nothing to recover"))
    })?;
    settled(&lab)?;
    ensure!(listing(b, &data("odd"))? == odd, "the odd files differ");
    writes_on(b)?;
    ensure!(written(a)? > 0, "the source has not kept its volume");
    ensure!(!b.path("/var/lib/containers/storage/volumes/.netmig").exists(), "files are left");
    // The source's agent was told of what it has left, so that the container may come back.
    lab.attempt("web", "b", "a", &["--max-interruption", "60"])?.success()?;
    writes_on(a)
}

/// The destination's disk fills up while files of volumes come. The move goes back, and nothing of it takes room any more.
fn full_disk(context: &Context) -> Result<()> {
    const VOLUMES: &str = "/var/lib/containers/storage/volumes";
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    b.run(["mkdir", "-p", VOLUMES])?;
    b.run(["mount", "-t", "tmpfs", "-o", "size=200m,mode=700", "none", VOLUMES])?;
    lab.serve("b")?;
    start(a, c)?;
    let random = format!("of={}/random", data("odd"));
    a.run(["dd", "if=/dev/urandom", &random, "bs=1M", "count=40", "status=none"])?;
    let odd = listing(a, &data("odd"))?;
    let before = volumes(b)?;
    let words = [&["migrate", "web", "b"][..], &SLOWLY].concat();
    let moving = a.command("agent-client").args(words).spawn()?;
    until("files go over", LIMIT, || Ok(moving.stderr().contains("files, first pass")))?;
    let filler = format!("{VOLUMES}/filler");
    let fill = ["if=/dev/zero", &format!("of={filler}"), "bs=64k", "status=none"];
    let filled = b.command("dd").args(fill).output()?;
    ensure!(!filled.status.success(), "the disk is not full");
    let ended = moving.wait(LIMIT)?;
    let said = ended.error_text();
    ensure!(ended.status.code() == Some(4), "exit {:?}: {said}", ended.status.code());
    ensure!(said.contains("No space left") || said.contains("os error 28"), "{said}");
    b.run(["rm", &filler])?;
    is_undone(&lab, &before, &odd)?;
    lab.attempt("web", "a", "b", &["--max-interruption", "60"])?.success()?;
    ensure!(listing(b, &data("odd"))? == odd, "the odd files differ");
    writes_on(b)
}
