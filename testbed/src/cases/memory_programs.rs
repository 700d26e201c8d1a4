//! Containers whose programs notice when their memory is wrong, and what the tests of memory ask of them.

use std::time::Duration;

use super::promise::{LIMIT, until};
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lab::Lab;
use crate::programs::PROBE;
use crate::slowdown;

/// The memory of a server, in mebibytes.
pub(super) const MEMORY: &str = "192";
/// What the destination's log says of memory that follows.
pub(super) const FOLLOWS: &str = "MiB of memory follow";
/// How long a program runs on before it is looked at.
pub(super) const SETTLES: Duration = Duration::from_secs(2);
/// The command lines of a server of pages and of its holder.
pub(super) const SERVER: &str = "netmig-shim lazy-pages";
pub(super) const HOLDER: &str = "netmig-shim hold-pages";

/// Starts a container whose program empties, moves, unmaps and shares its memory as soon as it notices that it stood still.
pub(super) fn start_changing(host: &Host) -> Result<()> {
    let program = ["probe:1", "netmig-probe", "scenario", "changing-memory"];
    host.podman(["run", "--detach", "--name", "web"].into_iter().chain(program))?;
    says(host, "ready")
}

/// Starts a container whose program writes its memory all the time, as fast as this machine allows.
pub(super) fn start_writing(host: &Host) -> Result<()> {
    // An emulated processor has no time for anything else otherwise.
    let pace = if slowdown::is_slow() { "PACE=4" } else { "PACE=1" };
    let program = ["probe:1", "netmig-probe", "scenario", "writing-memory"];
    let options = ["run", "--detach", "--name", "web", "--env", pace];
    host.podman(options.into_iter().chain(program))?;
    says(host, "checked")
}

/// Waits until a program says these words. It must not find its memory wrong meanwhile.
pub(super) fn says(host: &Host, words: &str) -> Result<()> {
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

/// Checks that a program which has just moved goes on for a while and finds its memory right.
pub(super) fn finds_no_fault(host: &Host) -> Result<()> {
    std::thread::sleep(SETTLES);
    let log = host.podman(["logs", "web"])?;
    ensure!(!log.contains("WRONG"), "{log}");
    Ok(())
}

/// Makes sure of the same of one that says so each time when it has checked its memory: it has to do so again.
pub(super) fn goes_on_checking(host: &Host) -> Result<()> {
    finds_no_fault(host)?;
    let log = || host.podman(["logs", "web"]);
    let checks = |log: &str| log.lines().filter(|line| line.starts_with("checked")).count();
    let before = checks(&log()?);
    until("it checks its memory again", LIMIT, || Ok(checks(&log()?) > before))?;
    let log = log()?;
    ensure!(!log.contains("WRONG"), "{log}");
    Ok(())
}

/// Checks every byte of a server's memory on a host, from the client's host.
pub(super) fn check_memory(lab: &Lab, host: &str) -> Result<()> {
    let address = format!("{}:7001", lab.host(host)?.address());
    let seen = lab.host("c")?.command(PROBE).args(["stats", &address]).limit(LIMIT).output()?;
    has_no_fault(&seen.success()?.text())
}

/// Checks what the probe has seen of a server's memory.
pub(super) fn has_no_fault(seen: &str) -> Result<()> {
    ensure!(seen.contains("\"memory_bad\":0"), "memory has changed: {seen}");
    Ok(())
}

/// Returns whether no server of pages has left anything on a host, and none is at work.
pub(super) fn is_all_in_place(host: &Host) -> Result<bool> {
    Ok(host.run(["ls", "/run/netmig/lazy-pages"])?.is_empty())
}

/// Returns the process of a command line.
pub(super) fn process(host: &Host, line: &str) -> Result<i32> {
    let found = host.run(["pgrep", "--full", line])?;
    let first = found.lines().next().and_then(|first| first.parse().ok());
    first.ok_or_else(|| Error::Check(format!("no process {line}")))
}
