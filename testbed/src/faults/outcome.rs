//! What came of a migration that something happened to, and whether that is as promised.

use serde::{Deserialize, Serialize};

use super::cell::{Cell, Moment, Side};
use super::fault::Fault;
use crate::traffic::report::{EchoReport, Gap, WireReport};

/// Shorter silences are the machine's own.
const SILENCE_MS: f64 = 20.0;
/// Silent for so long when the clients stop means dead.
const DEAD_NS: u64 = 700_000_000;
/// Datagrams that may be on their way when a silence begins or ends.
const ON_THE_WAY: f64 = 5.0;

/// Where the container runs in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunsOn {
    /// On the source, as before.
    Source,
    /// On the destination.
    Destination,
    /// On another host, to which somebody else has moved it.
    Third,
    /// On more than one: the worst that can happen.
    Both,
    /// Nowhere.
    Neither,
}

/// A promise that was not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// Two copies run, or both were heard.
    TwoAudible,
    /// No copy runs, or none can be heard.
    None,
    /// A connection was reset, closed, or lost bytes.
    Reset,
    /// Datagrams were lost or doubled for another reason than the outage.
    Datagrams,
    /// Something of the migration is left on a host.
    Leftover,
    /// The program said nothing, or something wrong.
    Message,
    /// Somebody was obeyed who has no say.
    Authority,
}

/// What was seen.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Exit code of agent-client; none if it was killed.
    pub exit: Option<i32>,
    /// Its last words.
    pub said: String,
    /// Where the container runs.
    pub runs_on: RunsOn,
    /// Whether a person had to order the end.
    pub ordered: bool,
    /// What came to the far end.
    pub wire: WireReport,
    /// What the TCP client saw.
    #[serde(skip)]
    pub tcp: EchoReport,
    /// What the UDP client saw.
    #[serde(skip)]
    pub udp: EchoReport,
    /// When the clients stopped talking, in nanoseconds since the Unix epoch.
    #[serde(skip)]
    pub stopped_ns: u64,
    /// Messages of clients a second.
    #[serde(skip)]
    pub rate: f64,
    /// What is left on the hosts.
    pub leftovers: Vec<String>,
    /// What is not as promised about whatever else took part.
    #[serde(skip)]
    pub beside: Vec<(Problem, String)>,
}

impl Outcome {
    /// Compares with what is promised.
    pub fn problems(&self, cell: Cell) -> Vec<(Problem, String)> {
        let mut found = self.beside.clone();
        let mut note = |problem, text: String| found.push((problem, text));
        let wire = &self.wire;
        match self.runs_on {
            RunsOn::Both => note(Problem::TwoAudible, "runs on more than one host".to_owned()),
            RunsOn::Neither if !cell.fault.may_end() => {
                note(Problem::None, "runs nowhere".to_owned())
            }
            _ => {}
        }
        // A person has ordered that the original run although its copy was heard.
        let anyway = self.ordered && cell.may_lose_a_heard_copy();
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
        // The sockets of processes that are killed say goodbye, which those of a host without power do not.
        if wire.foreign > 0 && !anyway {
            note(Problem::TwoAudible, format!("{} packets on another way", wire.foreign));
        }
        let ended = (cell.fault.may_end() && self.runs_on != RunsOn::Destination)
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
        }
        for leftover in &self.leftovers {
            note(Problem::Leftover, leftover.clone());
        }
        // One that was moved first may have ended at the destination, like any other.
        let moved = self.exit == Some(0);
        let is_told = cell.fault.may_end();
        if is_told
            && self.runs_on == RunsOn::Neither
            && !moved
            && !self.said.contains("ended by itself")
        {
            note(Problem::Message, "it does not say that the container has ended".to_owned());
        }
        let told =
            cell.fault.silences() || self.exit == Some(0) || self.said.contains("agent-client: ");
        if !told {
            note(Problem::Message, format!("exit code {:?} and no message", self.exit));
        }
        let before = cell.moment < Moment::Hold;
        if before
            && !ended
            && !cell.fault.takes_time()
            && self.tcp.max_gap_ms > 5_000.0
            && !cell.is_for_good()
        {
            // Nothing was interrupted yet, so nobody may have noticed more than a moved container's
            // pause, or the cut of the link that its packets take by then.
            let allowed = matches!(cell.fault, Fault::Cut(_) | Fault::CutAndKill(_));
            if !allowed {
                note(Problem::Message, format!("silent for {:.0} ms", self.tcp.max_gap_ms));
            }
        }
        found
    }

    /// Whether connections have ended because the host that had the container, or was their anchor, was
    /// restarted.
    fn was_restarted(&self, fault: Fault) -> bool {
        match fault {
            Fault::Reboot(Side::Source) => true,
            Fault::Reboot(Side::Destination) => self.runs_on != RunsOn::Source,
            _ => false,
        }
    }

    fn judge_datagrams(&self, note: &mut impl FnMut(Problem, String)) {
        // A client whose datagrams were lost waits for them in vain when it has stopped talking.
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
