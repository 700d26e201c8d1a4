//! Containers of systemd units: they move together with their service.

use std::time::Duration;

use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::lab::LabBuilder;
use crate::runner::{Case, Context};

use super::super::promise::{LIMIT, until};

pub(super) const CASES: &[Case] =
    &[Case::new("containers-services-of-quadlet-start", &["containers"], quadlet_starts)
        .limit(240)];

/// The unit that Quadlet makes of [`SOURCE`].
pub(super) const UNIT: &str = "web.service";
/// Its source file.
pub(super) const SOURCE: &str = "/etc/containers/systemd/web.container";
/// The time limit for a service to start.
const STARTS: Duration = Duration::from_secs(30);

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
