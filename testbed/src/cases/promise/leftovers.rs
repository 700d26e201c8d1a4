//! What is left of moves that were ended by force is removed by what runs next.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{LIMIT, SETTLES, home, settled, until};
use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::observation::has_record;
use crate::host::Host;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("promise-a-killed-preflight-leaves-nothing", &["promise"], preflight).limit(240),
    Case::new("promise-a-stop-during-the-preparation-leaves-no-mount", &["promise"], stopped)
        .limit(240),
    Case::new("promise-nothing-is-made-by-a-list", &["promise"], lists),
    Case::new("promise-a-refused-order-makes-no-directory", &["promise"], refused),
    Case::new("promise-a-settled-arrival-is-noted", &["promise"], arrivals).limit(300),
    Case::new("promise-an-arrival-is-kept-while-its-source-may-ask", &["promise"], unsettled)
        .limit(240),
];

/// Returns the directories of migrations on a host.
fn work(host: &Host) -> Vec<PathBuf> {
    let entries = fs::read_dir(host.path("/run/netmig")).into_iter().flatten().flatten();
    let is_id = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    entries.map(|entry| entry.path()).filter(is_id).collect()
}

/// The destination has begun to stage a container when its server is killed. The next server removes what is left.
fn preflight(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve("b")?;
    a.podman(["run", "--detach", "--name", "web", "probe:1", "netmig-probe", "serve"])?;
    let order = a.command("agent-client").args(["migrate", "web", "b"]).spawn()?;
    until("the destination stages", LIMIT, || {
        Ok(work(b).iter().any(|w| w.join("stage").exists()))
    })?;
    lab.stop_server("b", Signal::SIGKILL)?;
    let end = order.wait(LIMIT)?;
    ensure!(end.status.code() != Some(0), "it was moved: {}", end.error_text());
    lab.serve("b")?;
    until("nothing is left on b", LIMIT, || Ok(work(b).is_empty()))?;
    until("nothing is left on a", LIMIT, || Ok(work(a).is_empty()))
}

/// The agent has files of the container open when podman stops it, so that podman cannot unmount them.
fn stopped(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve("b")?;
    for delay in [0, 100, 200, 400] {
        let id =
            a.podman(["run", "--detach", "--name", "web", "probe:1", "netmig-probe", "serve"])?;
        let order = a.command("agent-client").args(["migrate", "web", "b"]).spawn()?;
        until("it has begun", LIMIT, || Ok(has_record(a, "departure")))?;
        std::thread::sleep(Duration::from_millis(delay));
        // It reports what it could not unmount.
        a.command("podman").args(["stop", "--time", "0", "web"]).limit(LIMIT).output()?;
        let end = order.wait(LIMIT)?;
        settled(&lab)?;
        if end.status.code() == Some(4) {
            let mounts = a.run(["cat", "/proc/mounts"])?;
            let left = mounts.lines().find(|line| line.contains(&id));
            ensure!(left.is_none(), "after {delay} ms: {left:?}");
        }
        for host in [a, b] {
            host.podman(["rm", "--all", "--force", "--time", "0"])?;
        }
    }
    Ok(())
}

/// An order with a directory that is a slip of the pen is refused, and does not make it.
fn refused(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let a = lab.host("a")?;
    lab.serve("b")?;
    for (option, told) in [("--run-dir", "no container"), ("--state-dir", "not paired")] {
        let words = ["migrate", "web", "b", option, "/tmp/none"];
        let output = a.command("agent-client").args(words).output()?;
        let said = output.error_text();
        ensure!(output.status.code() == Some(3), "{option}: {:?}: {said}", output.status);
        ensure!(said.contains(told), "{option}: {said}");
        ensure!(!a.path("/tmp/none").exists(), "{option}: the directory is left");
    }
    Ok(())
}

/// The server is killed after the decision. Once the move is settled, the destination knows that its source will not ask
/// again.
fn arrivals(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let remembered = || -> Result<usize> {
        let list = "ls -p /var/lib/netmig/arrived | grep -v / | wc -l";
        let count = b.run(["sh", "-c", list])?;
        count.trim().parse().map_err(|_| Error::Check(format!("{count:?} is no number")))
    };
    let mut problems = Vec::new();
    for (record, on) in [("committed", a), ("activated", b), ("acknowledged", a)] {
        lab.serve("b")?;
        let run = ["run", "--detach", "--name", "web", "probe:1", "netmig-probe", "serve"];
        let id = a.podman(run)?;
        let order = a.command("agent-client").args(["migrate", "web", "b"]).spawn()?;
        until(record, LIMIT, || Ok(has_record(on, record)))?;
        lab.stop_server("b", Signal::SIGKILL)?;
        std::thread::sleep(Duration::from_millis(500));
        lab.serve("b")?;
        let end = order.wait(LIMIT)?;
        settled(&lab)?;
        // A copy whose server is killed before it hears of the decision is removed, and the move goes back.
        let home = home(&lab, &id)?;
        ensure!(home == "b" || record == "committed", "{record}: {}", end.error_text());
        let end = end.status.code();
        if until("nothing is remembered", SETTLES, || Ok(remembered()? == 0)).is_err() {
            problems.push(format!("{record}: an arrival is remembered, exit {end:?}"));
            b.run(["sh", "-c", "rm /var/lib/netmig/arrived/????*; true"])?;
        }
        lab.host(home)?.podman(["rm", "--force", "--time", "0", "web"])?;
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// A list of nothing makes no directory.
fn lists(context: &Context) -> Result<()> {
    let lab = context.lab(&["a"])?;
    let a = lab.host("a")?;
    for words in [
        &["agent-client", "peers"][..],
        &["agent-client", "flows"],
        &["agent-client", "forward", "list"],
        &["agent-server", "peers"],
        &["agent-server", "marks"],
    ] {
        let (program, arguments) = words.split_first().unwrap_or((&"", &[]));
        let places = ["--state-dir", "/tmp/none/state", "--run-dir", "/tmp/none/run"];
        let output = a.command(program).args(arguments.iter().chain(&places).copied()).output()?;
        ensure!(output.status.success(), "{words:?}: {}", output.error_text());
        ensure!(!a.path("/tmp/none").exists(), "{words:?} makes a directory");
    }
    Ok(())
}

/// The original cannot be removed when its move is done. Its host asks about the move again later, so the destination may not
/// forget it before.
fn unsettled(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve("b")?;
    let run = ["run", "--detach", "--name", "web", "--volume", "data:/data"];
    let id = a.podman([&run[..], &["probe:1", "netmig-probe", "serve"]].concat())?;
    // Which volumes stay is noted in a directory here.
    a.write("/var/lib/netmig/volumes", "")?;
    let moved = lab.attempt("web", "a", "b", &[])?;
    ensure!(moved.code == Some(6), "exit {:?}: {}", moved.code, moved.stderr);
    let list = "ls -p /var/lib/netmig/arrived | grep -v / | wc -l";
    let kept = || Ok::<_, Error>(b.run(["sh", "-c", list])?.trim().to_owned());
    let before = kept()?;
    ensure!(before == "1", "{before} arrivals wait for the word of their source");
    a.run(["rm", "/var/lib/netmig/volumes"])?;
    // A guardian may be at work on it just now.
    until("a has nothing left to do", LIMIT, || {
        let recovered = a.command("agent-client").args(["recover"]).limit(LIMIT).output()?;
        Ok(recovered.status.success())
    })?;
    settled(&lab)?;
    ensure!(home(&lab, &id)? == "b", "it is not on b");
    until("the source has said that it will not ask", LIMIT, || Ok(kept()? == "0"))
}
