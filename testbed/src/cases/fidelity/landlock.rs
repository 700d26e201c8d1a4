//! Containers whose processes have restricted themselves by Landlock are refused, and looking for that changes nothing in others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::kernel_features::{KERNEL, other_users};
use super::scenarios::{says, start};
use crate::cases::promise::{settled, until};
use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::container_state;
use crate::host::Host;
use crate::lab::Lab;
use crate::programs::PROBE;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("fidelity-landlock-is-refused", &["fidelity"], is_refused).limit(240),
    Case::new("fidelity-landlock-of-another-user", &["fidelity", KERNEL], other_user).limit(240),
    Case::new("fidelity-landlock-possible-and-not-used", &["fidelity"], not_used).limit(300),
    Case::new("fidelity-landlock-look-disturbs-no-call", &["fidelity"], calls_go_on).limit(240),
    Case::new("fidelity-landlock-look-is-killed", &["fidelity"], killed).limit(300),
    Case::new("fidelity-landlock-during-the-move", &["fidelity"], during_the_move).limit(240),
];

/// The exit codes of a move that was refused, and of one that was rolled back.
const REFUSED: i32 = 3;
const ROLLED_BACK: i32 = 4;
/// Options of podman.
const BIT: &[&str] = &["--security-opt=no-new-privileges"];
const ADMINISTRATOR: &[&str] = &["--cap-add=SYS_ADMIN"];
/// Of another user than the agents.
const USER: &[&str] = &["--security-opt=no-new-privileges", "--user=1000:1000"];
/// The seconds after which each call of the probe returns.
const SECONDS: u64 = 12;
const LIMIT: Duration = Duration::from_secs(90);
/// How many agents are killed, at moments spread over the time that one takes.
const KILLED: u32 = 25;

fn two_hosts(context: &Context) -> Result<Arc<Lab>> {
    let lab = context.lab(&["a", "b"])?;
    for (host, peer) in [("a", "b"), ("b", "a")] {
        lab.serve(host)?;
        lab.pair(peer, host)?;
        let allow = ["agent-server", "peers", "allow", peer, "--capability", "SYS_ADMIN"];
        lab.host(host)?.run(allow)?;
    }
    Ok(lab)
}

/// Whichever way a process may restrict itself, one that has done so is named, and nothing is changed.
fn is_refused(context: &Context) -> Result<()> {
    let lab = two_hosts(context)?;
    let a = lab.host("a")?;
    let rows: [(&str, &str, &[&str], &str); 5] = [
        ("own-bit", "landlock", &[], "process "),
        ("bit", "landlock", BIT, "process "),
        ("administrator", "landlock-of-an-administrator", ADMINISTRATOR, "process "),
        ("thread", "landlock-of-a-thread", &[], "thread "),
        ("bit-thread", "landlock-of-a-thread", BIT, "thread "),
    ];
    for (name, scenario, options, who) in rows {
        start(a, name, scenario, options)?;
        let id = container_state::id(a, name)?;
        let before = container_state::processes(a, &id);
        let attempt = lab.attempt(name, "a", "b", &[])?;
        ensure!(attempt.code == Some(REFUSED), "{name}: {:?}: {}", attempt.code, attempt.stderr);
        for words in ["(landlock-restricted)", who, "--accept-loss landlock", name] {
            ensure!(
                attempt.stderr.contains(words),
                "{name}: {words:?} is not in {}",
                attempt.stderr
            );
        }
        ensure!(container_state::processes(a, &id) == before, "{name} has other processes");
    }
    for name in ["own-bit", "administrator"] {
        let accept = ["--accept-loss", "landlock"];
        let moved = lab.attempt(name, "a", "b", &accept)?.success()?;
        ensure!(moved.warnings.is_empty(), "{name}: {:?}", moved.warnings);
    }
    Ok(())
}

/// The same of processes of another user, beside one that has not restricted itself.
fn other_user(context: &Context) -> Result<()> {
    other_users()?;
    let lab = two_hosts(context)?;
    let a = lab.host("a")?;
    start(a, "restricted", "landlock", USER)?;
    let attempt = lab.attempt("restricted", "a", "b", &[])?;
    ensure!(attempt.code == Some(REFUSED), "{:?}: {}", attempt.code, attempt.stderr);
    ensure!(attempt.stderr.contains("(landlock-restricted)"), "{}", attempt.stderr);
    start(a, "free", "memfd", USER)?;
    let moved = lab.attempt("free", "a", "b", &[])?.success()?;
    ensure!(moved.warnings.is_empty(), "{:?}", moved.warnings);
    Ok(())
}

/// Containers whose processes might restrict themselves, and have not, are moved without a word.
fn not_used(context: &Context) -> Result<()> {
    let lab = two_hosts(context)?;
    let a = lab.host("a")?;
    let rows: [(&str, &str, &[&str]); 5] = [
        ("plain", "memfd", &[]),
        ("own-bit", "no-new-privileges", &[]),
        ("bit", "memfd", BIT),
        ("administrator", "memfd", ADMINISTRATOR),
        ("threads", "no-new-privileges", ADMINISTRATOR),
    ];
    for (name, scenario, options) in rows {
        start(a, name, scenario, options)?;
        let moved = lab.attempt(name, "a", "b", &[])?.success()?;
        ensure!(moved.warnings.is_empty(), "{name}: {:?}", moved.warnings);
    }
    Ok(())
}

fn log(host: &Host, name: &str) -> Result<String> {
    let output = host.command("podman").args(["logs", name]).run()?;
    Ok(format!("{}\n{}", output.text(), output.error_text()))
}

/// Starts a container whose threads are in system calls, and may be restricted.
fn start_calls(host: &Host) -> Result<()> {
    let seconds = SECONDS.to_string();
    let run = ["run", "--detach", "--name", "calls"];
    host.podman([&run[..], BIT, &["probe:1", PROBE, "blocked", &seconds]].concat())?;
    until("all are in their calls", LIMIT, || Ok(log(host, "calls")?.contains("ready")))
}

/// Waits until all calls have returned, and checks that none has returned early or with EINTR.
fn check_calls(host: &Host) -> Result<()> {
    let ended =
        until("all calls have returned", LIMIT, || Ok(log(host, "calls")?.contains("done")));
    let log = log(host, "calls")?;
    ensure!(ended.is_ok(), "not all calls have returned: {log}");
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
        if !is_right || time.parse::<u64>().map_or(true, |time| time < SECONDS * 1000) {
            wrong.insert(words[0].to_owned(), line.to_owned());
        }
        seen += 1;
    }
    ensure!(seen >= 15, "only {seen} calls in {log}");
    ensure!(wrong.is_empty(), "{} of {seen} calls: {:#?}", wrong.len(), wrong.values());
    Ok(())
}

/// No call of a thread that is looked at returns early or with EINTR: while the container stays, and in moves.
fn calls_go_on(context: &Context) -> Result<()> {
    let lab = two_hosts(context)?;
    let a = lab.host("a")?;
    start_calls(a)?;
    let refused = lab.attempt("calls", "a", "b", &["--max-interruption", "0.05"])?;
    ensure!(refused.code == Some(REFUSED), "{refused:?}");
    lab.migrate("calls", "a", "b")?;
    check_calls(lab.host("b")?)
}

/// The agent is killed at many moments, some of them while it looks. The container is as before, and nothing of ours is left.
fn killed(context: &Context) -> Result<()> {
    let lab = two_hosts(context)?;
    let a = lab.host("a")?;
    start_calls(a)?;
    start(a, "many", "landlock-of-a-thread", BIT)?;
    let mut refused = 0;
    // Refused at the end of the preflight, after the look.
    let whole = lab.attempt("calls", "a", "b", &["--max-interruption", "0.05"])?.elapsed;
    for number in 0..KILLED {
        for name in ["calls", "many"] {
            let line = ["migrate", name, "b", "--max-interruption", "0.05"];
            let mut order = a.command("agent-client").args(line).spawn()?;
            std::thread::sleep(whole * number / KILLED);
            // It may have ended by itself.
            let _ = order.signal(nix::sys::signal::Signal::SIGKILL);
            refused += u32::from(order.wait(LIMIT)?.status.code() == Some(REFUSED));
        }
    }
    context.remark(format!("{refused} of {} had ended before", 2 * KILLED));
    let gone = || Ok(a.run(["pgrep", "-f", "/proc/self/fd/[0-9]+ landlock"]).is_err());
    until("the looks have ended", LIMIT, gone)?;
    settled(&lab)?;
    check_calls(a)?;
    let traced =
        "for s in /proc/[0-9]*/task/*/status; do grep -H TracerPid: $s; done 2>/dev/null; true";
    let traced = a.run(["sh", "-c", traced])?;
    let traced: Vec<&str> = traced.lines().filter(|line| !line.ends_with("\t0")).collect();
    ensure!(traced.is_empty(), "{traced:?}");
    let attempt = lab.attempt("many", "a", "b", &[])?;
    ensure!(attempt.stderr.contains("(landlock-restricted)"), "{}", attempt.stderr);
    Ok(())
}

/// A container whose threads restrict themselves all the time is not moved, whenever that is seen, and runs on.
fn during_the_move(context: &Context) -> Result<()> {
    let lab = two_hosts(context)?;
    let a = lab.host("a")?;
    start(a, "web", "landlock-again-and-again", &[])?;
    let mut rolled_back = 0;
    for _ in 0..4 {
        let attempt = lab.attempt("web", "a", "b", &[])?;
        let is_refused = attempt.code == Some(REFUSED);
        let is_rolled_back = attempt.code == Some(ROLLED_BACK);
        ensure!(is_refused || is_rolled_back, "{:?}: {}", attempt.code, attempt.stderr);
        ensure!(attempt.stderr.contains("Landlock"), "{}", attempt.stderr);
        rolled_back += u32::from(is_rolled_back);
        settled(&lab)?;
    }
    says(a, "web", "ready")?;
    context.remark(format!("{rolled_back} of 4 seen during the move"));
    Ok(())
}
