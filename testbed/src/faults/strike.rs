//! Carries a fault out.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::cell::{Moment, Side};
use super::fault::{Disk, Fault};
use super::moment::{importing, pause_server};
use super::{gate, reboot};
use crate::error::{Context, Error, Result};
use crate::host::Host;
use crate::host::process::HostProcess;
use crate::lab::Lab;

/// How long a stopped agent stays stopped.
const STOPPED: Duration = Duration::from_secs(10);
/// How long the link is cut while an agent dies.
const CUT: Duration = Duration::from_secs(5);
/// How long a migration may take to fail for want of room.
const FAILS: Duration = Duration::from_secs(60);
/// How soon a service manager starts a server again.
const RESTART: Duration = Duration::from_millis(500);
/// Leaves next to nothing of a tmpfs.
const FILLER: &str = "filler";
/// The file whose appearance ends the container.
pub(super) const END: &str = "/tmp/end";

/// What has to be so before the migration begins.
pub(super) fn set_up(lab: &Lab, moment: Moment, fault: Fault) -> Result<()> {
    let host = |side: Side| lab.host(side.host());
    match fault {
        Fault::DumpFails => gate::spoil(host(Side::Source)?, "dump"),
        Fault::RestoreFails => gate::spoil(host(Side::Destination)?, "restore"),
        Fault::GoingBackFails(_) if moment == Moment::Dump => {
            gate::spoil(host(Side::Source)?, "dump")
        }
        Fault::GoingBackFails(_) => gate::spoil(host(Side::Destination)?, "restore"),
        Fault::DiskFull(side, Disk::State) => {
            let host = host(side)?;
            // What the agent keeps from its first run on, and room for nothing else.
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

/// Writes until there is no room.
fn fill(host: &Host, directory: &str) -> Result<()> {
    let file = format!("of={directory}/{FILLER}");
    let output = host.command("dd").args(["if=/dev/zero", &file, "bs=4096"]).output()?;
    if output.error_text().contains("No space left") {
        return Ok(());
    }
    Err(Error::Check(format!("{directory} did not become full: {}", output.error_text())))
}

/// The moment has come. `first` is the original's first process, as its host numbers it.
pub(super) fn strike(lab: &Lab, fault: Fault, client: &mut HostProcess, first: &str) -> Result<()> {
    let host = |side: Side| lab.host(side.host());
    match fault {
        Fault::Kill(side) => kill_agent(lab, side, client),
        Fault::KillBoth => Side::BOTH.iter().try_for_each(|side| kill_agent(lab, *side, client)),
        Fault::Stop(Side::Source) => client.signal(Signal::SIGSTOP),
        Fault::Stop(Side::Destination) => pause_server(lab, Signal::SIGSTOP),
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
            let pid =
                importing(host).ok_or_else(|| Error::Check("no podman imports".to_owned()))?;
            host.run(["kill", "-9", &pid.to_string()]).map(drop)
        }
        Fault::TunnelKilled(side) => {
            // Its end takes a moment; a new one may be there by then.
            let kill = "for p in $(pgrep -x wireguard-go); do kill -9 $p; \
                        while test -e /proc/$p/exe; do sleep 0.01; done; done";
            host(side)?.run(["sh", "-c", kill]).map(drop)
        }
        Fault::FirewallReloaded(Side::Source) => {
            host(Side::Source)?.podman(["network", "reload", "--all"]).map(drop)
        }
        // It waits for the container that is being imported there.
        Fault::FirewallReloaded(Side::Destination) => {
            let reload = "podman network reload --all > /dev/null 2>&1 &";
            host(Side::Destination)?.run(["sh", "-c", reload]).map(drop)
        }
        Fault::Opposite(side) => kill_agent(lab, side, client),
        Fault::Reboot(side) => reboot::power_off(lab, side),
        Fault::Rival | Fault::Stranger | Fault::GoingBackFails(_) | Fault::Stale(_) => Ok(()),
        Fault::ContainerKilled => host(Side::Source)?.run(["kill", "-9", first]).map(drop),
        Fault::ContainerExits => {
            let path = host(Side::Source)?.path(format!("/proc/{first}/root{END}"));
            fs::write(&path, "").context(|| format!("writing {}", path.display()))
        }
    }
}

/// What follows once nothing waits for us any more.
pub(super) fn heal(lab: &Lab, fault: Fault, client: &mut HostProcess) -> Result<()> {
    match fault {
        Fault::Stop(side) => {
            std::thread::sleep(STOPPED);
            match side {
                Side::Source => client.signal(Signal::SIGCONT),
                Side::Destination => pause_server(lab, Signal::SIGCONT),
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
            // Somebody makes room once it has failed.
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

fn kill_agent(lab: &Lab, side: Side, client: &mut HostProcess) -> Result<()> {
    match side {
        Side::Source => client.signal(Signal::SIGKILL),
        Side::Destination => lab.stop_server("b", Signal::SIGKILL).map(drop),
    }
}
