//! A lab in which one cell after the other is tried.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::beside::{Beside, THIRD};
use super::cell::{Cell, Moment, Side};
use super::container::{State, state};
use super::fault::Fault;
use super::going_back;
use super::moment::{Watch, journals};
use super::outcome::{Outcome, RunsOn};
use super::{NAME, gate, leftovers, strike};
use crate::cases::terminal::Terminal;
use crate::cases::without_own_state;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::process::HostProcess;
use crate::lab::Lab;
use crate::snapshot::Snapshot;

/// Messages a second of each client.
const RATE: f64 = 200.0;
/// How long a fresh container may take to answer.
const ANSWERS: Duration = Duration::from_secs(20);
/// How long agents may take to come to an end that needs nobody's help. The longest is a source
/// that asks a destination which it cannot reach.
const SETTLES: Duration = Duration::from_secs(150);
/// How long clients talk on once all has settled.
const AFTER: Duration = Duration::from_millis(1200);
/// How long a program may take to say something to a person.
const ORDER: Duration = Duration::from_secs(60);
/// How long a host may take to be as it was, once nothing is under way.
const RETURNS: Duration = Duration::from_secs(20);
/// Between two looks.
const GLANCE: Duration = Duration::from_millis(50);
/// Bytes that go over while the container runs, so that it takes a while.
const FILE: usize = 48 << 20;

/// A lab that is fit for any cell. Use another one after an outcome that is not as promised.
#[derive(Debug)]
pub struct Arena {
    lab: Arc<Lab>,
}

/// What a host looked like before.
struct Before<'a> {
    host: &'a Host,
    snapshot: Snapshot,
    seen: BTreeSet<String>,
}

impl Arena {
    /// Starts the lab.
    ///
    /// # Errors
    /// It did not start.
    pub fn start() -> Result<Self> {
        Self::of(Arc::new(Lab::start(&["a", "b", "c", THIRD])?))
    }

    /// Takes over a fresh lab of three hosts.
    ///
    /// # Errors
    /// It could not be prepared.
    pub fn of(lab: Arc<Lab>) -> Result<Self> {
        let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
        for host in [a, b] {
            gate::install(host)?;
            // The first container on a host leaves netavark's empty table there.
            host.podman(["run", "--rm", "probe:1", "true"])?;
        }
        // After an outage of half a minute a far end would be silent for another one, because it
        // tries ever more rarely; how patient it is has nothing to do with us.
        for (name, value) in impatience() {
            c.set_parameter(&format!("net/ipv4/{name}"), value)?;
        }
        lab.serve("b")?;
        Ok(Self { lab })
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Tries a cell once.
    ///
    /// # Errors
    /// The fault could not be brought about, or the hosts did not come to rest.
    pub fn run(&self, cell: Cell) -> Result<Outcome> {
        let lab = &self.lab;
        let (a, c) = (lab.host("a")?, lab.host("c")?);
        let (id, first) = start(a, c, cell)?;
        let mut beside = Beside::set_up(lab, cell)?;
        strike::set_up(lab, cell.moment, cell.fault)?;
        let server = a.port(7000);
        let wire = c.probe().wire(server)?;
        let tcp = c.probe().tcp_echo(server).rate(RATE).start()?;
        let udp = c.probe().udp_echo(server).rate(RATE).start()?;
        let before = [Side::Source, Side::Destination]
            .map(|side| Before::look(lab.host(side.host())?))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;

        let mut watch = Watch::set_up(lab, cell.moment)?;
        let mut words = vec!["migrate", NAME, "b"];
        if cell.fault.takes_time() {
            words.extend(["--max-interruption", "120"]);
        }
        let mut client = a.command("agent-client").args(words).spawn()?;
        beside.begin(lab, cell.fault)?;
        watch.reach(&mut client)?;
        strike::strike(lab, cell.fault, &mut client, &first)?;
        beside.strike(lab, cell.fault)?;
        let broken = match cell.fault {
            Fault::GoingBackFails(part) => Some(going_back::break_part(a, part, &mut client)?),
            _ => None,
        };
        watch.release()?;
        strike::heal(lab, cell.fault, &mut client)?;
        let mut also = match &broken {
            Some(broken) => going_back::mend(a, broken, &mut client)?,
            None => Vec::new(),
        };
        let ordered = self.settle(cell, &id, &mut client, &mut beside)?;

        // The container's end has the patience of its kernel on a host that it came to.
        std::thread::sleep(match cell.fault {
            _ if ordered && cell.moment != Moment::Commit => PATIENT,
            // Until then it has doubled the time between its attempts at most once more.
            Fault::Cut(Some(seconds)) => AFTER + Duration::from_secs(seconds + 1),
            _ => AFTER,
        });
        let stopped = now_ns();
        let tcp = tcp.stop_after(Duration::ZERO)?;
        let udp = udp.stop_after(Duration::ZERO)?;
        let wire = wire.stop()?;
        let runs_on = self.runs_on(&id)?;
        let output = client.wait(Duration::ZERO)?;
        also.extend(beside.judge(lab, cell.fault, output.status.code())?);
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
            beside: also,
            leftovers: left(&before, runs_on, cell.fault.is_comparable())?,
        };
        self.clear()?;
        Ok(outcome)
    }

    /// Waits until nobody is at work any more. A person helps where a person is promised to be
    /// needed; whether that was so is returned.
    fn settle(
        &self,
        cell: Cell,
        id: &str,
        client: &mut HostProcess,
        beside: &mut Beside,
    ) -> Result<bool> {
        let end = Instant::now() + SETTLES;
        let mut ordered = false;
        loop {
            let a = self.lab.host("a")?;
            let quiet = !client.is_running() && beside.is_over() && self.is_settled()?;
            if quiet {
                if cell.is_for_good() {
                    self.lab.set_cable("b", true)?;
                }
                return Ok(ordered);
            }
            if cell.is_for_good() && !ordered && !client.is_running() && in_doubt(a, client) {
                ordered = true;
                if cell.moment == Moment::Commit {
                    roll_back(a)?;
                } else {
                    // The copy is the container; the link is seen to.
                    self.lab.set_cable("b", true)?;
                }
            }
            if cell.may_lose_a_heard_copy() && !ordered && is_lost(a, client) {
                ordered = true;
                roll_back(a)?;
            }
            if Instant::now() >= end {
                let journals: Vec<String> = self.movers().flat_map(journals).collect();
                return Err(Error::Check(format!(
                    "not settled after {} s: on the source {:?}, on the destination {:?}; {}\n{}{}",
                    SETTLES.as_secs(),
                    state(self.lab.host("a")?, id),
                    state(self.lab.host("b")?, id),
                    journals.join("\n"),
                    client.stderr(),
                    self.lab.diagnosis()
                )));
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Whether no journal is open and no program of a migration is at work.
    fn is_settled(&self) -> Result<bool> {
        for host in self.movers() {
            if journals(host).next().is_some() {
                return Ok(false);
            }
            if !leftovers::passing(host)?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The hosts between which something may be moved: all but that of the clients.
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

    /// Makes the hosts fit for the next cell.
    fn clear(&self) -> Result<()> {
        for host in self.movers() {
            gate::clear(host)?;
            host.podman(["rm", "--all", "--force", "--time", "0"])?;
            forget(host)?;
        }
        Ok(())
    }
}

/// Removes from a host what moved connections need and what agents remember of what arrived.
pub(crate) fn forget(host: &Host) -> Result<()> {
    host.run(["conntrack", "-F"])?;
    for _ in 0..FORGOTTEN {
        host.run(["sh", "-c", FORGET])?;
        // A guardian's last act may have been to start another reconciler.
        if !host.run(["nft", "list", "tables"])?.contains("netmig") {
            break;
        }
    }
    Ok(())
}

/// How long after a long outage both ends of a connection may take to try again: never more than two minutes
/// (`TCP_RTO_MAX`, `include/net/tcp.h`).
const PATIENT: Duration = Duration::from_secs(125);
/// Makes TCP try again at least once a second (Linux 6.15, milliseconds), and never give up (ip-sysctl.rst).
const IMPATIENCE: [(&str, &str); 2] = [("tcp_rto_max_ms", "1000"), ("tcp_retries2", "255")];

/// How often that is tried.
const FORGOTTEN: usize = 5;
/// Removes what moved connections need and what agents remember of what arrived.
const FORGET: &str = "rm -rf /run/netmig/recover.log /var/lib/netmig/arrived /run/filler
pkill -f -- '--keep$|/proc/self/exe .* keep$'
for i in $(seq 200); do pgrep -f -- '--keep$|/proc/self/exe .* keep$' > /dev/null || break; sleep 0.05; done
nft delete table inet netmig-guard 2> /dev/null
rm -rf /run/netmig/keeper.* /run/netmig/carried
for link in $(ls /sys/class/net | grep ^netmig); do ip link del $link; done
for family in -4 -6; do
    while ip $family rule list | grep -q '^3[0-9][0-9][0-9]:'; do
        ip $family rule del pref $(ip $family rule list | sed -n 's/^\\(3[0-9][0-9][0-9]\\):.*/\\1/p' | head -1)
    done
    for table in $(seq 3001 3004); do ip $family route flush table $table 2> /dev/null; done
done
nft delete table inet netmig 2> /dev/null
rm -rf /run/wireguard/netmig*; true";

/// Those that this kernel has.
fn impatience() -> impl Iterator<Item = (&'static str, &'static str)> {
    let parameters = Path::new("/proc/sys/net/ipv4");
    IMPATIENCE.into_iter().filter(|(name, _)| parameters.join(name).exists())
}

/// Starts the container that the cell needs; gives its ID and its first process.
fn start(host: &Host, far: &Host, cell: Cell) -> Result<(String, String)> {
    let mut words = vec!["run", "--detach", "--name", NAME, "--publish", "7000:7000/tcp"];
    words.extend(["--publish", "7000:7000/udp"]);
    // The same for the container's end.
    let sysctls: Vec<String> =
        impatience().map(|(name, value)| format!("--sysctl=net.ipv4.{name}={value}")).collect();
    words.extend(sysctls.iter().map(String::as_str));
    let ending =
        format!("netmig-probe serve & while [ ! -e {} ]; do sleep 0.05; done", strike::END);
    if matches!(cell.fault, Fault::Reboot(_)) {
        words.push("--restart=always");
    }
    words.push("probe:1");
    if cell.fault == Fault::ContainerExits {
        words.extend(["sh", "-c", &ending]);
    } else {
        words.extend(["netmig-probe", "serve"]);
    }
    let id = host.podman(words)?;
    far.probe().wait_for_echo(host.port(7000), ANSWERS)?;
    let first = host.podman(["inspect", "--format", "{{.State.Pid}}", NAME])?;
    if cell.moment == Moment::Files {
        host.write(format!("/proc/{first}/root/tmp/file"), vec![1; FILE])?;
    }
    Ok((id, first))
}

impl<'a> Before<'a> {
    fn look(host: &'a Host) -> Result<Self> {
        Ok(Self { host, snapshot: host.snapshot()?, seen: leftovers::look(host)? })
    }
}

/// What was not there before and should not be there now.
fn left(before: &[Before<'_>], runs_on: RunsOn, is_comparable: bool) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for Before { host, snapshot, seen } in before {
        let now = leftovers::look(host)?;
        all.extend(now.difference(seen).cloned());
        if runs_on == RunsOn::Source && is_comparable {
            // Nothing has moved: the host is as it was in every respect.
            let view = |snapshot: Snapshot| {
                ["recover.log", "keeper.log"]
                    .iter()
                    .fold(without_own_state(snapshot), |snapshot, name| {
                        snapshot.without_file(&format!("/run/netmig/{name}"))
                    })
            };
            if let Err(error) = snapshot.await_return(host, RETURNS, view) {
                all.push(error.to_string());
            }
        }
    }
    Ok(all)
}

/// Whether somebody on the source said so.
fn in_doubt(host: &Host, client: &HostProcess) -> bool {
    client.stderr().contains("in doubt")
        || host.read("/run/netmig/recover.log").is_ok_and(|text| text.contains("in doubt"))
}

/// Whether the source has heard that the copy is lost.
fn is_lost(host: &Host, client: &HostProcess) -> bool {
    const WORDS: &str = "ran on this host, and is gone";
    client.stderr().contains(WORDS)
        || host.read("/run/netmig/recover.log").is_ok_and(|text| text.contains(WORDS))
}

/// The order of a person who knows that the destination will not come back.
fn roll_back(host: &Host) -> Result<()> {
    let words = ["recover", "--rollback-anyway", NAME];
    let mut terminal = Terminal::start(host.command("agent-client").args(words))?;
    terminal.expect("two of it will run", ORDER)?;
    terminal.send(&format!("{NAME}\r"))?;
    terminal.expect("runs on this host again", ORDER)?;
    match terminal.finish(ORDER)? {
        Some(0) => Ok(()),
        code => Err(Error::Check(format!("exit code {code:?}: {}", terminal.screen()))),
    }
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}
