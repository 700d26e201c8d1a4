//! The injection points of a migration, and the means to stop a migration at one.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::breakpoint::Breakpoint;
use super::observation::{dump_has_arrived, has_record, importing_podman, interrupted_cgroup};
use crate::error::{Context, Error, Result};
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::lab::Lab;

/// The longest time from the start of a migration to any injection point.
const LIMIT: Duration = Duration::from_secs(40);
/// The time between two checks.
const POLL_INTERVAL: Duration = Duration::from_micros(200);
/// The time from the start of a step until the fault, in steps that last several times as long.
const INTO_STEP: Duration = Duration::from_millis(15);
/// The time until agent-client has connected to a server that does not answer.
const CONNECT_TIME: Duration = Duration::from_millis(150);
/// The TCP port of agent-server.
const PORT: u16 = 7472;

/// How far a migration has come when the fault is injected, in the order of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum InjectionPoint {
    /// The source has connected and waits for the destination's first message.
    Connect,
    /// Both hosts check for reasons to refuse the migration.
    Preflight,
    /// The agents set up the tunnel.
    Tunnel,
    /// The source sends files while the container runs.
    Files,
    /// The source sends memory while the container runs.
    Rounds,
    /// podman on the destination imports the container.
    Stage,
    /// The container is staged on the destination, and the agents try the paths of its flows.
    Staged,
    /// The journal has the interruption record, and the source begins to hold packets.
    Hold,
    /// The container's tasks are frozen.
    Freeze,
    /// The container is frozen and cut off, and its dump is about to begin.
    Dump,
    /// Images and flows are at the destination, and the restore is about to begin.
    Restore,
    /// The copy is restored and isolated, and the source does not know yet.
    Prepared,
    /// The commit record is on disk, and the destination has not received the decision.
    Commit,
    /// The copy is active, and the source has not received the acknowledgement.
    Active,
    /// podman on the destination takes over the container.
    HandOver,
    /// The copy runs, and pages of its memory are still at the source alone.
    Outstanding,
    /// The source removes the original.
    Removal,
}

impl InjectionPoint {
    /// The injection points of every migration.
    pub const ALL: [Self; 15] = [
        Self::Connect,
        Self::Preflight,
        Self::Tunnel,
        Self::Files,
        Self::Stage,
        Self::Staged,
        Self::Hold,
        Self::Freeze,
        Self::Dump,
        Self::Restore,
        Self::Prepared,
        Self::Commit,
        Self::Active,
        Self::HandOver,
        Self::Removal,
    ];

    /// Returns the name, which is the first part of a cell's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Preflight => "preflight",
            Self::Tunnel => "tunnel",
            Self::Stage => "stage",
            Self::Files => "files",
            Self::Rounds => "rounds",
            Self::Staged => "staged",
            Self::Hold => "hold",
            Self::Freeze => "freeze",
            Self::Dump => "dump",
            Self::Restore => "restore",
            Self::Prepared => "prepared",
            Self::Commit => "commit",
            Self::Active => "active",
            Self::HandOver => "hand-over",
            Self::Outstanding => "outstanding",
            Self::Removal => "removal",
        }
    }
}

/// A migration on its way to an injection point.
pub(super) struct Approach<'a> {
    lab: &'a Lab,
    point: InjectionPoint,
    /// The host that drops the other agent's packets.
    deaf: Option<&'a Host>,
    breakpoint: Option<(Breakpoint, &'a Host)>,
}

impl<'a> Approach<'a> {
    /// Prepares the hosts before the migration starts.
    pub(super) fn prepare(lab: &'a Lab, point: InjectionPoint) -> Result<Self> {
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        let breakpoint = match point {
            InjectionPoint::Dump => Some((Breakpoint::BeforeDump, a)),
            InjectionPoint::Restore => Some((Breakpoint::BeforeRestore, b)),
            InjectionPoint::Prepared | InjectionPoint::Commit | InjectionPoint::Active => {
                Some((Breakpoint::AfterRestore, b))
            }
            _ => None,
        };
        if let Some((breakpoint, host)) = breakpoint {
            breakpoint.set(host)?;
        }
        if point == InjectionPoint::Connect {
            signal_server(lab, Signal::SIGSTOP)?;
        }
        Ok(Self { lab, point, deaf: None, breakpoint })
    }

    /// Waits until the migration has come to the injection point.
    pub(super) fn reach(&mut self, client: &mut HostProcess) -> Result<()> {
        let (a, b) = (self.lab.host("a")?, self.lab.host("b")?);
        let says = |client: &HostProcess, step: &str| {
            client.stderr().lines().any(|line| line.trim_start().starts_with(step))
        };
        if let Some((breakpoint, host)) = self.breakpoint {
            self.until(client, |_| breakpoint.is_hit(host))?;
        }
        match self.point {
            InjectionPoint::Connect => std::thread::sleep(CONNECT_TIME),
            InjectionPoint::Preflight => {
                self.until(client, |client| says(client, "connect"))?;
                std::thread::sleep(INTO_STEP);
            }
            InjectionPoint::Tunnel => self.until(client, |client| says(client, "preflight"))?,
            InjectionPoint::Stage => {
                // podman starts before this step and waits for the container that it is to import.
                self.until(client, |client| {
                    says(client, "files") && importing_podman(b).is_some()
                })?;
                std::thread::sleep(INTO_STEP);
            }
            InjectionPoint::Files => self.until(client, |client| says(client, "tunnel"))?,
            InjectionPoint::Rounds => {
                self.until(client, |client| says(client, "files"))?;
                std::thread::sleep(INTO_STEP);
            }
            InjectionPoint::Staged => self.until(client, |client| says(client, "stage"))?,
            InjectionPoint::Hold => self.until(client, |_| has_record(a, "interruption"))?,
            // The agents start the runtimes before the interruption, so a breakpoint that is hit does not show
            // that the container is frozen.
            InjectionPoint::Freeze | InjectionPoint::Dump => {
                self.until(client, |_| has_record(a, "interruption"))?;
                let events = interrupted_cgroup(a)?.join("cgroup.events");
                self.until(client, |_| {
                    fs::read_to_string(&events).is_ok_and(|text| text.contains("frozen 1"))
                })?;
            }
            InjectionPoint::Restore => {
                self.until(client, |_| dump_has_arrived(b))?;
                std::thread::sleep(INTO_STEP);
            }
            InjectionPoint::Prepared => {}
            InjectionPoint::Commit => self.commit(client)?,
            InjectionPoint::Active => {
                self.commit(client)?;
                // The destination receives the decision, and the source does not receive the answer.
                drop_agent_packets(a, b, "sport")?;
                accept_agent_packets(b)?;
                self.deaf = Some(a);
                self.until(client, |_| has_record(b, "activated"))?;
            }
            InjectionPoint::HandOver => self.until(client, |_| has_record(b, "activated"))?,
            InjectionPoint::Outstanding => {
                self.until(client, |_| has_record(a, "pages-outstanding"))?;
            }
            InjectionPoint::Removal => self.until(client, |_| has_record(a, "acknowledged"))?,
        }
        Ok(())
    }

    /// Lets the source learn that the copy is prepared, and keeps the decision from the destination.
    fn commit(&mut self, client: &mut HostProcess) -> Result<()> {
        let (a, b) = (self.lab.host("a")?, self.lab.host("b")?);
        drop_agent_packets(b, a, "dport")?;
        self.deaf = Some(b);
        if let Some((breakpoint, host)) = self.breakpoint.take() {
            breakpoint.release(host)?;
        }
        self.until(client, |_| has_record(a, "committed"))
    }

    /// Releases everything that this value has stopped.
    pub(super) fn release(&mut self) -> Result<()> {
        if let Some((breakpoint, host)) = self.breakpoint.take() {
            breakpoint.release(host)?;
        }
        if let Some(host) = self.deaf.take() {
            accept_agent_packets(host)?;
        }
        if self.point == InjectionPoint::Connect {
            signal_server(self.lab, Signal::SIGCONT)?;
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
                    self.point.name(),
                    client.stderr()
                )));
            }
            if Instant::now() >= end {
                return Err(Error::Check(format!(
                    "the migration did not come to {}: {}",
                    self.point.name(),
                    client.stderr()
                )));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }
}

/// Sends SIGSTOP or SIGCONT to the agent on the destination. An agent that has been killed is not an error.
pub(super) fn signal_server(lab: &Lab, signal: Signal) -> Result<()> {
    let Some(pid) = lab.server_pid("b") else { return Ok(()) };
    match kill(Pid::from_raw(pid), signal) {
        Err(nix::errno::Errno::ESRCH) => Ok(()),
        other => other.context(|| format!("sending {signal} to agent-server")),
    }
}

/// Makes a host drop the packets of another host's agent: those of a server (`sport`) or those to this host's own
/// server (`dport`).
pub(crate) fn drop_agent_packets(host: &Host, other: &Host, direction: &str) -> Result<()> {
    let rules = format!(
        "table netdev lab {{\n chain in {{\n type filter hook ingress device eth0 priority 0;\n \
         ip saddr {} tcp {direction} {PORT} drop\n }}\n}}\n",
        other.address()
    );
    host.command("nft").args(["-f", "-"]).input(rules).run().map(drop)
}

/// Removes the rules of [`drop_agent_packets`].
pub(crate) fn accept_agent_packets(host: &Host) -> Result<()> {
    // A host that was restarted meanwhile has no such rules.
    host.run(["nft", "destroy", "table", "netdev", "lab"]).map(drop)
}
