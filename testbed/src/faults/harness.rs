//! A lab that is prepared for fault injection and runs one cell of the matrix after another.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::container_state::{State, state};
use super::doubt::{self, in_doubt, is_lost, roll_back};
use super::fault::Fault;
use super::forget::forget;
use super::injection_point::{Approach, InjectionPoint};
use super::interference::{Interference, THIRD};
use super::matrix::{Cell, Memory, Side};
use super::observation::journals;
use super::outcome::{Outcome, RunsOn};
use super::rollback_failure;
use super::{NAME, breakpoint, injection, residue};
use crate::cases::without_own_state;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::lab::Lab;
use crate::snapshot::Snapshot;

/// The rate of each client in messages a second.
const RATE: f64 = 200.0;
/// The longest time until a fresh container answers.
const START_LIMIT: Duration = Duration::from_secs(20);
/// The longest time until agents settle without an operator. The slowest case is a source that asks a destination
/// which it cannot reach.
const SETTLE_LIMIT: Duration = Duration::from_secs(150);
/// The time that clients go on after everything has settled.
const TALK_AFTER: Duration = Duration::from_millis(1200);
/// The longest time until a host is as before, after everything has settled.
const RETURN_LIMIT: Duration = Duration::from_secs(20);
/// The time between two checks.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The size in bytes of a file that makes the first pass over the files last.
const FILE: usize = 48 << 20;

/// The memory in mebibytes of a container that has much.
const MEMORY: &str = "192";
/// A rate at which so much memory takes some time to go over.
const SLOWLY: &str = "8MB";
/// The time in seconds without its source after which a copy is ended that lacks pages: longer than any outage of the link that
/// is healed.
const MEMORY_WAIT: &str = "40";

/// A lab that can run any cell. Use another one after an outcome with problems.
#[derive(Debug)]
pub struct Harness {
    lab: Arc<Lab>,
}

/// The state of a host before a migration.
struct Before<'a> {
    host: &'a Host,
    snapshot: Snapshot,
    seen: BTreeSet<String>,
}

impl Harness {
    /// Starts a lab and prepares it.
    ///
    /// # Errors
    /// The lab did not start, or a host could not be prepared.
    pub fn start() -> Result<Self> {
        Self::of(Arc::new(Lab::start(&["a", "b", "c", THIRD])?))
    }

    /// Prepares a fresh lab with the hosts `a`, `b` and `c`.
    ///
    /// # Errors
    /// A host could not be prepared.
    pub fn of(lab: Arc<Lab>) -> Result<Self> {
        let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
        for host in [a, b] {
            breakpoint::install(host)?;
            // The first container on a host leaves an empty table of netavark's.
            host.podman(["run", "--rm", "probe:1", "true"])?;
        }
        // TCP doubles the time between retransmissions. After an outage of half a minute a client would be silent
        // for another one, which says nothing about the product.
        for (name, value) in tcp_retries() {
            c.set_parameter(&format!("net/ipv4/{name}"), value)?;
        }
        lab.serve_with("b", &["--memory-wait", MEMORY_WAIT])?;
        lab.serve("b")?;
        Ok(Self { lab })
    }

    /// Returns the lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Runs a cell once.
    ///
    /// # Errors
    /// The migration did not come to the injection point, the fault could not be injected, or the hosts did not
    /// settle.
    pub fn run(&self, cell: Cell) -> Result<Outcome> {
        let lab = &self.lab;
        let (a, c) = (lab.host("a")?, lab.host("c")?);
        let (id, first) = start(a, c, cell)?;
        let mut interference = Interference::set_up(lab, cell)?;
        injection::prepare(lab, cell.point, cell.fault)?;
        let server = a.port(7000);
        let wire = c.probe().wire(server)?;
        let tcp = c.probe().tcp_echo(server).rate(RATE).start()?;
        let udp = c.probe().udp_echo(server).rate(RATE).start()?;
        let before = [Side::Source, Side::Destination]
            .map(|side| Before::take(lab.host(side.host())?))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;

        let mut approach = Approach::prepare(lab, cell.point)?;
        let mut words = vec!["migrate", NAME, "b"];
        if let Some(mode) = cell.memory.mode() {
            words.extend(["--memory", mode]);
        }
        if cell.memory == Memory::PostCopy {
            words.extend(["--bandwidth", SLOWLY, "--compress", "none"]);
        }
        if cell.fault.lengthens_interruption() {
            words.extend(["--max-interruption", "120"]);
        }
        let mut client = a.command("agent-client").args(words).spawn()?;
        interference.begin(lab, cell.fault)?;
        approach.reach(&mut client)?;
        injection::inject(lab, cell.fault, &mut client, &first)?;
        interference.inject(lab, cell.fault)?;
        let broken = match cell.fault {
            Fault::RollbackFails(part) => Some(rollback_failure::break_part(a, part, &mut client)?),
            _ => None,
        };
        approach.release()?;
        injection::heal(lab, cell.fault, &mut client)?;
        let mut problems = match &broken {
            Some(broken) => rollback_failure::mend(a, broken, &mut client)?,
            None => Vec::new(),
        };
        let ordered = self.settle(cell, &id, &mut client, &mut interference)?;

        // On the destination the container's end of a connection retransmits as its kernel is configured.
        std::thread::sleep(match cell.fault {
            _ if ordered && cell.point != InjectionPoint::Commit => TCP_RETRY_LIMIT,
            // In this time TCP has doubled the time between its attempts at most once more.
            Fault::Cut(Some(seconds)) => TALK_AFTER + Duration::from_secs(seconds + 1),
            _ => TALK_AFTER,
        });
        let stopped = now_ns();
        let tcp = tcp.stop_after(Duration::ZERO)?;
        let udp = udp.stop_after(Duration::ZERO)?;
        let wire = wire.stop()?;
        let runs_on = self.runs_on(&id)?;
        let memory_bad = match cell.memory {
            Memory::Little => None,
            Memory::PreCopy | Memory::PostCopy => self.changed_memory(runs_on)?,
        };
        let output = client.wait(Duration::ZERO)?;
        problems.extend(interference.judge(lab, cell.fault, output.status.code())?);
        let outcome = Outcome {
            exit: output.status.code(),
            said: output.error_text(),
            runs_on,
            ordered,
            wire,
            stopped_ns: stopped,
            tcp,
            udp,
            rate: RATE,
            interference: problems,
            memory_bad,
            leftovers: left(&before, runs_on, cell.fault.is_comparable())?,
        };
        self.clear()?;
        Ok(outcome)
    }

    /// Waits until no agent works on the migration. Acts as the operator where the product asks for one, and returns
    /// whether it did.
    fn settle(
        &self,
        cell: Cell,
        id: &str,
        client: &mut HostProcess,
        interference: &mut Interference,
    ) -> Result<bool> {
        let end = Instant::now() + SETTLE_LIMIT;
        let mut ordered = false;
        loop {
            let a = self.lab.host("a")?;
            let quiet = !client.is_running() && interference.is_over() && self.is_settled()?;
            if quiet {
                if cell.is_permanent_cut() {
                    self.lab.set_cable("b", true)?;
                }
                return Ok(ordered);
            }
            if cell.is_permanent_cut() && !ordered && !client.is_running() && in_doubt(a, client) {
                ordered = true;
                if cell.point == InjectionPoint::Commit {
                    roll_back(a)?;
                } else {
                    // The copy is the container now, and the operator repairs the link.
                    self.lab.set_cable("b", true)?;
                }
            }
            if cell.may_lose_both() && !ordered && !client.is_running() {
                ordered = doubt::give_up_if_lost(a)?;
            } else if cell.may_lose_an_active_copy() && !ordered && is_lost(a, client) {
                ordered = true;
                roll_back(a)?;
            }
            if Instant::now() >= end {
                let journals: Vec<String> = self.movers().flat_map(journals).collect();
                return Err(Error::Check(format!(
                    "not settled after {} s: on the source {:?}, on the destination {:?}; {}\n{}{}",
                    SETTLE_LIMIT.as_secs(),
                    state(self.lab.host("a")?, id),
                    state(self.lab.host("b")?, id),
                    journals.join("\n"),
                    client.stderr(),
                    self.lab.diagnosis()
                )));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Returns whether no journal is open and no program of a migration runs.
    fn is_settled(&self) -> Result<bool> {
        for host in self.movers() {
            if journals(host).next().is_some() {
                return Ok(false);
            }
            if !residue::running_programs(host)?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the hosts between which containers move: all but that of the clients.
    fn movers(&self) -> impl Iterator<Item = &Host> {
        self.lab.hosts().iter().filter(|host| host.name() != "c")
    }

    fn runs_on(&self, id: &str) -> Result<RunsOn> {
        let runs = |side: Side| -> Result<bool> {
            Ok(state(self.lab.host(side.host())?, id) == State::Running)
        };
        let third = self.lab.host(THIRD).is_ok_and(|host| state(host, id) == State::Running);
        Ok(match (runs(Side::Source)?, runs(Side::Destination)?, third) {
            (true, false, false) => RunsOn::Source,
            (false, true, false) => RunsOn::Destination,
            (false, false, true) => RunsOn::Third,
            (false, false, false) => RunsOn::Neither,
            _ => RunsOn::Both,
        })
    }

    /// Returns how many bytes of the container's memory have changed, if it runs on one of the two hosts.
    fn changed_memory(&self, runs_on: RunsOn) -> Result<Option<u64>> {
        let host = match runs_on {
            RunsOn::Source => self.lab.host(Side::Source.host())?,
            RunsOn::Destination => self.lab.host(Side::Destination.host())?,
            _ => return Ok(None),
        };
        Ok(Some(self.lab.host("c")?.probe().stats(host.port(7001))?.memory_bad))
    }

    /// Prepares the hosts for the next cell.
    fn clear(&self) -> Result<()> {
        for host in self.movers() {
            breakpoint::clear(host)?;
            host.podman(["rm", "--all", "--force", "--time", "0"])?;
            forget(host)?;
        }
        Ok(())
    }
}

/// The longest time until both ends of a connection retransmit after a long outage: TCP waits for at most two minutes
/// (`TCP_RTO_MAX`, `include/net/tcp.h`).
const TCP_RETRY_LIMIT: Duration = Duration::from_secs(125);
/// Makes TCP retransmit at least once a second (Linux 6.15, milliseconds), and never give up (ip-sysctl.rst).
const TCP_RETRIES: [(&str, &str); 2] = [("tcp_rto_max_ms", "1000"), ("tcp_retries2", "255")];

/// Returns those of [`TCP_RETRIES`] that this kernel has.
fn tcp_retries() -> impl Iterator<Item = (&'static str, &'static str)> {
    let parameters = Path::new("/proc/sys/net/ipv4");
    TCP_RETRIES.into_iter().filter(|(name, _)| parameters.join(name).exists())
}

/// Starts the container that the cell needs. Returns its ID and its first process ID.
fn start(host: &Host, client: &Host, cell: Cell) -> Result<(String, String)> {
    let mut words = vec!["run", "--detach", "--name", NAME, "--publish", "7000:7000/tcp"];
    words.extend(["--publish", "7000:7000/udp"]);
    if cell.memory != Memory::Little {
        words.extend(["--publish", "7001:7001/tcp"]);
    }
    // The container's end of a connection gets the same settings.
    let sysctls: Vec<String> =
        tcp_retries().map(|(name, value)| format!("--sysctl=net.ipv4.{name}={value}")).collect();
    words.extend(sysctls.iter().map(String::as_str));
    let ending =
        format!("netmig-probe serve & while [ ! -e {} ]; do sleep 0.05; done", injection::END);
    // A copy that cannot be whole would be started anew by such a policy, beside an original that a person sets going again.
    if matches!(cell.fault, Fault::Reboot(_)) && cell.memory != Memory::PostCopy {
        words.push("--restart=always");
    }
    words.push("probe:1");
    if cell.fault == Fault::ContainerExits {
        words.extend(["sh", "-c", &ending]);
    } else {
        words.extend(["netmig-probe", "serve"]);
        if cell.memory != Memory::Little {
            words.extend(["--memory", MEMORY]);
        }
    }
    let id = host.podman(words)?;
    client.probe().wait_for_echo(host.port(7000), START_LIMIT)?;
    let first = host.podman(["inspect", "--format", "{{.State.Pid}}", NAME])?;
    if cell.point == InjectionPoint::Files {
        host.write(format!("/proc/{first}/root/tmp/file"), vec![1; FILE])?;
    }
    Ok((id, first))
}

impl<'a> Before<'a> {
    fn take(host: &'a Host) -> Result<Self> {
        Ok(Self { host, snapshot: host.snapshot()?, seen: residue::list(host)? })
    }
}

/// Returns what the hosts have now, had not before, and should not have.
fn left(before: &[Before<'_>], runs_on: RunsOn, is_comparable: bool) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for Before { host, snapshot, seen } in before {
        let now = residue::list(host)?;
        all.extend(now.difference(seen).cloned());
        if runs_on == RunsOn::Source && is_comparable {
            // Nothing has moved, so the host must be as before in every respect.
            let view = |snapshot: Snapshot| {
                ["recover.log", "keeper.log"]
                    .iter()
                    .fold(without_own_state(snapshot), |snapshot, name| {
                        snapshot.without_file(&format!("/run/netmig/{name}"))
                    })
            };
            if let Err(error) = snapshot.await_return(host, RETURN_LIMIT, view) {
                all.push(error.to_string());
            }
        }
    }
    Ok(all)
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}
