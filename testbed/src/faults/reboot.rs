//! Simulates a restart of a lab host: kills every process but the first, removes volatile state, and starts what a
//! service manager starts.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::matrix::Side;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lab::{Lab, cgroup};

/// The longest time until killed processes have ended.
const DIE: Duration = Duration::from_secs(20);
/// The longest time for each program of the start.
const BOOT: Duration = Duration::from_secs(120);

/// Removes what a restart removes: mounts and their contents, rules, interfaces, flows, routes, cgroups.
const POWER_OFF: &str = r#"
cut -d' ' -f5 /proc/self/mountinfo | grep -E '^/(run|tmp|dev/shm|var/lib/containers/storage)/' |
    tac | while read -r mount; do umount -l "$mount"; done
find /run /tmp /dev/shm -mindepth 1 -xdev -delete
nft flush ruleset
conntrack -F
for link in $(ls /sys/class/net); do
    case $link in lo|eth0) ;; *) ip link del "$link" ;; esac
done
for family in -4 -6; do
    while ip $family rule list | grep -q '^3[0-9][0-9][0-9]:'; do
        ip $family rule del pref $(ip $family rule list | sed -n 's/^\(3[0-9][0-9][0-9]\):.*/\1/p' | head -1)
    done
done
find /sys/fs/cgroup -mindepth 1 -depth -type d ! -name init -exec rmdir {} \;
mkdir -p /run/breakpoints
true"#;

/// Kills all processes of a host and removes its volatile state, as a power failure does.
pub(crate) fn power_off(lab: &Lab, side: Side) -> Result<()> {
    let host = lab.host(side.host())?;
    let directory: PathBuf = lab.cgroup().join(host.name());
    let end = Instant::now() + DIE;
    loop {
        let mut left = cgroup::processes(&directory);
        left.retain(|pid| *pid != host.init() && *pid > 1);
        if left.is_empty() {
            break;
        }
        if Instant::now() >= end {
            let text = format!("processes {left:?} of host {} do not die", host.name());
            return Err(Error::Check(text));
        }
        for pid in left {
            // A process that has ended meanwhile is not an error.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    host.command("sh").args(["-c", POWER_OFF]).limit(BOOT).output().map(drop)
}

/// Starts what a host starts at boot, in the order of the units in packaging/systemd.
pub(crate) fn boot(lab: &Lab, side: Side) -> Result<()> {
    let host = lab.host(side.host())?;
    host.command("agent-server").args(["recover"]).limit(BOOT).output()?;
    host.command("agent-client").args(["recover"]).limit(BOOT).output()?;
    if side == Side::Destination {
        lab.serve(host.name())?;
    }
    start_containers(host)
}

/// Starts containers as podman's own unit does at boot.
fn start_containers(host: &Host) -> Result<()> {
    let words = ["start", "--all", "--filter", "restart-policy=always"];
    host.command("podman").args(words).limit(BOOT).output().map(drop)
}
