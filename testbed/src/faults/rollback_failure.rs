//! Makes a step of a rollback fail from outside the agents, and repairs it afterwards.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::fault::RollbackStep;
use super::observation::{interruption_record, journals};
use super::outcome::Problem;
use super::residue;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::subprocess;

/// The longest time until a migration fails.
const FAILS: Duration = Duration::from_secs(90);
/// The option of prlimit(1) that leaves a process its three standard descriptors and no other.
const NO_MORE: &str = "--nofile=3:3";

/// What was broken and has to be repaired.
#[derive(Debug)]
pub(super) enum Broken {
    /// The cgroup file that thaws the container is read-only.
    Freezer(String),
    /// The container's port was removed from a bridge. The fields name both.
    Port(String, String),
    /// Only the agent was impaired.
    Agent,
}

/// Breaks a step of the rollback on the source of a migration that has interrupted its container.
pub(super) fn break_part(
    host: &Host,
    part: RollbackStep,
    client: &mut HostProcess,
) -> Result<Broken> {
    let record = interruption_record(host)?;
    let word = |name: &str| {
        let word = record[name].as_str().map(str::to_owned);
        word.ok_or_else(|| Error::Check(format!("the journal names no {name}: {record}")))
    };
    match part {
        RollbackStep::Thaw => {
            let file = format!("{}/cgroup.freeze", word("cgroup")?);
            host.run(["mount", "--bind", &file, &file])?;
            host.run(["mount", "-o", "remount,bind,ro", &file])?;
            // The agent has opened the file before. The guardian that rolls back in its place has not.
            client.signal(Signal::SIGKILL)?;
            Ok(Broken::Freezer(file))
        }
        RollbackStep::Reconnect => {
            let port = word("port")?;
            let bridge = host.run(["readlink", &format!("/sys/class/net/{port}/master")])?;
            let bridge = bridge.rsplit('/').next().unwrap_or_default().to_owned();
            host.run(["ip", "link", "set", &port, "nomaster"])?;
            Ok(Broken::Port(port, bridge))
        }
        RollbackStep::Everything => {
            let mut prlimit = Command::new("prlimit");
            prlimit.args(["--pid", &client.pid().to_string(), NO_MORE]);
            subprocess::run(&mut prlimit, subprocess::LIMIT)?;
            Ok(Broken::Agent)
        }
    }
}

/// Waits until the migration has failed, repairs what was broken, and recovers by `agent-client recover`. Returns a
/// problem if no journal was left for the recovery.
pub(super) fn mend(
    host: &Host,
    broken: &Broken,
    client: &mut HostProcess,
) -> Result<Vec<(Problem, String)>> {
    client.await_end(FAILS)?;
    // The guardian of a killed agent has failed, too, when it has ended.
    let end = Instant::now() + FAILS;
    while Instant::now() < end && !residue::running_programs(host)?.is_empty() {
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut problems = Vec::new();
    let has_journal = journals(host).next().is_some();
    match broken {
        Broken::Freezer(file) => {
            host.run(["umount", file])?;
        }
        Broken::Port(port, bridge) => {
            host.run(["ip", "link", "set", port, "master", bridge])?;
        }
        Broken::Agent => {}
    }
    let by_guardian = matches!(broken, Broken::Agent);
    if !by_guardian && !has_journal {
        let text = "going back has failed, and no journal is kept".to_owned();
        problems.push((Problem::Leftover, text));
    }
    host.command("agent-client").args(["recover"]).limit(FAILS).output()?;
    Ok(problems)
}
