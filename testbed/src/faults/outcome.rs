//! The outcome of a migration with a fault, and the check of the product's guarantees.

use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::injection_point::InjectionPoint;
use super::matrix::{Cell, Side};
use crate::traffic::client_report::{EchoReport, Gap, WireReport};

/// The longest silence in milliseconds that a busy machine causes by itself.
const SILENCE_MS: f64 = 20.0;
/// A flow that is silent for this many nanoseconds when the clients stop is dead.
const DEAD_NS: u64 = 700_000_000;
/// The number of datagrams that may be in flight when a silence begins or ends.
const ON_THE_WAY: f64 = 5.0;

/// Where the container runs at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunsOn {
    /// On the source, as before.
    Source,
    /// On the destination.
    Destination,
    /// On another host, to which a rival has moved it.
    Third,
    /// On more than one host: split brain.
    Both,
    /// Nowhere.
    Neither,
}

/// A guarantee that was violated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// Two copies run, or clients received packets of both.
    TwoAudible,
    /// No copy runs, or clients receive packets of none.
    None,
    /// A connection was reset, closed, or lost bytes.
    Reset,
    /// The container's memory has changed.
    Memory,
    /// Datagrams were lost or duplicated for another reason than the outage.
    Datagrams,
    /// A host has residue of the migration.
    Leftover,
    /// The program reported nothing, or something wrong.
    Message,
    /// An agent obeyed a host without authority.
    Authority,
}

/// The outcome of one run of a cell.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The exit code of agent-client; `None` if it was killed.
    pub exit: Option<i32>,
    /// The standard error of agent-client.
    pub said: String,
    /// Where the container runs.
    pub runs_on: RunsOn,
    /// Whether the operator had to intervene.
    pub ordered: bool,
    /// The packets that arrived at the clients' host.
    pub wire: WireReport,
    /// The report of the TCP client.
    #[serde(skip)]
    pub tcp: EchoReport,
    /// The report of the UDP client.
    #[serde(skip)]
    pub udp: EchoReport,
    /// When the clients stopped, in nanoseconds since the Unix epoch.
    #[serde(skip)]
    pub stopped_ns: u64,
    /// The rate of each client in messages a second.
    #[serde(skip)]
    pub rate: f64,
    /// Bytes of the container's memory that have changed; `None` if it has little.
    pub memory_bad: Option<u64>,
    /// The residue on the hosts.
    pub leftovers: Vec<String>,
    /// The problems of other actors.
    #[serde(skip)]
    pub interference: Vec<(Problem, String)>,
}

impl Outcome {
    /// Returns the guarantees that were violated.
    pub fn problems(&self, cell: Cell) -> Vec<(Problem, String)> {
        let mut found = self.interference.clone();
        let mut note = |problem, text: String| found.push((problem, text));
        let wire = &self.wire;
        match self.runs_on {
            RunsOn::Both => note(Problem::TwoAudible, "runs on more than one host".to_owned()),
            // The operator was told that it is lost, and has given it up.
            RunsOn::Neither if self.ordered && cell.may_lose_both() => {}
            RunsOn::Neither if !cell.fault.may_end_container() => {
                note(Problem::None, "runs nowhere".to_owned())
            }
            _ => {}
        }
        // The operator has ordered that the original runs although its copy was active.
        let anyway = self.ordered && cell.may_lose_an_active_copy();
        if wire.original_after_copy > 0 && !anyway {
            let text = format!(
                "{} packets of the original after the first of the copy",
                wire.original_after_copy
            );
            note(Problem::TwoAudible, text);
        }
        if self.runs_on == RunsOn::Source && wire.copy > 0 && !anyway {
            let text = format!("{} packets of a copy that was given up", wire.copy);
            note(Problem::TwoAudible, text);
        }
        // The kernel closes the connections of killed processes; a host without power would not.
        if wire.foreign > 0 && !anyway {
            let first = wire.first_foreign.map_or_else(String::new, |(source, ttl)| {
                format!(", the first one from {source} with a time to live of {ttl}")
            });
            let text = format!("{} packets on another way{first}", wire.foreign);
            note(Problem::TwoAudible, text);
        }
        let ended = (cell.fault.may_end_container() && self.runs_on != RunsOn::Destination)
            || self.was_restarted(cell.fault)
            || anyway;
        if !ended {
            if let Some(fault) = self.tcp.fault() {
                note(Problem::Reset, format!("TCP: {fault}"));
            }
            if wire.resets > 0 {
                note(Problem::Reset, format!("{} resets on the wire", wire.resets));
            }
            self.judge_datagrams(&mut note);
            if let Some(bad) = self.memory_bad.filter(|bad| *bad > 0) {
                note(Problem::Memory, format!("{bad} bytes of memory have changed"));
            }
        }
        for leftover in &self.leftovers {
            note(Problem::Leftover, leftover.clone());
        }
        // A container that was moved before it ended has ended at the destination, like any other.
        let moved = self.exit == Some(0);
        let is_told = cell.fault.may_end_container();
        if is_told
            && self.runs_on == RunsOn::Neither
            && !moved
            && !self.said.contains("ended by itself")
        {
            note(Problem::Message, "it does not say that the container has ended".to_owned());
        }
        let told = cell.fault.kills_agent()
            || self.exit == Some(0)
            || self.said.contains("agent-client: ");
        if !told {
            note(Problem::Message, format!("exit code {:?} and no message", self.exit));
        }
        let before = cell.point < InjectionPoint::Hold;
        if before
            && !ended
            && !cell.fault.lengthens_interruption()
            && self.tcp.max_gap_ms > 5_000.0
            && !cell.is_permanent_cut()
        {
            // The container was not interrupted yet. Clients may have noticed the pause of a migration, or the cut of
            // the link that their packets take by then.
            let allowed = matches!(cell.fault, Fault::Cut(_) | Fault::CutAndKill(_));
            if !allowed {
                note(Problem::Message, format!("silent for {:.0} ms", self.tcp.max_gap_ms));
            }
        }
        found
    }

    /// Returns whether connections have ended because the container's host or their anchor was restarted.
    fn was_restarted(&self, fault: Fault) -> bool {
        match fault {
            Fault::Reboot(Side::Source) => true,
            Fault::Reboot(Side::Destination) => self.runs_on != RunsOn::Source,
            _ => false,
        }
    }

    fn judge_datagrams(&self, note: &mut impl FnMut(Problem, String)) {
        // A client that has stopped sending waits in vain for datagrams that were lost.
        let stopped = self.stopped_ns.saturating_sub(DEAD_NS);
        let gaps = self.udp.gaps.iter().filter(|gap| gap.at_unix_ns < stopped);
        let end = |gap: &Gap| gap.at_unix_ns + (gap.ms * 1e6) as u64;
        if self.udp.received == 0 || gaps.clone().any(|gap| end(gap) > self.stopped_ns) {
            note(Problem::None, "the UDP flow is not heard at the end".to_owned());
            return;
        }
        let silent: f64 = gaps.map(|gap| gap.ms).filter(|ms| *ms > SILENCE_MS).sum();
        let explained = silent / 1e3 * self.rate + ON_THE_WAY;
        if self.udp.lost as f64 > explained {
            let text = format!("UDP: {} lost, silent for {silent:.0} ms", self.udp.lost);
            note(Problem::Datagrams, text);
        }
        if self.udp.duplicated + self.udp.corrupt > 0 {
            let text =
                format!("UDP: {} doubled, {} corrupt", self.udp.duplicated, self.udp.corrupt);
            note(Problem::Datagrams, text);
        }
    }
}
