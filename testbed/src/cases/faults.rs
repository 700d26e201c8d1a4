//! Representative cells of the fault matrix. `cargo testbed bench faults` runs all cells.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::subject::{Clients, serve};
use super::terminal::Terminal;
use crate::ensure;
use crate::error::{Context as _, Error, Result};
use crate::faults::stale_journal::LastRecord;
use crate::faults::{Cell, Fault, Harness, InjectionPoint, Memory, RunsOn, Side};
use crate::host::Host;
use crate::lab::Lab;
use crate::runner::{Case, Context};
use crate::slowdown;

pub(super) const CASES: &[Case] = &[
    Case::new("faults-before-the-decision", &["faults", "migration"], before).limit(300),
    Case::new("faults-after-the-decision", &["faults", "migration"], after).limit(300),
    Case::new("faults-a-person-takes-a-move-back", &["faults", "operator"], taken_back).limit(300),
    Case::new("faults-a-restart-of-the-destination", &["faults", "promise"], restarted).limit(300),
    Case::new("faults-a-stale-journal-and-a-later-move", &["faults", "promise"], stale).limit(300),
    Case::new("faults-killed-as-it-begins", &["faults"], beginnings).limit(300),
    Case::new("faults-journals-of-nobody", &["faults", "refusal"], strange_journals),
];

/// The time limit for the message of a program.
const LIMIT: Duration = Duration::from_secs(60);
/// The time limit for the removal of what a killed agent has left.
const SETTLES: Duration = Duration::from_secs(20);
/// The exit code of an attempt that was refused.
const REFUSED: i32 = 3;
/// The exit code of a recovery that leaves something.
const FAILED: i32 = 1;
/// The directory of journals.
const JOURNALS: &str = "/var/lib/netmig/journal";

/// Runs cells one after the other. After each the container must run on `runs_on`.
fn try_all(context: &Context, cells: &[(InjectionPoint, Fault)], runs_on: RunsOn) -> Result<()> {
    let harness = Harness::of(context.lab(&["a", "b", "c"])?)?;
    for (point, fault) in cells {
        let cell = Cell { memory: Memory::Little, point: *point, fault: *fault };
        let outcome = harness.run(cell)?;
        let problems = outcome.problems(cell);
        ensure!(problems.is_empty(), "{cell}: {problems:?}: {}", outcome.said);
        ensure!(outcome.runs_on == runs_on, "{cell}: it runs on {:?}", outcome.runs_on);
        context.remark(format!("{cell} silent {:.0} ms", outcome.tcp.max_gap_ms));
    }
    Ok(())
}

/// After any fault before the commit record the container runs on the source.
fn before(context: &Context) -> Result<()> {
    let cells = [
        (InjectionPoint::Dump, Fault::Kill(Side::Source)),
        (InjectionPoint::Dump, Fault::DumpFails),
        (InjectionPoint::Restore, Fault::RestoreFails),
        (InjectionPoint::Restore, Fault::Kill(Side::Destination)),
        (InjectionPoint::Prepared, Fault::KillBoth),
    ];
    try_all(context, &cells, RunsOn::Source)
}

/// After any fault after the commit record the container runs on the destination.
fn after(context: &Context) -> Result<()> {
    let cells = [
        (InjectionPoint::Commit, Fault::Kill(Side::Source)),
        (InjectionPoint::Active, Fault::Kill(Side::Destination)),
        (InjectionPoint::Commit, Fault::CutAndKill(Side::Source)),
    ];
    try_all(context, &cells, RunsOn::Destination)
}

/// A restarted destination does not start an undecided copy by its restart policy.
fn restarted(context: &Context) -> Result<()> {
    for point in [InjectionPoint::Staged, InjectionPoint::Restore, InjectionPoint::Prepared] {
        try_all(context, &[(point, Fault::Reboot(Side::Destination))], RunsOn::Source)?;
    }
    Ok(())
}

/// The recovery of an earlier migration does not touch the flows of a later one.
fn stale(context: &Context) -> Result<()> {
    try_all(
        context,
        &[(InjectionPoint::Stage, Fault::Stale(LastRecord::Interruption))],
        RunsOn::Destination,
    )
}

/// The source's agent dies just before, during or just after the write of the first record on either host.
fn beginnings(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("b")?;
    serve(a, "web", 7000, &[], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    // The first preflight on a host takes longer.
    for pause in [0].into_iter().chain(0..=40) {
        let mut client = a.command("agent-client").args(["migrate", "web", "b"]).spawn()?;
        client.wait_for("connect", LIMIT)?;
        std::thread::sleep(Duration::from_millis(pause));
        client.signal(Signal::SIGKILL)?;
        client.wait(LIMIT)?;
        for host in [a, b] {
            let deadline = Instant::now() + slowdown::limit(SETTLES);
            while let Some(journal) = journals(host)? {
                let late = Instant::now() > deadline;
                ensure!(!late, "killed {pause} ms on: {} has {journal}", host.name());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    let running = a.podman(["ps", "--quiet", "--filter", "name=^web$"])?;
    ensure!(!running.is_empty(), "web does not run on a");
    context.remark(clients.stop()?.gaps());
    lab.migrate("web", "a", "b").map(drop)
}

/// Returns one of a host's journals, complete or not.
fn journals(host: &Host) -> Result<Option<String>> {
    let path = host.path(JOURNALS);
    if !path.exists() {
        return Ok(None);
    }
    let mut entries = fs::read_dir(&path).context(|| format!("reading {}", path.display()))?;
    Ok(entries.next().transpose().ok().flatten().map(|e| e.path().display().to_string()))
}

/// Writes the journal of a decided migration to a host that does not exist any more. Returns its path.
fn plant(lab: &Lab, name: &str) -> Result<String> {
    let a = lab.host("a")?;
    let inspect = |format: &str| a.podman(["inspect", "--format", format, name]);
    let id = inspect("{{.Id}}")?;
    let bytes = |number: u8| format!("[{}]", vec![number.to_string(); 16].join(","));
    let journal = format!(
        "netmig journal 1\n{{\"record\":\"departure\",\"migration\":{},\"container\":\"{id}\",\
         \"name\":\"{name}\",\"addresses\":[],\"destination\":\"192.0.2.99:7472\",\"peer\":{}}}\n\
         {{\"record\":\"committed\"}}\n",
        bytes(1),
        bytes(2)
    );
    let path = format!("{JOURNALS}/{}", "01".repeat(16));
    a.write(&path, journal)?;
    Ok(path)
}

/// The operator has to type the container's name, and a wrong name changes nothing.
fn taken_back(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    serve(a, "web", 7000, &[], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    let words = ["recover", "--rollback-anyway", "web"];
    let attempt = || Terminal::start(a.command("agent-client").args(words));

    let mut terminal = attempt()?;
    terminal.expect("no migration of a container web is unfinished", LIMIT)?;
    ensure!(terminal.finish(LIMIT)? == Some(REFUSED), "{}", terminal.screen());

    let path = plant(&lab, "web")?;
    let planted = a.read(&path)?;
    let output = a.command("agent-client").args(words).output()?;
    ensure!(output.status.code() == Some(2), "without a terminal: {output:?}");
    let mut terminal = attempt()?;
    terminal.expect("does not confirm the move", LIMIT)?;
    terminal.expect("Type the container's name", LIMIT)?;
    terminal.send("wbe\r")?;
    terminal.expect("that is not the name", LIMIT)?;
    ensure!(terminal.finish(LIMIT)? == Some(REFUSED), "{}", terminal.screen());
    ensure!(a.read(&path)? == planted, "the journal has changed: {}", a.read(&path)?);

    let mut terminal = attempt()?;
    terminal.expect("Type the container's name", LIMIT)?;
    terminal.send("web\r")?;
    terminal.expect("runs on this host again", LIMIT)?;
    ensure!(terminal.finish(LIMIT)? == Some(0), "{}", terminal.screen());
    ensure!(!a.path(&path).exists(), "the journal is still there");
    context.remark(clients.stop()?.gaps());
    Ok(())
}

/// Malformed journals are reported, and neither acted upon nor changed.
fn strange_journals(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    serve(a, "web", 7000, &[], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    let path = plant(&lab, "web")?;
    let whole = a.read(&path)?;
    let noise: Vec<u8> =
        (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let strange: [(&str, Vec<u8>); 5] = [
        ("random bytes", noise),
        ("nothing", Vec::new()),
        ("a cut header", whole.as_bytes()[..9].to_vec()),
        ("a later version", whole.replace("journal 1", "journal 3").into_bytes()),
        ("a damaged record", whole.replace("departure", "departed").into_bytes()),
    ];
    for (what, contents) in strange {
        a.write(&path, &contents)?;
        for program in [&["agent-client", "recover"][..], &["agent-server", "--port", "7999"]] {
            let (name, arguments) = program.split_first().unwrap_or((&"", &[]));
            let said = if *name == "agent-client" {
                let output = a.command(name).args(arguments).output()?;
                ensure!(output.status.code() == Some(FAILED), "{what}: {output:?}");
                output.error_text()
            } else {
                let mut server = a.command(name).args(arguments).spawn()?;
                server.wait_for("nothing was done about it", LIMIT)?;
                server.stderr()
            };
            let told = said.matches("nothing was done about it").count();
            ensure!(told == 1 && said.contains(&path), "{what}: {name} says {said}");
        }
        let now = std::fs::read(a.path(&path)).map_err(|e| Error::Check(e.to_string()))?;
        ensure!(now == contents, "the journal with {what} has been changed");
    }
    context.remark(clients.stop()?.gaps());
    Ok(())
}
