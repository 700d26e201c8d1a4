//! Containers that get less of the processors while their memory goes over, or more while they are dumped, have after that
//! what they had before.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::memory::needs_rounds;
use super::memory_programs::says;
use super::promise::{LIMIT, settled, until};
use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::Side;
use crate::faults::breakpoint::{self, Breakpoint};
use crate::faults::container_state::{self, State};
use crate::faults::observation::has_record;
use crate::faults::reboot::{boot, power_off};
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("throttle-makes-memory-converge", &["memory", "throttle"], converges).limit(300),
    Case::new("throttle-that-does-not-help-is-undone", &["memory", "throttle"], goes_back)
        .limit(300),
    Case::new("throttle-ends-with-its-agent", &["memory", "throttle"], agent_killed).limit(300),
    Case::new("throttle-ends-when-the-move-goes-back", &["memory", "throttle"], taken_back)
        .limit(300),
    Case::new("throttle-ends-when-a-host-loses-its-power", &["memory", "throttle"], no_power)
        .limit(300),
    Case::new("throttle-is-refused-where-the-kernel-cannot", &["memory", "throttle"], refused),
    Case::new("processors-are-not-limited-in-the-dump", &["throttle"], lifted).limit(300),
    Case::new("processors-are-limited-again-after-a-killed-dump", &["throttle"], dump_killed)
        .limit(300),
];

/// The record of the journal before a limit is changed.
const RECORD: &str = "cpu-limit";
/// A limit that is nobody's default.
const LIMITED: [&str; 2] = ["--cpus", "0.7"];
/// How fast memory goes over. The program of these tests writes faster, unless it is slowed down. Its memory would be compressed to
/// next to nothing.
const SLOWLY: [&str; 8] = [
    "--memory",
    "pre-copy",
    "--bandwidth",
    "8MB",
    "--compress",
    "none",
    "--max-interruption",
    "60",
];
const THROTTLE: [&str; 2] = ["--non-converging", "throttle"];
/// The memory of the program, in mebibytes.
const MEMORY: u64 = 8;
/// How many mebibytes it writes in a second of a processor's time: so much that a tenth of a processor is too fast, and so much
/// that it is not.
const ALWAYS_TOO_FAST: u64 = 200;
const TOO_FAST: u64 = 40;
/// How long a program runs on before it is looked at.
const SETTLES: Duration = Duration::from_secs(1);

/// Returns whether the kernel can limit the processors of a host's containers.
fn has_controller(host: &Host) -> Result<bool> {
    let controllers = host.read("/sys/fs/cgroup/cgroup.controllers")?;
    Ok(controllers.split_whitespace().any(|name| name == "cpu"))
}

fn needs_controller(host: &Host) -> Result<()> {
    match has_controller(host)? {
        true => Ok(()),
        false => Err(Error::Skip("this kernel has no cpu controller of version 2".to_owned())),
    }
}

/// Returns the limit of a container on a host, as the kernel has it.
fn limit(host: &Host, id: &str) -> Result<String> {
    let found = container_state::cgroups(host, id);
    let limits = found.iter().filter_map(|path| fs::read_to_string(path.join("cpu.max")).ok());
    let all: Vec<String> = limits.map(|text| text.trim().to_owned()).collect();
    match &all[..] {
        [one] => Ok(one.clone()),
        _ => Err(Error::Check(format!("the container has the limits {all:?}"))),
    }
}

/// Starts a container that computes and writes its memory; returns its ID and its limit.
fn start(host: &Host, options: &[&str], written: u64) -> Result<(String, String)> {
    let variables = [format!("MEMORY_MIB={MEMORY}"), format!("WRITE_MIB={written}")];
    let start =
        ["run", "--detach", "--name", "web", "--env", &variables[0], "--env", &variables[1]];
    let program = ["probe:1", "netmig-probe", "scenario", "busy-memory"];
    host.podman([&start, options, &program].concat())?;
    says(host, "checked")?;
    let id = container_state::id(host, "web")?;
    let before = limit(host, &id)?;
    Ok((id, before))
}

/// Checks that the program finds its memory as it has left it, and goes on.
fn is_right(host: &Host) -> Result<()> {
    std::thread::sleep(SETTLES);
    let checked = || {
        let log = host.podman(["logs", "web"])?;
        ensure!(!log.contains("WRONG"), "{log}");
        Ok(log.lines().filter(|line| line.starts_with("checked")).count())
    };
    let before = checked()?;
    until("it goes on", LIMIT, || Ok(checked()? > before))
}

/// The lab of these tests.
fn lab(context: &Context) -> Result<std::sync::Arc<Lab>> {
    let lab = context.lab(&["a", "b"])?;
    lab.serve("b")?;
    Ok(lab)
}

/// A container that writes its memory faster than the link carries it stays unless it is slowed down. If it is, until it is slow
/// enough, it moves. Its copy has the limit that the original had.
fn converges(context: &Context) -> Result<()> {
    needs_rounds()?;
    let lab = lab(context)?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    needs_controller(a)?;
    let (id, before) = start(a, &LIMITED, TOO_FAST)?;
    let unslowed = [&SLOWLY[..], &["--non-converging", "go-back"]].concat();
    let attempt = lab.attempt("web", "a", "b", &unslowed)?;
    ensure!(attempt.code == Some(4), "exit {:?}: {}", attempt.code, attempt.stderr);
    ensure!(attempt.stderr.contains("writes its memory so fast"), "{}", attempt.stderr);
    settled(&lab)?;
    let moved = lab.attempt("web", "a", "b", &[&SLOWLY[..], &THROTTLE].concat())?.success()?;
    let least = moved.memory.least_processors;
    let least = least.ok_or_else(|| Error::Check("it was not slowed down".to_owned()))?;
    let after = limit(b, &id)?;
    ensure!(after == before, "its limit was {before}, and is {after}");
    let rest = moved.memory.rest;
    ensure!(rest < (MEMORY << 20) / 2, "{rest} bytes went over once it was frozen");
    context.remark(format!(
        "{} rounds, {} KiB once it was frozen, {least:.2} processors",
        moved.memory.rounds.len(),
        rest >> 10
    ));
    is_right(b)
}

/// A container that would be interrupted for too long, however slow it is, stays, with the limit that it had.
fn goes_back(context: &Context) -> Result<()> {
    needs_rounds()?;
    let lab = lab(context)?;
    let a = lab.host("a")?;
    needs_controller(a)?;
    let (id, before) = start(a, &[], ALWAYS_TOO_FAST)?;
    let order = [&SLOWLY[..], &THROTTLE, &["--downtime-limit", "0.05"]].concat();
    let attempt = lab.attempt("web", "a", "b", &order)?;
    ensure!(attempt.code == Some(4), "exit {:?}: {}", attempt.code, attempt.stderr);
    for words in ["writes its memory so fast", "slowed down"] {
        ensure!(attempt.stderr.contains(words), "{words:?} is not in: {}", attempt.stderr);
    }
    settled(&lab)?;
    let after = limit(a, &id)?;
    ensure!(after == before, "its limit was {before}, and is {after}");
    ensure!(container_state::state(a, &id) == State::Running, "the original does not run");
    is_right(a)
}

/// The agent and its guardian are killed while a container is slowed down.
fn agent_killed(context: &Context) -> Result<()> {
    needs_rounds()?;
    let lab = lab(context)?;
    let a = lab.host("a")?;
    needs_controller(a)?;
    let (id, before) = start(a, &LIMITED, ALWAYS_TOO_FAST)?;
    let order = slow_down(a, &id, &before)?;
    kill_agents(a)?;
    order.wait(LIMIT)?;
    ensure!(limit(a, &id)? != before, "the agent was not killed while it was slowed down");
    recovered(a, &lab, &id, &before)?;
    is_right(a)
}

/// A user takes a move back while the container is slowed down, and the agent of another move is killed.
fn taken_back(context: &Context) -> Result<()> {
    needs_rounds()?;
    let lab = lab(context)?;
    let a = lab.host("a")?;
    needs_controller(a)?;
    let (id, before) = start(a, &LIMITED, ALWAYS_TOO_FAST)?;
    let mut order = slow_down(a, &id, &before)?;
    order.signal(Signal::SIGINT)?;
    let end = order.wait(LIMIT)?;
    ensure!(end.status.code() == Some(4), "exit {:?}: {}", end.status.code(), end.error_text());
    is_as_before(a, &lab, &id, &before)?;
    let order = slow_down(a, &id, &before)?;
    a.run(["pkill", "-KILL", "-f", "agent-client migrate"])?;
    order.wait(LIMIT)?;
    // That is the guardian's task.
    is_as_before(a, &lab, &id, &before)?;
    is_right(a)
}

/// The destination loses its power while the container is slowed down, and then the source.
fn no_power(context: &Context) -> Result<()> {
    needs_rounds()?;
    let lab = lab(context)?;
    let a = lab.host("a")?;
    needs_controller(a)?;
    let options = [&LIMITED[..], &["--restart", "always"]].concat();
    let (id, before) = start(a, &options, ALWAYS_TOO_FAST)?;
    let order = slow_down(a, &id, &before)?;
    power_off(&lab, Side::Destination)?;
    let end = order.wait(LIMIT)?;
    ensure!(end.status.code() == Some(4), "exit {:?}: {}", end.status.code(), end.error_text());
    until("its limit is what it was", LIMIT, || Ok(limit(a, &id)? == before))?;
    boot(&lab, Side::Destination)?;
    is_as_before(a, &lab, &id, &before)?;
    let order = slow_down(a, &id, &before)?;
    power_off(&lab, Side::Source)?;
    order.wait(LIMIT)?;
    boot(&lab, Side::Source)?;
    let runs = || Ok(container_state::state(a, &id) == State::Running);
    until("the container runs again", LIMIT, runs)?;
    is_as_before(a, &lab, &id, &before)?;
    is_right(a)
}

/// Orders a migration, and waits until the container is slowed down.
fn slow_down(host: &Host, id: &str, before: &str) -> Result<HostProcess> {
    let words = [&["migrate", "web", "b"], &SLOWLY[..], &THROTTLE].concat();
    let order = host.command("agent-client").args(words).spawn()?;
    let is_slow = || Ok(has_record(host, RECORD) && limit(host, id)? != before);
    until("it is slowed down", LIMIT, is_slow)?;
    Ok(order)
}

/// Checks that a container runs on a host as it did, once no migration is left.
fn is_as_before(host: &Host, lab: &Lab, id: &str, before: &str) -> Result<()> {
    settled(lab)?;
    let after = limit(host, id)?;
    ensure!(after == before, "its limit was {before}, and is {after}");
    ensure!(container_state::state(host, id) == State::Running, "the original does not run");
    Ok(())
}

/// Kills the agents of a host and their guardians.
fn kill_agents(host: &Host) -> Result<()> {
    host.run(["pkill", "-KILL", "-f", "agent-client"]).map(drop)
}

/// Checks that a container runs on a host with its limit once `recover` has ended.
fn recovered(host: &Host, lab: &Lab, id: &str, before: &str) -> Result<()> {
    until("it is settled", LIMIT, || {
        let recovery = host.command("agent-client").args(["recover"]).limit(LIMIT).output()?;
        Ok(recovery.error_text().contains("nothing to recover"))
    })?;
    is_as_before(host, lab, id, before)
}

/// Where the kernel has no limit on processors, the order is refused, and nothing changes.
fn refused(context: &Context) -> Result<()> {
    needs_rounds()?;
    let lab = lab(context)?;
    let a = lab.host("a")?;
    if has_controller(a)? {
        return Err(Error::Skip("this kernel has a cpu controller of version 2".to_owned()));
    }
    a.podman(["run", "--detach", "--name", "web", "probe:1", "sleep", "1000"])?;
    let attempt = lab.attempt("web", "a", "b", &[&SLOWLY[..], &THROTTLE].concat())?;
    ensure!(attempt.code == Some(3), "exit {:?}: {}", attempt.code, attempt.stderr);
    let told = attempt.stderr + &attempt.stdout;
    for words in ["no-throttle", "cpu", "--non-converging go-on"] {
        ensure!(told.contains(words), "{words:?} is not in: {told}");
    }
    let id = container_state::id(a, "web")?;
    ensure!(container_state::state(a, &id) == State::Running, "the original does not run");
    settled(&lab)
}

/// A container has no limit of processors while CRIU dumps it. Both the copy and an original that stays have their limit again.
fn lifted(context: &Context) -> Result<()> {
    let lab = lab(context)?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    needs_controller(a)?;
    breakpoint::install(a)?;
    let (id, before) = start(a, &LIMITED, ALWAYS_TOO_FAST)?;
    let words = ["migrate", "web", "b", "--max-interruption", "2", "--memory", "stop"];
    let order = freeze(a, &id, &words)?;
    std::thread::sleep(Duration::from_secs(3));
    Breakpoint::BeforeDump.release(a)?;
    let end = order.wait(LIMIT)?;
    ensure!(end.status.code() == Some(4), "exit {:?}: {}", end.status.code(), end.error_text());
    settled(&lab)?;
    let after = limit(a, &id)?;
    ensure!(after == before, "the limit of the original was {before}, and is {after}");
    let words = ["migrate", "web", "b", "--max-interruption", "60", "--memory", "stop"];
    let order = freeze(a, &id, &words)?;
    Breakpoint::BeforeDump.release(a)?;
    order.wait(LIMIT)?.success()?;
    let after = limit(b, &id)?;
    ensure!(
        after == before,
        "the limit of the original was {before}, and that of its copy is {after}"
    );
    is_right(b)
}

/// The agent and its guardian are killed while a container is dumped.
fn dump_killed(context: &Context) -> Result<()> {
    let lab = lab(context)?;
    let a = lab.host("a")?;
    needs_controller(a)?;
    breakpoint::install(a)?;
    let (id, before) = start(a, &LIMITED, ALWAYS_TOO_FAST)?;
    let words = ["migrate", "web", "b", "--max-interruption", "60", "--memory", "stop"];
    let order = freeze(a, &id, &words)?;
    kill_agents(a)?;
    order.wait(LIMIT)?;
    Breakpoint::BeforeDump.release(a)?;
    recovered(a, &lab, &id, &before)?;
    is_right(a)
}

/// Orders a migration, and waits until the container is frozen, without a limit of processors, in front of its dump.
fn freeze(host: &Host, id: &str, words: &[&str]) -> Result<HostProcess> {
    Breakpoint::BeforeDump.set(host)?;
    let order = host.command("agent-client").args(words.iter().copied()).spawn()?;
    let frozen = || Ok(container_state::state(host, id) == State::Frozen);
    until("it is frozen", LIMIT, frozen)?;
    let during = limit(host, id)?;
    ensure!(during.starts_with("max "), "it is limited to {during} while it is dumped");
    Ok(order)
}
