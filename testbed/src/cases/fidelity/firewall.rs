//! `--open-firewall`: netmig's rules in other chains stay as long as flows need them, also if agents are killed and
//! the firewall is reloaded, and are removed afterwards. A refusal names the chain that is not opened and the remedy.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::closed_paths::{
    BRIDGE_ALONE, END, Fixture, ONE_WAY_OUT, idle, load, refused, there_and_home,
};
use crate::cases::flows::traces;
use crate::ensure;
use crate::error::Result;
use crate::faults::observation::has_record;
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::runner::{Case, Context};
use crate::slowdown;

pub(super) const CASES: &[Case] = &[
    Case::new("firewall-opened-by-agents-that-are-killed", &["fidelity", "flows"], killed),
    Case::new("firewall-opened-for-as-long-as-there-are-flows", &["fidelity", "flows"], committed),
    Case::new("firewall-that-is-loaded-anew", &["fidelity", "flows"], loaded_anew),
    Case::new("firewall-opened-for-nothing", &["fidelity", "flows"], for_nothing),
    Case::new("firewall-of-iptables", &["fidelity", "flows"], |c| {
        iptables(c, ["iptables-nft", "ip6tables-nft"], "could not list them any more")
    }),
    Case::new("firewall-of-legacy-iptables", &["fidelity", "flows"], |c| {
        iptables(c, ["iptables-legacy", "ip6tables-legacy"], "--open-firewall does not")
    }),
    Case::new("firewall-of-the-destination", &["fidelity", "flows"], of_the_destination),
];

/// The time limit for an agent to come to a step, and the reconciler to put rules back.
const LIMIT: Duration = Duration::from_secs(20);
/// The number of datagrams that may be lost while the rules are missing or an agent is dead, which takes some seconds.
const MEANWHILE: u64 = 200;
/// The arguments of agent-client.
const MIGRATE: [&str; 4] = ["migrate", "web", "b", "--open-firewall"];

/// Returns the user's own table.
fn table(host: &Host) -> Result<String> {
    host.run(["nft", "list", "table", "inet", "fw"])
}

fn is_open(host: &Host) -> bool {
    table(host).is_ok_and(|text| text.matches("netmig open").count() == 4)
}

fn until(what: &str, done: impl Fn() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + slowdown::limit(LIMIT);
    while !done()? {
        ensure!(Instant::now() < end, "not {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Starts a migration and waits until it has opened the firewall.
fn begun(a: &Host) -> Result<HostProcess> {
    let client = a.command("agent-client").args(MIGRATE).spawn()?;
    until("opened", || Ok(is_open(a)))?;
    Ok(client)
}

/// Kills the guardians of a host.
fn kill_guardians(host: &Host) -> Result<()> {
    for line in host.run(["ps", "-eo", "pid,args"])?.lines().filter(|l| l.contains("--watch")) {
        let pid = line.split_whitespace().next().unwrap_or_default();
        host.command("kill").args(["-KILL", pid]).output()?;
    }
    Ok(())
}

/// The agent is killed before the decision. Its guardian removes the rules, and without guardian `recover`.
fn killed(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let fixture = Fixture::start(&lab)?;
    load(a, BRIDGE_ALONE)?;
    let before = table(a)?;
    for by_hand in [false, true] {
        let mut client = begun(a)?;
        if by_hand {
            kill_guardians(a)?;
        }
        client.signal(Signal::SIGKILL)?;
        ensure!(!has_record(a, "interruption"), "it was killed too late");
        drop(client.wait(END));
        if by_hand {
            ensure!(is_open(a), "the chain is closed already");
            a.run(["agent-client", "recover"])?;
        }
        for host in [a, b] {
            traces::none_within(host, END)?;
        }
        let now = table(a)?;
        ensure!(now == before, "by hand: {by_hand}: {now} was {before}");
    }
    there_and_home(&lab, &["--open-firewall"])?;
    fixture.end(context, &lab)?;
    let now = table(a)?;
    ensure!(now == before, "{now} was {before}");
    Ok(())
}

/// The agent is killed after the decision. Its guardian completes the migration, and the rules go with the last flow.
fn committed(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let fixture = Fixture::start(&lab)?;
    load(a, BRIDGE_ALONE)?;
    let before = table(a)?;
    let (resting, _) = idle(c, a.port(7000))?;
    let mut client = begun(a)?;
    until("decided", || Ok(has_record(a, "committed") || has_record(a, "acknowledged")))?;
    client.signal(Signal::SIGKILL)?;
    drop(client.wait(END));
    until("ended", || Ok(!has_record(a, "departure")))?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(is_open(a), "closed while there are flows: {}", table(a)?);
    let seen = fixture.inbound.stop_losing(MEANWHILE)?;
    ensure!(is_open(a), "closed while connections rest: {}", table(a)?);
    let listed = a.run(["agent-client", "flows"])?;
    ensure!(listed.contains("web"), "it has no name: {listed:?}");
    a.run(["agent-client", "flows", "end", "web"])?;
    drop(resting);
    for host in [a, b] {
        traces::none_within(host, END)?;
    }
    let now = table(a)?;
    ensure!(now == before, "{now} was {before}");
    context.remark(seen.gaps());
    Ok(())
}

/// An administrator reloads the firewall, which removes netmig's rules.
fn loaded_anew(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let fixture = Fixture::start(&lab)?;
    load(a, BRIDGE_ALONE)?;
    let before = table(a)?;
    lab.attempt("web", "a", "b", &["--open-firewall"])?.success()?;
    ensure!(is_open(a), "{}", table(a)?);
    // In one transaction, as a file of nft does it; in two, with an empty ruleset in between; by its rules alone.
    load(a, &format!("flush ruleset\n{BRIDGE_ALONE}"))?;
    until("opened after a reload", || Ok(is_open(a)))?;
    a.run(["nft", "flush", "ruleset"])?;
    std::thread::sleep(Duration::from_millis(500));
    load(a, BRIDGE_ALONE)?;
    until("opened after a flush and a load", || Ok(is_open(a)))?;
    load(a, &format!("flush chain inet fw guard\n{BRIDGE_ALONE}"))?;
    until("opened after its rules were replaced", || Ok(is_open(a)))?;
    std::thread::sleep(Duration::from_secs(1));
    lab.migrate("web", "b", "a")?;
    traces::none_within(a, END)?;
    let now = table(a)?;
    ensure!(now == before, "{now} was {before}");
    // It is not opened for a container that is on this host.
    load(a, &format!("flush table inet fw\n{BRIDGE_ALONE}"))?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(table(a)? == before, "{} was {before}", table(a)?);
    traces::none_within(b, END)?;
    fixture.end_losing(context, &lab, MEANWHILE)
}

/// A refused migration to a host to which flows are steered already leaves the firewall as it was.
fn for_nothing(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let a = lab.host("a")?;
    let fixture = Fixture::start(&lab)?;
    crate::cases::subject::serve(a, "other", 7100, &[], lab.host("c")?)?;
    let (_resting, _) = idle(lab.host("c")?, a.port(7100))?;
    lab.attempt("other", "a", "b", &[])?.success()?;
    load(a, BRIDGE_ALONE)?;
    let before = table(a)?;
    load(lab.host("b")?, ONE_WAY_OUT)?;
    refused(&lab.attempt("web", "a", "b", &["--open-firewall"])?, &["table inet fw", "on b"])?;
    let now = table(a)?;
    ensure!(now == before, "{now} was {before}");
    for host in ["a", "b"] {
        lab.host(host)?.run(["nft", "delete", "table", "inet", "fw"])?;
    }
    lab.host("b")?.podman(["rm", "--force", "--time", "0", "other"])?;
    a.run(["agent-client", "flows", "end", "other"])?;
    there_and_home(&lab, &[])?;
    fixture.end(context, &lab)
}

/// Chains of iptables are not changed. The remedy in the refusal works.
fn iptables(context: &Context, programs: [&str; 2], why: &str) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let a = lab.host("a")?;
    let fixture = Fixture::start(&lab)?;
    for program in programs {
        for line in ["-A FORWARD -i podman+ -j ACCEPT", "-A FORWARD -o podman+ -j ACCEPT"] {
            a.run([&[program][..], &line.split(' ').collect::<Vec<_>>()].concat())?;
        }
        a.run([program, "-P", "FORWARD", "DROP"])?;
    }
    let before = a.run([programs[0], "-S"])?;
    let attempt = lab.attempt("web", "a", "b", &["--open-firewall"])?;
    refused(&attempt, &["FORWARD", "on a", why])?;
    ensure!(a.run([programs[0], "-S"])? == before, "iptables has other rules");
    let said = format!("{}{}", attempt.stdout, attempt.stderr);
    // These are the arguments for both programs.
    for arguments in ["-I FORWARD -i netmig+ -j ACCEPT", "-I FORWARD -o netmig+ -j ACCEPT"] {
        ensure!(said.contains(arguments), "no {arguments:?} in {said}");
        a.run([&[programs[0]][..], &arguments.split(' ').collect::<Vec<_>>()].concat())?;
    }
    there_and_home(&lab, &["--open-firewall"])?;
    fixture.end(context, &lab)
}

/// The option opens the source's firewall alone. The refusal names the remedy for the destination.
fn of_the_destination(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let b = lab.host("b")?;
    let fixture = Fixture::start(&lab)?;
    load(b, ONE_WAY_OUT)?;
    let before = table(b)?;
    let attempt = lab.attempt("web", "a", "b", &["--open-firewall"])?;
    refused(&attempt, &["on b", "chain guard", "the source alone"])?;
    ensure!(table(b)? == before, "{} was {before}", table(b)?);
    for way in ["iifname", "oifname"] {
        let rule = format!("insert rule inet fw guard {way} \"netmig*\" accept");
        let said = format!("{}{}", attempt.json()?, attempt.stderr).replace("\\\"", "\"");
        ensure!(said.contains(&rule), "no {rule:?} in {said}");
        load(b, &rule)?;
    }
    there_and_home(&lab, &["--open-firewall"])?;
    fixture.end(context, &lab)
}
