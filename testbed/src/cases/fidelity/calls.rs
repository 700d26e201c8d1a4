//! System calls in which a container is stopped continue: none returns EINTR, and none returns early.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cases::promise::{settled, until};
use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::breakpoint;
use crate::host::Host;
use crate::lab::{Lab, Runtime};
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("fidelity-calls-go-on-crun", &["fidelity"], |context| {
        calls_go_on(context, Runtime::Crun)
    })
    .limit(240),
    Case::new("fidelity-calls-go-on-runc", &["fidelity"], |context| {
        calls_go_on(context, Runtime::Runc)
    })
    .limit(240),
    Case::new("fidelity-calls-go-on-after-a-rollback", &["fidelity"], after_a_rollback).limit(240),
    Case::new("fidelity-a-sleeping-container-lives", &["fidelity"], sleeper_lives).limit(240),
    Case::new("fidelity-a-signal-still-interrupts", &["fidelity"], signal_interrupts).limit(240),
];

/// The exit code of a move that was rolled back.
const ROLLED_BACK: i32 = 4;
/// The seconds after which each call returns. Two migrations take less.
const SECONDS: u64 = 12;
/// The limit of an interruption that has to be rolled back.
const MOST: Duration = Duration::from_millis(700);
/// The time limit for a call if it starts again with each migration.
const LIMIT: Duration = Duration::from_secs(90);

/// Starts a container whose threads are in system calls.
fn start(host: &Host) -> Result<()> {
    let seconds = SECONDS.to_string();
    host.podman([
        "run",
        "--detach",
        "--name",
        "calls",
        "probe:1",
        "netmig-probe",
        "blocked",
        &seconds,
    ])?;
    until("all are in their calls", LIMIT, || Ok(log(host)?.contains("ready")))
}

fn log(host: &Host) -> Result<String> {
    let output = host.command("podman").args(["logs", "calls"]).run()?;
    Ok(format!("{}\n{}", output.text(), output.error_text()))
}

/// Waits until all calls have returned, and checks their results.
fn check(host: &Host) -> Result<()> {
    until("all calls have returned", LIMIT, || Ok(log(host)?.contains("done")))?;
    let log = log(host)?;
    let mut wrong = BTreeMap::new();
    let mut seen = 0;
    for line in log.lines().filter(|line| *line != "ready" && *line != "done") {
        let words: Vec<&str> = line.split(' ').collect();
        let (outcome, time) = match words[..] {
            [_, "error", error, time] => (error, time),
            [_, "0", time] => ("returned", time),
            _ => return Err(Error::Check(format!("{line:?} in {log}"))),
        };
        let is_right = matches!(outcome, "returned" | "ETIMEDOUT" | "EAGAIN");
        let time: u64 = time.parse().map_err(|_| Error::Check(line.to_owned()))?;
        if !is_right || time < SECONDS * 1000 {
            wrong.insert(words[0].to_owned(), line.to_owned());
        }
        seen += 1;
    }
    ensure!(seen >= 15, "only {seen} calls in {log}");
    ensure!(wrong.is_empty(), "{} of {seen} calls: {:#?}", wrong.len(), wrong.values());
    Ok(())
}

/// Makes a migration from a to b fail after the dump.
fn roll_back(lab: &Lab, container: &str) -> Result<()> {
    let b = lab.host("b")?;
    breakpoint::delay_step(b, "restore", 2 * MOST)?;
    let most = MOST.as_secs_f64().to_string();
    let attempt = lab.attempt(container, "a", "b", &["--max-interruption", &most])?;
    ensure!(attempt.code == Some(ROLLED_BACK), "{attempt:?}");
    breakpoint::clear(b)?;
    settled(lab)
}

fn calls_go_on(context: &Context, runtime: Runtime) -> Result<()> {
    let lab = context.lab_with(&["a", "b"], runtime)?;
    ["a", "b"].iter().try_for_each(|host| lab.serve(host))?;
    start(lab.host("a")?)?;
    lab.migrate("calls", "a", "b")?;
    lab.migrate("calls", "b", "a")?;
    check(lab.host("a")?)
}

fn after_a_rollback(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    breakpoint::install(lab.host("b")?)?;
    lab.serve("b")?;
    start(lab.host("a")?)?;
    for _ in 0..2 {
        roll_back(&lab, "calls")?;
    }
    check(lab.host("a")?)
}

fn sleeper_lives(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    ["a", "b"].iter().try_for_each(|host| lab.serve(host))?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    breakpoint::install(b)?;
    a.podman(["run", "--detach", "--name", "sleeper", "probe:1", "sleep", "100000"])?;
    let runs = |host: &Host| -> Result<()> {
        // A container that has lost its call would end at once.
        std::thread::sleep(Duration::from_millis(500));
        let status = host.podman(["ps", "--format", "{{.Names}}"])?;
        ensure!(status == "sleeper", "{} runs {status:?}", host.name());
        Ok(())
    };
    roll_back(&lab, "sleeper")?;
    runs(a)?;
    // After `podman pause` the kernel resumes the call by restart_syscall(2).
    a.podman(["pause", "sleeper"])?;
    a.podman(["unpause", "sleeper"])?;
    lab.migrate("sleeper", "a", "b")?;
    runs(b)?;
    lab.migrate("sleeper", "b", "a")?;
    runs(a)
}

/// A program that waits in nanosleep(2) and in epoll_wait(2), and reports how a signal has ended each.
const SERVER: &str = r#"
import select, signal, time
class Came(Exception): pass
def come(*_): raise Came()
signal.signal(signal.SIGUSR1, come)
epoll = select.epoll()
for name, wait in ("sleep", lambda: time.sleep(1000)), ("epoll", lambda: epoll.poll(1000)):
    try:
        print("in", name, flush=True)
        wait()
        print("early", name, flush=True)
    except Came:
        print("came", name, flush=True)
"#;

fn signal_interrupts(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    ["a", "b"].iter().try_for_each(|host| lab.serve(host))?;
    let run = ["run", "--detach", "--name", "calls", "python:1", "python3", "-c", SERVER];
    lab.host("a")?.podman(run)?;
    for (name, from, to) in [("sleep", "a", "b"), ("epoll", "b", "a")] {
        until("it waits", LIMIT, || Ok(log(lab.host(from)?)?.contains(&format!("in {name}"))))?;
        lab.migrate("calls", from, to)?;
        let host = lab.host(to)?;
        ensure!(!log(host)?.contains("early"), "{}", log(host)?);
        host.podman(["kill", "--signal", "USR1", "calls"])?;
        until("the signal has come", LIMIT, || Ok(log(host)?.contains(&format!("came {name}"))))?;
    }
    Ok(())
}
