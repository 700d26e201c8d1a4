//! Tests on a stock Debian kernel, in a virtual machine.

use std::time::Duration;

use serde::Deserialize;

use crate::ensure;
use crate::error::{Error, Result, chain};
use crate::lab::MigrationReport;
use crate::runner::{Case, Context};
use crate::traffic::client_report::EchoReport;
use crate::vm::{Machine, Plan, Ran, Show};

/// The area of tests that need a virtual machine.
pub const VM: &str = "vm";

/// The time limit for the virtual machine for the demo.
const LIMIT: Duration = Duration::from_secs(480);

pub(super) const CASES: &[Case] = &[
    Case::new("vm-demo-on-a-stock-kernel", &[VM], demo).limit(LIMIT.as_secs() + 600),
    Case::new("vm-other-user-with-limits", &[VM], with_limits).limit(LIMIT.as_secs() + 600),
];

/// A lab test that this machine may have to skip: a container of another user than root, with resource limits.
const TEST: &str = "fidelity-other-user-with-limits-crun";

/// The demo's JSON.
#[derive(Deserialize)]
struct Seen {
    #[serde(flatten)]
    migration: MigrationReport,
    tcp: EchoReport,
    udp: EchoReport,
}

/// Runs a command of the testbed in the virtual machine, which must succeed.
fn run(arguments: [&str; 2]) -> Result<(Machine, Ran)> {
    let machine = Machine::prepare()
        .map_err(|e| Error::Skip(format!("no second kernel to be had: {}", chain(&e))))?;
    let arguments = arguments.map(str::to_owned).to_vec();
    let ran = machine.run(Plan { arguments, file: None, limit: LIMIT, show: Show::Nothing })?;
    ensure!(ran.code == Some(0), "code {:?}: {}{}", ran.code, ran.stderr, ran.stdout);
    Ok((machine, ran))
}

fn with_limits(context: &Context) -> Result<()> {
    let (machine, ran) = run(["test", TEST])?;
    // A skipped test would not be a failure there.
    let passed = ran.stdout.lines().find(|line| line.starts_with("ok ") && line.contains(TEST));
    let passed =
        passed.ok_or_else(|| Error::Check(format!("{TEST} did not run: {}", ran.stdout)))?;
    context.remark(format!("Linux {}: {passed}", machine.release()));
    Ok(())
}

fn demo(context: &Context) -> Result<()> {
    let (machine, ran) = run(["demo", "--json"])?;
    let seen: Seen = serde_json::from_str(&ran.stdout)
        .map_err(|e| Error::Check(format!("{e} in the demo's {:?}", ran.stdout)))?;
    let (tunnel, queue) = (&seen.migration.tunnel, &seen.migration.queue);
    ensure!(
        (tunnel.as_str(), queue.as_str()) == ("wireguard", "native"),
        "tunnel {tunnel}, queue {queue}"
    );
    ensure!(seen.udp.lost == 0, "datagrams were lost: {:?}", seen.udp);
    context.remark(format!(
        "Linux {}, tunnel {tunnel}, queue {queue}, {} and {} messages",
        machine.release(),
        seen.tcp.received,
        seen.udp.received
    ));
    Ok(())
}
