//! The same on a stock Debian kernel, in a virtual machine.

use std::time::Duration;

use serde::Deserialize;

use crate::ensure;
use crate::error::{Error, Result, chain};
use crate::lab::MigrationReport;
use crate::runner::{Case, Context};
use crate::traffic::report::EchoReport;
use crate::vm::{Machine, Plan, Show};

/// The area of tests that need a virtual machine.
pub const VM: &str = "vm";

/// How long the virtual machine may take for the demo.
const LIMIT: Duration = Duration::from_secs(480);

pub(super) const CASES: &[Case] = &[Case::new("vm-demo-on-a-stock-kernel", &[VM], demo)
    .limit(LIMIT.as_secs() + 600)
    .in_company()];

/// What the demo prints as JSON.
#[derive(Deserialize)]
struct Seen {
    #[serde(flatten)]
    migration: MigrationReport,
    tcp: EchoReport,
    udp: EchoReport,
}

fn demo(context: &Context) -> Result<()> {
    let machine = Machine::prepare()
        .map_err(|e| Error::Skip(format!("no second kernel to be had: {}", chain(&e))))?;
    let arguments = ["demo", "--json"].map(str::to_owned).to_vec();
    let ran = machine.run(Plan { arguments, file: None, limit: LIMIT, show: Show::Nothing })?;
    ensure!(ran.code == Some(0), "code {:?}: {}{}", ran.code, ran.stderr, ran.stdout);
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
