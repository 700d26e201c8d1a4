//! A container of a systemd unit is refused.

use super::{LIMIT, until};
use crate::cases::subject::Clients;
use crate::cases::untouched::Untouched;
use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] =
    &[Case::new("promise-service-units-keep-their-containers", &["promise"], units).limit(240)];

/// The name of the unit and of its cgroup.
const UNIT: &str = "w.service";
const CGROUP: &str = "/sys/fs/cgroup/system.slice/w.service";
/// The exit code of an order that was refused.
const REFUSED: i32 = 3;

/// Starts the container with an option of podman.
type Start = fn(&Host, &str) -> Result<()>;

fn units(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    lab.serve("b")?;
    a.run(["mkdir", "-p", CGROUP])?;
    let mut problems = Vec::new();
    let label = format!("--label=PODMAN_SYSTEMD_UNIT={UNIT}");
    let ways: [(&str, Start, &str); 3] = [
        ("by its label", detached, &label),
        ("by the cgroup of its conmon", moved_conmon, "--detach"),
        // As after `ExecStart=podman run …`.
        ("by the cgroup of its podman run", attached, "--rm"),
    ];
    for (way, start, option) in ways {
        start(a, option)?;
        c.probe().wait_for_echo(a.port(7000), LIMIT)?;
        let clients = Clients::gentle(c, a.port(7000))?;
        if let Err(error) = is_refused(&lab) {
            problems.push(format!("{way}: {error}"));
        }
        clients.stop()?;
        for host in [a, lab.host("b")?] {
            host.podman(["rm", "--all", "--force", "--time", "0"])?;
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// Checks that one message names the unit, the code and the remedy, and that nothing has changed.
fn is_refused(lab: &Lab) -> Result<()> {
    let before = Untouched::look(lab, "a", "b", "web")?;
    let attempt = lab.attempt("web", "a", "b", &[])?;
    ensure!(attempt.code == Some(REFUSED), "exit code {:?}: {}", attempt.code, attempt.stderr);
    let json = attempt.json()?.to_string();
    for word in ["service-unit", UNIT] {
        ensure!(attempt.stderr.contains(word) && json.contains(word), "no {word:?} in {json}");
    }
    let advice = ["systemctl", "disable", "stop", "remove", "create"];
    let is_advised = advice.iter().any(|word| attempt.stderr.contains(word));
    ensure!(is_advised, "it does not say what to do: {}", attempt.stderr);
    before.check()
}

const RUN: [&str; 7] =
    ["run", "--name", "web", "--publish", "7000:7000/tcp", "--publish", "7000:7000/udp"];
const SERVER: [&str; 3] = ["probe:1", "netmig-probe", "serve"];

fn detached(host: &Host, option: &str) -> Result<()> {
    host.podman([&RUN[..], &["--detach", option], &SERVER].concat()).map(drop)
}

fn moved_conmon(host: &Host, option: &str) -> Result<()> {
    host.podman([&RUN[..], &[option], &SERVER].concat())?;
    let conmon = host.podman(["inspect", "--format", "{{.State.ConmonPid}}", "web"])?;
    host.command("tee").args([format!("{CGROUP}/cgroup.procs")]).input(conmon).run().map(drop)
}

/// Returns a shell that enters the unit's cgroup and becomes podman, as `ExecStart=` does.
fn command(option: &str) -> String {
    format!(
        "echo $$ > {CGROUP}/cgroup.procs && exec podman {} {option} {}",
        RUN.join(" "),
        SERVER.join(" ")
    )
}

fn attached(host: &Host, option: &str) -> Result<()> {
    // Another shell, since `$$` in a subshell is the process ID of the outer one.
    let line = format!("sh -c '{}' > /dev/null 2>&1 < /dev/null &", command(option));
    host.run(["sh", "-c", &line])?;
    until("it runs", LIMIT, || {
        Ok(host.podman(["ps", "--quiet", "--filter", "name=^web$"]).is_ok_and(|id| !id.is_empty()))
    })
}
