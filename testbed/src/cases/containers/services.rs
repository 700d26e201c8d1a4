//! Containers of systemd units: they move together with their service.

pub(super) mod broken_off;
pub(super) mod units;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::promise::{LIMIT, settled, until};
use super::super::subject::Clients;
use crate::ensure;
use crate::error::Result;
use crate::faults::container_state;
use crate::host::Host;
use crate::lab::{Lab, LabBuilder, MigrationReport};
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("containers-services-of-quadlet-start", &["containers"], quadlet_starts).limit(240),
    Case::new("containers-services-move-and-come-home", &["containers"], move_and_come_home)
        .limit(400),
];

/// The unit that Quadlet makes of [`SOURCE`].
pub(super) const UNIT: &str = "web.service";
/// Its source file.
pub(super) const SOURCE: &str = "/etc/containers/systemd/web.container";
/// The time limit for a service to start.
pub(super) const STARTS: Duration = Duration::from_secs(30);

/// Returns the source file of a unit that runs the probe server, with lines for its section `Service`.
pub(super) fn quadlet(service: &str) -> String {
    format!(
        "[Unit]\nDescription=probe server\n\n\
         [Container]\nImage=localhost/probe:1\nPull=never\nContainerName=web\nExec=netmig-probe serve\n\
         PublishPort=7000:7000/tcp\nPublishPort=7000:7000/udp\n\n\
         [Service]\n{service}\n\n\
         [Install]\nWantedBy=multi-user.target\n"
    )
}

/// Returns a property of a unit as systemd prints it.
pub(super) fn property(host: &Host, name: &str) -> Result<String> {
    let words = ["show", "--value", "--property", name, UNIT];
    Ok(host.command("systemctl").args(words).run()?.text().trim().to_owned())
}

/// Writes the source file of the unit and lets systemd know.
pub(super) fn install(host: &Host, service: &str) -> Result<()> {
    host.write(SOURCE, quadlet(service))?;
    host.run(["systemctl", "daemon-reload"]).map(drop)
}

/// Checks that the unit is active, and that its main process is the monitor of the container.
pub(super) fn is_active(host: &Host) -> Result<()> {
    let name = host.name();
    let state = property(host, "ActiveState")?;
    ensure!(state == "active", "the unit is {state} on {name}");
    let monitor = host.podman(["inspect", "--format", "{{.State.ConmonPid}}", "web"])?;
    let main = property(host, "MainPID")?;
    ensure!(main == monitor.trim(), "the main process is {main} on {name}, conmon is {monitor}");
    let process = host.podman(["inspect", "--format", "{{.State.Pid}}", "web"])?;
    for pid in [monitor.trim(), process.trim()] {
        let cgroups = host.run(["cat", &format!("/proc/{pid}/cgroup")])?;
        ensure!(
            cgroups.contains(&format!("0::/system.slice/{UNIT}/")),
            "process {pid} on {name} is in {cgroups}"
        );
    }
    Ok(())
}

/// A unit of Quadlet starts on a host whose process 1 is systemd, and its container answers.
fn quadlet_starts(context: &Context) -> Result<()> {
    let lab = context.start(&LabBuilder::new(&["a", "b"]).systemd())?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    install(a, "Restart=always")?;
    a.run(["systemctl", "start", UNIT])?;
    b.probe().wait_for_echo(a.port(7000), STARTS)?;
    is_active(a)?;
    let status = a.run(["systemctl", "status", "--no-pager", UNIT])?;
    ensure!(status.contains("(conmon)"), "{status}");
    // What makes such a unit different from a container by itself: it starts another one.
    let before = a.podman(["inspect", "--format", "{{.Id}}", "web"])?;
    a.podman(["kill", "web"])?;
    until("the unit has started another container", LIMIT, || {
        let after = a.command("podman").args(["inspect", "--format", "{{.Id}}", "web"]).output()?;
        Ok(after.status.success() && after.text() != before && is_active(a).is_ok())
    })?;
    a.run(["systemctl", "stop", UNIT])?;
    ensure!(a.podman(["ps", "--all", "--quiet"])?.is_empty(), "a stopped unit has a container");
    Ok(())
}

/// Where netmig keeps a unit from starting.
pub(super) const GUARD: &str = "/etc/systemd/system/web.service.d/90-netmig-moved.conf";
/// The options of a move on a machine that may be busy.
pub(super) const PATIENT: [&str; 2] = ["--max-interruption", "60"];

/// Starts a lab of which two hosts have the unit, started on the first one.
pub(super) fn lab_with_units(context: &Context) -> Result<std::sync::Arc<Lab>> {
    let lab = context.start(&LabBuilder::new(&["a", "b", "c"]).systemd())?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    for host in [a, b] {
        install(host, "Restart=always")?;
        lab.serve(host.name())?;
    }
    a.run(["systemctl", "start", UNIT])?;
    c.probe().wait_for_echo(a.port(7000), STARTS)?;
    is_active(a)?;
    Ok(lab)
}

/// Checks that the unit is as if nothing had ever been moved: its settings are those of its file.
pub(super) fn is_ordinary(host: &Host) -> Result<()> {
    let name = host.name();
    let (added, reload) = (property(host, "DropInPaths")?, property(host, "NeedDaemonReload")?);
    ensure!(added.is_empty() && reload == "no", "{name} has {added:?}, reload {reload}");
    let restart = property(host, "Restart")?;
    ensure!(restart == "always", "the unit has Restart={restart} on {name}");
    for directory in ["/etc/systemd/system", "/run/systemd/system"] {
        let left = host.path(format!("{directory}/{UNIT}.d"));
        ensure!(!left.exists(), "{} is left on {name}", left.display());
    }
    Ok(())
}

/// Checks that nothing of the container is on a host, and that nothing starts it there: not an order, and not a boot.
pub(super) fn stays_down(host: &Host) -> Result<()> {
    let name = host.name();
    let is_down = |after: &str| -> Result<()> {
        let state = property(host, "ActiveState")?;
        ensure!(state == "inactive", "the unit is {state} on {name} after {after}");
        let all = host.podman(["ps", "--all", "--quiet"])?;
        ensure!(all.is_empty(), "{name} has {all} after {after}");
        Ok(())
    };
    is_down("the move")?;
    let status = host.command("systemctl").args(["status", "--no-pager", UNIT]).output()?.text();
    ensure!(status.contains("moved to"), "the status on {name} does not tell: {status}");
    let started = host.command("systemctl").args(["start", UNIT]).output()?;
    ensure!(!started.status.success(), "{name} has started the unit");
    is_down("an order")?;
    boot(host)?;
    is_down("a boot")
}

/// Has systemd start anew and bring up everything that a boot brings up.
fn boot(host: &Host) -> Result<()> {
    host.run(["systemctl", "daemon-reexec"])?;
    host.run(["systemctl", "isolate", "multi-user.target"]).map(drop)
}

/// Runs an action while the copies of the container are counted that run at the same time.
pub(super) fn one_at_a_time<T>(lab: &Lab, action: impl FnOnce() -> Result<T>) -> Result<T> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = 0;
            while !ended.load(Ordering::Relaxed) {
                most = most.max(payloads(lab));
                std::thread::sleep(Duration::from_millis(2));
            }
            most
        });
        let outcome = action();
        ended.store(true, Ordering::Relaxed);
        let most = watcher.join().unwrap_or(usize::MAX);
        let outcome = outcome?;
        ensure!(most == 1, "{most} containers ran at the same time");
        Ok(outcome)
    })
}

/// Returns the number of containers of units that run, whatever their IDs.
fn payloads(lab: &Lab) -> usize {
    let of = |host: &Host| -> usize {
        let unit = host.path(format!("/sys/fs/cgroup/system.slice/{UNIT}"));
        let below = std::fs::read_dir(unit).into_iter().flatten().flatten();
        below
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("libpod-payload-"))
            .filter(|entry| {
                let events = std::fs::read_to_string(entry.path().join("cgroup.events"));
                let events = events.unwrap_or_default();
                let runs = events.contains("populated 1") && events.contains("frozen 0");
                runs && !is_dying(&entry.path())
            })
            .count()
    };
    lab.hosts().iter().map(of).sum()
}

/// Returns whether the processes of a control group have been killed. A frozen process that is killed is not frozen while it
/// ends, and runs nothing of its program any more.
fn is_dying(cgroup: &Path) -> bool {
    /// `PF_EXITING` and `PF_SIGNALED` (`include/linux/sched.h`).
    const ENDING: u64 = 0x4 | 0x400;
    /// SIGKILL in a mask of signals (proc_pid_status(5)).
    const KILL: u64 = 1 << (libc::SIGKILL - 1);
    let processes = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let is_killed = |process: &str| {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{process}/{file}"));
        let (Ok(stat), Ok(status)) = (read("stat"), read("status")) else { return true };
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let flags = rest.split_whitespace().nth(6).and_then(|flags| flags.parse::<u64>().ok());
        let pending = status.lines().filter_map(|line| {
            let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        });
        flags.is_some_and(|flags| flags & ENDING != 0)
            || pending.into_iter().any(|mask| mask & KILL != 0)
    };
    processes.lines().all(is_killed)
}

/// Moves the container, and checks that one copy ran at every moment, that the unit is active at the destination, and down at
/// the source.
pub(super) fn moved(lab: &Lab, from: &Host, to: &Host, more: &[&str]) -> Result<MigrationReport> {
    let id = container_state::id(from, "web")?;
    let words = [&PATIENT[..], more].concat();
    let report =
        one_at_a_time(lab, || lab.attempt("web", from.name(), to.name(), &words)?.success())?;
    settled(lab)?;
    let says = |word: &str| report.warnings.iter().any(|warning| warning.contains(word));
    ensure!(says(UNIT) && says(GUARD), "the summary does not tell: {:?}", report.warnings);
    is_active(to)?;
    is_ordinary(to)?;
    ensure!(container_state::id(to, "web")? == id, "it is another container");
    stays_down(from)?;
    Ok(report)
}

/// A service moves there and back under its clients. Nothing of its source starts another one, and it is an ordinary service
/// wherever it runs.
fn move_and_come_home(context: &Context) -> Result<()> {
    let lab = lab_with_units(context)?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    // What is kept from happening after the move happens otherwise.
    a.run(["systemctl", "stop", UNIT])?;
    boot(a)?;
    until("the unit has started at boot", LIMIT, || Ok(is_active(a).is_ok()))?;
    c.probe().wait_for_echo(a.port(7000), STARTS)?;
    is_ordinary(b)?;

    let clients = Clients::gentle(c, a.port(7000))?;
    moved(&lab, a, b, &[])?;
    moved(&lab, b, a, &[])?;
    context.remark(clients.stop()?.gaps());

    moved(&lab, a, b, &[])?;
    let id = container_state::id(b, "web")?;
    b.run(["systemctl", "restart", UNIT])?;
    c.probe().wait_for_echo(b.port(7000), STARTS)?;
    is_active(b)?;
    is_ordinary(b)?;
    ensure!(container_state::id(b, "web")? != id, "a restart has kept the container");
    b.podman(["kill", "web"])?;
    until("the unit has restarted it", LIMIT, || Ok(is_active(b).is_ok()))?;
    c.probe().wait_for_echo(b.port(7000), STARTS)?;
    moved(&lab, b, a, &[])?;
    a.run(["systemctl", "stop", UNIT])?;
    ensure!(a.podman(["ps", "--all", "--quiet"])?.is_empty(), "a stopped unit has a container");
    Ok(())
}
