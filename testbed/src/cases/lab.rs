//! The lab itself: its hosts, their isolation, and their removal.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::lab_resources::LabResources;
use crate::ensure;
use crate::error::{Context as _, Result};
use crate::lab::{self, Lab, LabBuilder};
use crate::runner::{Case, Context};

/// The first argument that makes this program start a lab, print its name, and wait to be killed.
pub const VICTIM_ARGUMENT: &str = "lab-victim";

pub(super) const CASES: &[Case] = &[
    Case::new("lab-hosts-reach-each-other", &["lab"], hosts_reach_each_other).exclusive(),
    Case::new("lab-leaves-nothing-behind", &["lab"], leaves_nothing_behind).exclusive(),
    Case::new("lab-of-a-killed-run-is-removed-by-the-next", &["lab"], killed_run_is_swept)
        .exclusive(),
    Case::new("lab-two-at-once-do-not-meet", &["lab"], two_at_once).exclusive(),
    Case::new("lab-snapshot-sees-every-kind-of-change", &["lab"], snapshot_sees_changes)
        .exclusive(),
    Case::new("lab-cable-can-be-pulled", &["lab"], cable).exclusive(),
    Case::new("lab-host-names-are-checked", &["lab"], names_are_checked).exclusive(),
];

fn hosts_reach_each_other(context: &Context) -> Result<()> {
    let started = Instant::now();
    let lab = context.lab(&["a", "b", "c"])?;
    context.remark(format!("up in {} ms", started.elapsed().as_millis()));
    let a = lab.host("a")?;
    for other in ["b", "c"] {
        for family in ["-4", "-6"] {
            a.run(["ping", family, "-c", "1", "-W", "2", other])?;
        }
    }
    ensure!(a.run(["hostname"])? == "a", "the host name is {}", a.run(["hostname"])?);
    let cgroup = a.run(["cat", "/proc/self/cgroup"])?;
    ensure!(cgroup.lines().any(|line| line == "0::/init"), "a process is in {cgroup}");
    for program in
        ["agent-client", "agent-server", "netmig-shim", "libnetmig_criu.so", "netmig-probe"]
    {
        let found = a.run(["sh", "-c", &format!("command -v {program}")])?;
        ensure!(found == format!("/usr/local/bin/{program}"), "{program} is {found}");
    }
    let code = a.command("sh").args(["-c", "echo out; echo err >&2; exit 7"]).output()?;
    ensure!(code.status.code() == Some(7), "exit status {}", code.status);
    ensure!((code.text(), code.error_text()) == ("out".into(), "err".into()), "{code:?}");
    Ok(())
}

fn leaves_nothing_behind(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    for host in lab.hosts() {
        host.podman(["run", "--detach", "--name", "web", "--publish", "7000:7000", "probe:1"])?;
    }
    // A frozen container and an orphan in a session of its own are the hardest to remove.
    lab.host("a")?.podman(["pause", "web"])?;
    lab.host("b")?.run(["setsid", "--fork", "sleep", "1000"])?;
    let traces = LabResources::of(&lab)?;
    let (processes, namespaces) = traces.counts();
    ensure!(processes >= 8 && namespaces >= 15, "only {processes} and {namespaces}: {traces:?}");
    let started = Instant::now();
    lab.clear()?;
    context.remark(format!(
        "{processes} processes, {namespaces} namespaces gone in {} ms",
        started.elapsed().as_millis()
    ));
    nothing_remains(&traces)
}

/// Waits until nothing of the lab is left. Namespaces end a moment after their last process.
fn nothing_remains(traces: &LabResources) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let left = traces.remaining()?;
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "left behind: {}", left.join(", "));
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn killed_run_is_swept(_: &Context) -> Result<()> {
    let mut victim = Command::new("/proc/self/exe");
    victim.arg(VICTIM_ARGUMENT).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut victim = victim.spawn().context(|| "starting a run to be killed")?;
    let mut id = String::new();
    if let Some(stdout) = victim.stdout.take() {
        BufReader::new(stdout).read_line(&mut id).context(|| "waiting for the lab of a run")?;
    }
    let places = lab::claim::Places::of(id.trim())?;
    let before = lab::cgroup::processes(&places.cgroup);
    // While its owner lives, no other run removes it.
    let untouched = lab::sweep()?;
    victim.kill().context(|| "killing a run")?;
    victim.wait().context(|| "waiting for a run")?;
    let orphans = lab::cgroup::processes(&places.cgroup);
    let swept = lab::sweep()?;
    ensure!(!id.trim().is_empty() && before.len() >= 3, "the lab {id:?} had {before:?}");
    ensure!(!untouched.contains(&id.trim().to_owned()), "a living lab was removed");
    ensure!(orphans == before, "the hosts of a killed run were {before:?}, then {orphans:?}");
    ensure!(swept.contains(&id.trim().to_owned()), "swept: {swept:?}");
    ensure!(!places.any_trace(), "there is still something of {places:?}");
    Ok(())
}

/// Starts a lab, prints its name, and waits for the end.
///
/// # Errors
/// The lab did not start.
pub fn be_victim() -> Result<()> {
    let lab = Lab::start(&["a", "b"])?;
    println!("{}", lab.id());
    std::thread::sleep(Duration::from_secs(60));
    lab.down()
}

fn two_at_once(context: &Context) -> Result<()> {
    let first = context.lab(&["a", "b"])?;
    let second = context.lab(&["a", "b"])?;
    ensure!(first.id() != second.id(), "both are {}", first.id());
    first.host("a")?.podman(["run", "--detach", "--name", "only-here", "probe:1"])?;
    let elsewhere = second.host("a")?.podman(["ps", "--all", "--format", "{{.Names}}"])?;
    ensure!(elsewhere.is_empty(), "the other lab has {elsewhere}");
    first.host("b")?.run(["ip", "address", "add", "192.0.2.77/24", "dev", "eth0"])?;
    let reached = second.host("a")?.command("ping").args(["-c", "1", "-W", "1", "192.0.2.77"]);
    ensure!(!reached.output()?.status.success(), "a host of the other lab answered");
    first.clear()?;
    second.host("a")?.run(["ping", "-c", "1", "-W", "2", "b"])?;
    Ok(())
}

fn snapshot_sees_changes(context: &Context) -> Result<()> {
    let lab = context.lab(&["a"])?;
    let a = lab.host("a")?;
    a.podman(["run", "--detach", "--name", "web", "probe:1"])?;
    let before = a.snapshot()?;
    before.await_return(a, Duration::from_secs(3), |all| all)?;
    a.run(["nft", "add", "table", "inet", "foreign"])?;
    a.run(["ip", "rule", "add", "fwmark", "5", "lookup", "77"])?;
    a.run(["ip", "-6", "rule", "add", "fwmark", "5", "lookup", "77"])?;
    a.run(["ip", "route", "add", "blackhole", "default", "table", "77"])?;
    a.run(["ip", "-6", "route", "add", "blackhole", "default", "table", "77"])?;
    a.run(["ip", "tuntap", "add", "tun9", "mode", "tun"])?;
    a.run(["ip", "address", "add", "198.51.100.1/32", "dev", "tun9"])?;
    a.run(
        "conntrack -I -s 192.0.2.9 -d 192.0.2.8 -p udp --sport 5 --dport 6 --timeout 60 --mark 7"
            .split(' '),
    )?;
    a.write("/run/netmig/file", "x")?;
    a.run(["setsid", "--fork", "sleep", "1000"])?;
    a.podman(["stop", "--time", "0", "web"])?;
    a.podman(["tag", "probe:1", "other:2"])?;
    let changed = before.difference(&a.snapshot()?).map(|all| all.to_string()).unwrap_or_default();
    let parts = [
        "nftables",
        "rules",
        "rules6",
        "routes",
        "routes6",
        "links",
        "addresses",
        "conntrack marks",
        "files",
        "processes",
        "containers",
        "images",
    ];
    for part in parts {
        ensure!(
            changed.lines().any(|line| line.starts_with(&format!("{part}: "))),
            "a change of {part} was not noticed:\n{changed}"
        );
    }
    Ok(())
}

fn cable(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let a = lab.host("a")?;
    let ping = || a.command("ping").args(["-c", "1", "-W", "1", "b"]).output();
    ensure!(ping()?.status.success(), "no answer before");
    lab.set_cable("b", false)?;
    ensure!(!ping()?.status.success(), "an answer without a cable");
    lab.set_cable("b", true)?;
    ensure!(ping()?.status.success(), "no answer after");
    Ok(())
}

fn names_are_checked(_: &Context) -> Result<()> {
    for names in [&["a", "a"][..], &["../a"], &["A"], &[]] {
        ensure!(LabBuilder::new(names).start().is_err(), "{names:?} were accepted");
    }
    Ok(())
}
