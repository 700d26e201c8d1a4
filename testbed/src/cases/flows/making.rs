//! A tunnel that another agent of the same host is only just making, or taking away.

use std::time::Duration;

use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::process::HostProcess;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] =
    &[Case::new("flows-a-tunnel-in-the-making-is-no-error", &["flows"], in_the_making)
        .in_company()];

/// `wireguard-go` is made this late, which an agent must notice, and not take for the end.
const LATE: Duration = Duration::from_millis(400);
const LIMIT: Duration = Duration::from_secs(20);

fn in_the_making(context: &Context) -> Result<()> {
    let lab = context.lab(&["a"])?;
    let a = lab.host("a")?;
    let served = a.run(["ls", "/sys/module/wireguard"]).is_ok();
    if served {
        return Err(Error::Skip("this kernel has WireGuard, which needs no process".to_owned()));
    }
    for last in [&["wireguard-go", "netmig1"][..], &["ip", "link", "delete", "netmig1"]] {
        // As the agent finds it between the interface's making and that of its control socket.
        a.run(["ip", "tuntap", "add", "dev", "netmig1", "mode", "tun"])?;
        let mut list = begin(a)?;
        std::thread::sleep(LATE);
        ensure!(list.is_running(), "it did not wait for {last:?}: {}", list.stderr());
        a.run(last.iter().copied())?;
        let answer = list.wait(LIMIT)?.success()?.text();
        ensure!(answer.trim() == r#"{"flows":[]}"#, "after {last:?} it said {answer}");
        if last[0] == "wireguard-go" {
            a.run(["ip", "link", "delete", "netmig1"])?;
        }
    }
    Ok(())
}

fn begin(host: &Host) -> Result<HostProcess> {
    host.command("agent-client").args(["flows", "--json"]).spawn()
}
