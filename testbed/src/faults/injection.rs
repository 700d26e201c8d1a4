//! Injects faults, and repairs what they have broken.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::fault::{Disk, Fault};
use super::injection_point::{InjectionPoint, signal_server};
use super::matrix::Side;
use super::observation::importing_podman;
use super::{breakpoint, reboot};
use crate::error::{Context, Error, Result};
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::lab::Lab;

/// The time that a stopped agent stays stopped.
const STOPPED: Duration = Duration::from_secs(10);
/// The time that the link is down while an agent dies.
const CUT: Duration = Duration::from_secs(5);
/// The longest time until a migration fails because a disk is full.
const FAILS: Duration = Duration::from_secs(60);
/// The time after which a service manager restarts a server.
const RESTART: Duration = Duration::from_millis(500);
/// The beginnings of the command lines of a server of pages and of what takes its place.
const PAGE_SERVER: &str = "netmig-shim lazy-pages";
const PAGE_HOLDER: &str = "netmig-shim hold-pages";
/// The name of a file that fills a file system.
const FILLER: &str = "filler";
/// The file that makes the container end when it appears.
pub(super) const END: &str = "/tmp/end";

/// Makes the preparations that a fault needs before the migration starts.
pub(super) fn prepare(lab: &Lab, point: InjectionPoint, fault: Fault) -> Result<()> {
    let host = |side: Side| lab.host(side.host());
    match fault {
        Fault::DumpFails => breakpoint::fail_step(host(Side::Source)?, "dump"),
        Fault::RestoreFails => breakpoint::fail_step(host(Side::Destination)?, "restore"),
        Fault::RollbackFails(_) if point == InjectionPoint::Dump => {
            breakpoint::fail_step(host(Side::Source)?, "dump")
        }
        Fault::RollbackFails(_) => breakpoint::fail_step(host(Side::Destination)?, "restore"),
        Fault::DiskFull(side, Disk::State) => {
            let host = host(side)?;
            // The agent's state, and no room for anything else.
            host.run([
                "sh",
                "-c",
                "cp -a /var/lib/netmig /tmp/state && mount -t tmpfs -o size=256k \
                       none /var/lib/netmig && cp -a /tmp/state/. /var/lib/netmig && \
                       rm -rf /tmp/state",
            ])?;
            fill(host, "/var/lib/netmig")
        }
        Fault::DiskFull(side, Disk::Storage) => host(side)?
            .run([
                "sh",
                "-c",
                "cp -a /var/lib/containers /tmp/storage && mount -t tmpfs \
                             -o size=200m none /var/lib/containers && cp -a /tmp/storage/. \
                             /var/lib/containers && rm -rf /tmp/storage",
            ])
            .map(drop),
        Fault::DiskFull(side, Disk::Run) => {
            host(side)?.run(["mount", "-o", "remount,size=16m", "/run"]).map(drop)
        }
        _ => Ok(()),
    }
}

/// Writes to a directory until its file system is full.
fn fill(host: &Host, directory: &str) -> Result<()> {
    let file = format!("of={directory}/{FILLER}");
    let output = host.command("dd").args(["if=/dev/zero", &file, "bs=4096"]).output()?;
    if output.error_text().contains("No space left") {
        return Ok(());
    }
    Err(Error::Check(format!("{directory} did not become full: {}", output.error_text())))
}

/// Injects the fault. `first` is the process ID of the original's first process in its host's PID namespace.
pub(super) fn inject(lab: &Lab, fault: Fault, client: &mut HostProcess, first: &str) -> Result<()> {
    let host = |side: Side| lab.host(side.host());
    match fault {
        Fault::Kill(side) => kill_agent(lab, side, client),
        Fault::KillBoth => Side::BOTH.iter().try_for_each(|side| kill_agent(lab, *side, client)),
        Fault::Stop(Side::Source) => client.signal(Signal::SIGSTOP),
        Fault::Stop(Side::Destination) => signal_server(lab, Signal::SIGSTOP),
        Fault::Cut(_) => lab.set_cable("b", false),
        Fault::CutAndKill(side) => {
            lab.set_cable("b", false)?;
            kill_agent(lab, side, client)
        }
        Fault::DumpFails | Fault::RestoreFails | Fault::DiskFull(_, Disk::State) => Ok(()),
        Fault::DiskFull(side, Disk::Run) => fill(host(side)?, "/run"),
        Fault::DiskFull(side, Disk::Storage) => fill(host(side)?, "/var/lib/containers"),
        Fault::ImportKilled => {
            let host = host(Side::Destination)?;
            let pid = importing_podman(host)
                .ok_or_else(|| Error::Check("no podman imports".to_owned()))?;
            host.run(["kill", "-9", &pid.to_string()]).map(drop)
        }
        Fault::PageServerKilled => kill_first(host(Side::Destination)?, PAGE_SERVER),
        Fault::PageHolderKilled => kill_first(host(Side::Destination)?, PAGE_HOLDER),
        Fault::TunnelKilled(side) => {
            // The kill takes a moment, and a new process may have the same name by then.
            let kill = "for p in $(pgrep -x wireguard-go); do kill -9 $p; \
                        while test -e /proc/$p/exe; do sleep 0.01; done; done";
            host(side)?.run(["sh", "-c", kill]).map(drop)
        }
        Fault::FirewallReloaded(Side::Source) => {
            host(Side::Source)?.podman(["network", "reload", "--all"]).map(drop)
        }
        // In the background: the command waits for the container that is being imported.
        Fault::FirewallReloaded(Side::Destination) => {
            let reload = "podman network reload --all > /dev/null 2>&1 &";
            host(Side::Destination)?.run(["sh", "-c", reload]).map(drop)
        }
        Fault::Opposite(side) => kill_agent(lab, side, client),
        Fault::Reboot(side) => reboot::power_off(lab, side),
        Fault::Rival | Fault::Stranger | Fault::RollbackFails(_) | Fault::Stale(_) => Ok(()),
        Fault::ContainerKilled => host(Side::Source)?.run(["kill", "-9", first]).map(drop),
        Fault::ContainerExits => {
            let path = host(Side::Source)?.path(format!("/proc/{first}/root{END}"));
            fs::write(&path, "").context(|| format!("writing {}", path.display()))
        }
    }
}

/// Repairs what the fault has broken, after the migration has been released from its injection point.
pub(super) fn heal(lab: &Lab, fault: Fault, client: &mut HostProcess) -> Result<()> {
    match fault {
        Fault::Stop(side) => {
            std::thread::sleep(STOPPED);
            match side {
                Side::Source => client.signal(Signal::SIGCONT),
                Side::Destination => signal_server(lab, Signal::SIGCONT),
            }
        }
        Fault::Cut(Some(seconds)) => {
            std::thread::sleep(Duration::from_secs(seconds));
            lab.set_cable("b", true)
        }
        Fault::Reboot(side) => reboot::boot(lab, side),
        Fault::Kill(Side::Destination) | Fault::KillBoth | Fault::Opposite(Side::Destination) => {
            std::thread::sleep(RESTART);
            lab.serve("b")
        }
        Fault::DiskFull(side, Disk::Run | Disk::Storage) => {
            // The operator makes room after the migration has failed.
            client.await_end(FAILS)?;
            let host = lab.host(side.host())?;
            host.run(["rm", "-f", "/run/filler", "/var/lib/containers/filler"]).map(drop)
        }
        Fault::CutAndKill(_) => {
            std::thread::sleep(CUT);
            lab.set_cable("b", true)?;
            lab.serve("b")
        }
        _ => Ok(()),
    }
}

/// Kills the first process with such a command line.
fn kill_first(host: &Host, line: &str) -> Result<()> {
    let found = host.run(["pgrep", "--full", line])?;
    let first = found.lines().next();
    let first = first.ok_or_else(|| Error::Check(format!("no process {line}")))?;
    host.run(["kill", "-9", first]).map(drop)
}

fn kill_agent(lab: &Lab, side: Side, client: &mut HostProcess) -> Result<()> {
    match side {
        Side::Source => client.signal(Signal::SIGKILL),
        Side::Destination => lab.stop_server("b", Signal::SIGKILL).map(drop),
    }
}
