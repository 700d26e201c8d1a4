//! Makes a part of going back fail, from outside of the agents, and sees to it afterwards.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::fault::Part;
use super::leftovers;
use super::moment::{interruption, journals};
use super::outcome::Problem;
use crate::command;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::process::HostProcess;

/// How long a migration may take to fail.
const FAILS: Duration = Duration::from_secs(90);
/// Descriptors that every program has: nothing more can be opened.
const NO_MORE: &str = "--nofile=3:3";

/// What was broken, to be mended.
#[derive(Debug)]
pub(super) enum Broken {
    /// The file by which the container is thawed.
    Freezer(String),
    /// The container's port and the bridge that it was taken from.
    Port(String, String),
    /// The agent alone.
    Agent,
}

/// Breaks a part on the source of a migration that has interrupted its container.
pub(super) fn break_part(host: &Host, part: Part, client: &mut HostProcess) -> Result<Broken> {
    let record = interruption(host)?;
    let word = |name: &str| {
        let word = record[name].as_str().map(str::to_owned);
        word.ok_or_else(|| Error::Check(format!("the journal names no {name}: {record}")))
    };
    match part {
        Part::Thaw => {
            let file = format!("{}/cgroup.freeze", word("cgroup")?);
            host.run(["mount", "--bind", &file, &file])?;
            host.run(["mount", "-o", "remount,bind,ro", &file])?;
            // The agent has the file open since before; whoever goes back in its place has not.
            client.signal(Signal::SIGKILL)?;
            Ok(Broken::Freezer(file))
        }
        Part::Reconnect => {
            let port = word("port")?;
            let bridge = host.run(["readlink", &format!("/sys/class/net/{port}/master")])?;
            let bridge = bridge.rsplit('/').next().unwrap_or_default().to_owned();
            host.run(["ip", "link", "set", &port, "nomaster"])?;
            Ok(Broken::Port(port, bridge))
        }
        Part::Everything => {
            let mut prlimit = Command::new("prlimit");
            prlimit.args(["--pid", &client.pid().to_string(), NO_MORE]);
            command::run(&mut prlimit, command::LIMIT)?;
            Ok(Broken::Agent)
        }
    }
}

/// Waits until the migration has failed, mends what was broken, and has the rest done by hand. Tells if
/// nothing was left by which that could be done.
pub(super) fn mend(
    host: &Host,
    broken: &Broken,
    client: &mut HostProcess,
) -> Result<Vec<(Problem, String)>> {
    client.await_end(FAILS)?;
    // The guardian of one that was killed has failed, too, once it is gone.
    let end = Instant::now() + FAILS;
    while Instant::now() < end && !leftovers::passing(host)?.is_empty() {
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
