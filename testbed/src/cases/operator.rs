//! Operations on a container after its migration, and the interactive start of one.

use std::time::{Duration, Instant};

use super::subject::{Clients, numbered_lines, serve};
use super::terminal::Terminal;
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lab::Runtime;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("operator-crun-podman-works-afterwards", &["migration", "operator"], |context| {
        podman_afterwards(context, Runtime::Crun)
    }),
    Case::new("operator-runc-podman-works-afterwards", &["migration", "operator"], |context| {
        podman_afterwards(context, Runtime::Runc)
    }),
    Case::new("operator-is-asked-on-a-terminal", &["migration", "operator"], asked),
    Case::new("operator-is-not-asked-without-a-terminal", &["operator"], not_asked),
];

/// The time limit for the message of a program.
const LIMIT: Duration = Duration::from_secs(30);

/// A program that prints a line every 10 ms and ends at once on SIGTERM.
const TALKER: &str = "trap 'echo end; exit 0' TERM; n=0; \
                      while true; do echo $n line; n=$((n+1)); sleep 0.01; done";

/// Checks the numbered lines of the log and returns their number.
fn log(host: &Host) -> Result<usize> {
    let log = host.podman(["logs", "talker"])?;
    let foreign = log.lines().find(|line| !line.ends_with(" line") && *line != "end");
    ensure!(foreign.is_none(), "the log has lines of another writer: {foreign:?}");
    numbered_lines(log.trim_end_matches("end").trim_end())
}

fn podman_afterwards(context: &Context, runtime: Runtime) -> Result<()> {
    let lab = context.lab_with(&["a", "b"], runtime)?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let start = ["run", "--detach", "--name", "talker", "--env", "COLOUR=green", "--publish"];
    a.podman(start.into_iter().chain(["7000:7000", "probe:1", "sh", "-c", TALKER]))?;
    std::thread::sleep(Duration::from_millis(500));
    let id = a.podman(["inspect", "--format", "{{.Id}}", "talker"])?;
    let told = log(a)?;
    lab.migrate("talker", "a", "b")?;

    let listed = |host: &Host| host.podman(["ps", "--all", "--no-trunc", "--format", "{{.ID}}"]);
    ensure!(listed(a)?.is_empty(), "the source still lists {}", listed(a)?);
    ensure!(listed(b)? == id, "the destination lists {} instead of {id}", listed(b)?);
    let moved = log(b)?;
    ensure!(moved > told, "{told} lines before, {moved} after");
    std::thread::sleep(Duration::from_millis(300));
    let later = log(b)?;
    ensure!(later > moved, "the log stands still at {moved} lines");
    let inside =
        b.podman(["exec", "--env", "A=b", "talker", "sh", "-c", "echo $COLOUR $A; id -u"])?;
    ensure!(inside == "green b\n0", "exec said {inside}");
    let state = |format: &str| b.podman(["inspect", "--format", format, "talker"]);
    let used = state("{{.OCIRuntime}} {{.State.Status}}")?;
    ensure!(used == format!("{} running", runtime.name()), "it is {used}");

    let since = Instant::now();
    b.podman(["stop", "--time", "8", "talker"])?;
    ensure!(since.elapsed() < Duration::from_secs(6), "it had to be killed");
    let ended = state("{{.State.Status}} {{.State.ExitCode}}")?;
    ensure!(ended == "exited 0", "after the stop it is {ended}");
    ensure!(log(b)? >= later, "lines are gone from the log");
    b.podman(["start", "talker"])?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(state("{{.State.Status}}")? == "running", "it did not start again");
    let fresh = b.podman(["logs", "--tail", "1", "talker"])?;
    ensure!(fresh.ends_with(" line"), "after the start it says {fresh}");
    b.podman(["rm", "--force", "--time", "0", "talker"])?;
    ensure!(listed(b)?.is_empty(), "the destination still lists {}", listed(b)?);
    // The name and the port are free again on both hosts.
    for host in [a, b] {
        let next = "run --detach --name talker --publish 7000:7000 probe:1";
        host.podman(next.split(' '))?;
    }
    context.remark(format!("{told} lines before, {later} after"));
    Ok(())
}

fn asked(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let mut server = b.command("agent-server").args(["--port", "7500"]).spawn()?;
    server.wait_for("listening on", LIMIT)?;
    let token = b.run(["agent-server", "invite", "--address", "b:7500"])?;
    a.run(["agent-client", "join", &token])?;
    serve(a, "web", 7000, &[], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    let mut terminal = Terminal::start(a.command("agent-client"))?;
    terminal.expect("Destination host:", LIMIT)?;
    terminal.send("b\r")?;
    terminal.expect("Port of agent-server:", LIMIT)?;
    terminal.send("7500\r")?;
    // The list shows name, image and ports.
    terminal.expect("Container to move:", LIMIT)?;
    terminal.expect("probe:1", LIMIT)?;
    terminal.expect("7000->7000/tcp", LIMIT)?;
    terminal.send("\r")?;
    for step in ["preflight", "tunnel", "stage", "hand-over", "remove original"] {
        terminal.expect(step, LIMIT)?;
    }
    terminal.expect("web runs at b now", LIMIT)?;
    terminal.expect("flows moved", LIMIT)?;
    let code = terminal.finish(LIMIT)?;
    ensure!(code == Some(0), "exit code {code:?}: {}", terminal.screen());
    let seen = clients.stop()?;
    ensure!(seen.udp.sent > 0 && b.podman(["ps", "--quiet"])?.lines().count() == 1, "not there");
    context.remark(seen.gaps());
    Ok(())
}

fn not_asked(context: &Context) -> Result<()> {
    let lab = context.lab(&["a"])?;
    let output = lab.host("a")?.command("agent-client").output()?;
    let text = output.error_text();
    ensure!(output.status.code() == Some(2), "{output:?}");
    ensure!(text.contains("no terminal") && text.contains("--help"), "it says {text}");
    // Escape at the first question changes nothing.
    let mut terminal = Terminal::start(lab.host("a")?.command("agent-client"))?;
    terminal.expect("Destination host:", LIMIT)?;
    terminal.send("\x1b")?;
    terminal.expect("nothing was changed", LIMIT)?;
    let code = terminal.finish(LIMIT)?;
    if code == Some(3) { Ok(()) } else { Err(Error::Check(format!("exit code {code:?}"))) }
}
