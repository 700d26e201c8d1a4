//! Lets a migration run up to a moment, and no further where it can be made to wait.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cell::Moment;
use super::gate::Gate;
use crate::error::{Context, Error, Result};
use crate::host::Host;
use crate::host::process::HostProcess;
use crate::lab::Lab;

/// How long a migration may take to come to any moment.
const LIMIT: Duration = Duration::from_secs(40);
/// Between two looks.
const GLANCE: Duration = Duration::from_micros(200);
/// Into a step that lasts several times as long.
const INTO: Duration = Duration::from_millis(15);
/// Until a connection stands that nobody answers.
const DIALLED: Duration = Duration::from_millis(150);

/// The journals of migrations under way.
const JOURNALS: &str = "/var/lib/netmig/journal";
/// The port of agent-server.
const PORT: u16 = 7472;

/// A migration that is watched.
pub(super) struct Watch<'a> {
    lab: &'a Lab,
    moment: Moment,
    /// Where the agents' packets are dropped.
    deaf: Option<&'a Host>,
    gate: Option<(Gate, &'a Host)>,
}

impl<'a> Watch<'a> {
    /// Prepares the hosts for a migration that has not begun.
    pub(super) fn set_up(lab: &'a Lab, moment: Moment) -> Result<Self> {
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        let gate = match moment {
            Moment::Dump => Some((Gate::Dump, a)),
            Moment::Restore => Some((Gate::Restore, b)),
            Moment::Prepared | Moment::Commit | Moment::Active => Some((Gate::Restored, b)),
            _ => None,
        };
        if let Some((gate, host)) = gate {
            gate.close(host)?;
        }
        if moment == Moment::Connect {
            pause_server(lab, Signal::SIGSTOP)?;
        }
        Ok(Self { lab, moment, deaf: None, gate })
    }

    /// Waits for the moment.
    pub(super) fn reach(&mut self, client: &mut HostProcess) -> Result<()> {
        let (a, b) = (self.lab.host("a")?, self.lab.host("b")?);
        let says = |client: &HostProcess, step: &str| {
            client.stderr().lines().any(|line| line.trim_start().starts_with(step))
        };
        if let Some((gate, host)) = self.gate {
            self.until(client, |_| gate.is_reached(host))?;
        }
        match self.moment {
            Moment::Connect => std::thread::sleep(DIALLED),
            Moment::Preflight => {
                self.until(client, |client| says(client, "connect"))?;
                std::thread::sleep(INTO);
            }
            Moment::Tunnel => self.until(client, |client| says(client, "preflight"))?,
            Moment::Stage => {
                // podman is there before, and waits for what it is to import.
                self.until(client, |client| says(client, "tunnel") && importing(b).is_some())?;
                std::thread::sleep(INTO);
            }
            Moment::Files => self.until(client, |client| says(client, "stage"))?,
            Moment::Hold => self.until(client, |_| noted(a, "interruption"))?,
            // The runtimes are started before the interruption, so that one at its gate says little.
            Moment::Freeze | Moment::Dump => {
                self.until(client, |_| noted(a, "interruption"))?;
                let events = cgroup(a)?.join("cgroup.events");
                self.until(client, |_| {
                    fs::read_to_string(&events).is_ok_and(|text| text.contains("frozen 1"))
                })?;
            }
            Moment::Restore => {
                self.until(client, |_| dumped(b))?;
                std::thread::sleep(INTO);
            }
            Moment::Prepared => {}
            Moment::Commit => self.commit(client)?,
            Moment::Active => {
                self.commit(client)?;
                // The order comes through, the answer does not.
                deafen(a, b, "sport")?;
                hear(b)?;
                self.deaf = Some(a);
                self.until(client, |_| noted(b, "activated"))?;
            }
            Moment::HandOver => self.until(client, |_| noted(b, "activated"))?,
            Moment::Removal => self.until(client, |_| noted(a, "acknowledged"))?,
        }
        Ok(())
    }

    /// Lets the source learn that the copy is prepared, and the destination learn nothing.
    fn commit(&mut self, client: &mut HostProcess) -> Result<()> {
        let (a, b) = (self.lab.host("a")?, self.lab.host("b")?);
        deafen(b, a, "dport")?;
        self.deaf = Some(b);
        if let Some((gate, host)) = self.gate.take() {
            gate.open(host)?;
        }
        self.until(client, |_| noted(a, "committed"))
    }

    /// Lets everything go on that waits for us.
    pub(super) fn release(&mut self) -> Result<()> {
        if let Some((gate, host)) = self.gate.take() {
            gate.open(host)?;
        }
        if let Some(host) = self.deaf.take() {
            hear(host)?;
        }
        if self.moment == Moment::Connect {
            pause_server(self.lab, Signal::SIGCONT)?;
        }
        Ok(())
    }

    fn until(
        &self,
        client: &mut HostProcess,
        reached: impl Fn(&HostProcess) -> bool,
    ) -> Result<()> {
        let end = Instant::now() + LIMIT;
        while !reached(client) {
            let running = client.is_running();
            if !running && !reached(client) {
                return Err(Error::Check(format!(
                    "the migration ended before {}: {}",
                    self.moment.name(),
                    client.stderr()
                )));
            }
            if Instant::now() >= end {
                return Err(Error::Check(format!(
                    "the migration did not come to {}: {}",
                    self.moment.name(),
                    client.stderr()
                )));
            }
            std::thread::sleep(GLANCE);
        }
        Ok(())
    }
}

/// Stops the agent on the destination, or lets it go on. One that was killed is fine.
pub(super) fn pause_server(lab: &Lab, signal: Signal) -> Result<()> {
    let Some(pid) = lab.server_pid("b") else { return Ok(()) };
    match kill(Pid::from_raw(pid), signal) {
        Err(nix::errno::Errno::ESRCH) => Ok(()),
        other => other.context(|| format!("sending {signal} to agent-server")),
    }
}

/// Whether any journal of a host has a record of that name.
pub(crate) fn noted(host: &Host, record: &str) -> bool {
    let wanted = format!("\"{record}\"");
    journals(host).any(|text| text.contains(&wanted))
}

/// The texts of a host's journals of migrations that have not ended.
pub(crate) fn journals(host: &Host) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(host.path(JOURNALS)).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_to_string(entry.path()).ok())
}

/// The cgroup of the container that is moved, by the journal of its source.
fn cgroup(host: &Host) -> Result<PathBuf> {
    let record = interruption(host)?;
    let path = record["cgroup"].as_str().map(|path| host.path(path));
    path.ok_or_else(|| Error::Check("the journal names no cgroup".to_owned()))
}

/// The record of a source's journal that tells of the interrupted container.
pub(super) fn interruption(host: &Host) -> Result<serde_json::Value> {
    journals(host)
        .find_map(|text| {
            let line = text.lines().find(|line| line.contains("\"interruption\""))?;
            serde_json::from_str(line).ok()
        })
        .ok_or_else(|| Error::Check("no journal tells of an interruption".to_owned()))
}

/// Whether the last image that CRIU writes has arrived at a host.
fn dumped(host: &Host) -> bool {
    let arrivals = fs::read_dir(host.path("/run/netmig")).into_iter().flatten().flatten();
    arrivals
        .filter_map(|entry| fs::metadata(entry.path().join("images/inventory.img")).ok())
        .any(|image| image.len() > 0)
}

/// The podman that imports a container on a host, as the host numbers it.
pub(super) fn importing(host: &Host) -> Option<i32> {
    fs::read_dir(host.path("/run/netmig")).into_iter().flatten().flatten().find_map(|entry| {
        let text = fs::read_to_string(entry.path().join("stage/podman.pid")).ok()?;
        text.split(' ').next()?.parse().ok()
    })
}

/// Makes a host drop what comes from another one's agent, whose port is that of a server (`sport`) or
/// which talks to this host's (`dport`).
pub(crate) fn deafen(host: &Host, other: &Host, direction: &str) -> Result<()> {
    let rules = format!(
        "table netdev lab {{\n chain in {{\n type filter hook ingress device eth0 priority 0;\n \
         ip saddr {} tcp {direction} {PORT} drop\n }}\n}}\n",
        other.address()
    );
    host.command("nft").args(["-f", "-"]).input(rules).run().map(drop)
}

/// Ends that.
pub(crate) fn hear(host: &Host) -> Result<()> {
    // One that was restarted meanwhile has no rules.
    host.run(["nft", "destroy", "table", "netdev", "lab"]).map(drop)
}
