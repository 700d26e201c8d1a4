//! Other actors that interfere with a migration: a rival agent, another container, a hostile host, an old journal.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use super::NAME;
use super::container_state::{self, runs_on};
use super::fault::Fault;
use super::hostile_peer::{self, NO_MIGRATION};
use super::matrix::{Cell, Side};
use super::observation::journals;
use super::outcome::Problem;
use super::stale_journal::{self, Journal};
use crate::error::{Error, Result, chain};
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::lab::Lab;
use crate::probe::EchoRun;

/// The third host: the hostile one, or the destination of a rival migration.
pub(super) const THIRD: &str = "d";
/// The container that migrates in the opposite direction.
const OTHER: &str = "other";
/// The address of that container, which no container on the other host has.
const OTHER_ADDRESS: &str = "10.88.0.200";
const OTHER_PORT: u16 = 8000;
/// The longest time for any action here.
const LIMIT: Duration = Duration::from_secs(150);
/// The rate of the other container's client in messages a second.
const RATE: f64 = 50.0;

/// The interference with the migration of one cell.
#[derive(Default)]
pub(super) struct Interference {
    orders: Vec<HostProcess>,
    other: Option<(String, EchoRun)>,
    /// The source's journals of the container's earlier migrations.
    journals: Vec<Journal>,
    problems: Vec<(Problem, String)>,
}

impl Interference {
    /// Prepares the interference before the clients start.
    pub(super) fn set_up(lab: &Lab, cell: Cell) -> Result<Self> {
        let mut interference = Self::default();
        match cell.fault {
            Fault::Rival => lab.serve(THIRD)?,
            Fault::Opposite(_) => {
                lab.serve(Side::Source.host())?;
                interference.other = Some(start_other(lab)?);
            }
            Fault::Stale(_) => {
                lab.serve(Side::Source.host())?;
                interference.journals = there_and_back(lab)?;
            }
            _ => {}
        }
        Ok(interference)
    }

    /// Starts the actors that act from the start of the migration on.
    pub(super) fn begin(&mut self, lab: &Lab, fault: Fault) -> Result<()> {
        if matches!(fault, Fault::Opposite(_)) {
            let words = ["migrate", OTHER, "a", "--max-interruption", "120"];
            self.orders.push(lab.host("b")?.command("agent-client").args(words).spawn()?);
        }
        Ok(())
    }

    /// Interferes, at the injection point.
    pub(super) fn inject(&mut self, lab: &Lab, fault: Fault) -> Result<()> {
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        match fault {
            Fault::Rival => {
                let words = ["migrate", NAME, THIRD];
                self.orders.push(a.command("agent-client").args(words).spawn()?);
                // The rival is refused in this time, or comes as far as it can.
                std::thread::sleep(Duration::from_millis(1200));
            }
            Fault::Stranger => self.out_of_turn(lab.host(THIRD)?, b)?,
            Fault::Stale(kind) => {
                let journal = self.journals.get(usize::from(!kind.is_departure()));
                let lacking = || Error::Check("there is no journal of that kind".to_owned());
                let path = journal.ok_or_else(lacking)?.plant(a, kind)?;
                if kind.is_departure() {
                    a.command("agent-client").args(["recover"]).limit(LIMIT).output()?;
                } else {
                    lab.stop_server("a", Signal::SIGTERM)?;
                    lab.serve("a")?;
                }
                // A journal that cannot be recovered may stay, and is reported.
                a.run(["rm", "-f", &path])?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Sends from a paired host every order for the migration under way, and every other message out of turn.
    fn out_of_turn(&mut self, from: &Host, to: &Host) -> Result<()> {
        let migration = hostile_peer::migration(to).unwrap_or_else(|| json!(NO_MIGRATION));
        let orders = hostile_peer::orders(&migration).into_iter();
        let firsts = hostile_peer::first_messages(&migration).into_iter().map(|one| vec![one]);
        let said: Vec<_> = firsts.chain(orders).collect();
        let answers = hostile_peer::say_hastily(from, to, &said)?;
        let obeyed = answers.iter().flatten().filter(|answer| !answer.is_refusal());
        self.problems.extend(obeyed.map(|answer| {
            (Problem::Authority, format!("{} is answered with {}", answer.sent, answer.text))
        }));
        Ok(())
    }

    /// Returns whether all rivals have ended.
    pub(super) fn is_over(&mut self) -> bool {
        self.orders.iter_mut().all(|order| !order.is_running())
    }

    /// Returns the problems of the other actors. `exit` is the exit code of the migration itself.
    pub(super) fn judge(
        mut self,
        lab: &Lab,
        fault: Fault,
        exit: Option<i32>,
    ) -> Result<Vec<(Problem, String)>> {
        if fault == Fault::Rival {
            for order in self.orders.drain(..) {
                let end = order.wait(Duration::ZERO)?;
                let (code, said) = (end.status.code(), end.error_text());
                let is_clear = ["busy", "no container", "no such container"]
                    .iter()
                    .any(|word| said.to_lowercase().contains(word));
                match (exit, code) {
                    (Some(0), Some(0)) => {
                        let text = "both orders say that they moved it".to_owned();
                        self.problems.push((Problem::TwoAudible, text));
                    }
                    (_, Some(0)) => {}
                    (_, Some(3)) if is_clear => {}
                    _ => {
                        let text = format!("the rival ended with {code:?}: {said}");
                        self.problems.push((Problem::Message, text));
                    }
                }
            }
        }
        if let Some((id, client)) = self.other.take() {
            let places = runs_on(lab, &id);
            match places[..] {
                [_] => {}
                [] => self.problems.push((Problem::None, "the other runs nowhere".to_owned())),
                _ => {
                    let text = format!("the other runs on {places:?}");
                    self.problems.push((Problem::TwoAudible, text));
                }
            }
            let seen = client.stop_after(Duration::ZERO);
            let fault = seen.map_or_else(|error| Some(chain(&error)), |seen| seen.fault());
            let text = |fault| (Problem::Reset, format!("TCP of the other: {fault}"));
            self.problems.extend(fault.map(text));
        }
        Ok(self.problems)
    }
}

/// Starts a container on the destination that will migrate to the source, and a client.
fn start_other(lab: &Lab) -> Result<(String, EchoRun)> {
    let (b, c) = (lab.host("b")?, lab.host("c")?);
    let run = ["run", "--detach", "--name", OTHER, "--ip", OTHER_ADDRESS];
    let publish = ["--publish", "8000:7000/tcp"];
    let id = b.podman([&run[..], &publish, &["probe:1", "netmig-probe", "serve"]].concat())?;
    let server = b.port(OTHER_PORT);
    c.probe().wait_for_echo(server, LIMIT)?;
    Ok((id, c.probe().tcp_echo(server).rate(RATE).start()?))
}

/// Migrates the container to the destination and back. Returns the source's journals of both migrations.
fn there_and_back(lab: &Lab) -> Result<Vec<Journal>> {
    let a = lab.host("a")?;
    let mut all = Vec::new();
    for (from, to) in [("a", "b"), ("b", "a")] {
        let (mut kept, moved) =
            stale_journal::record_journals(&[a], || lab.migrate(NAME, from, to))?;
        moved?;
        let end = std::time::Instant::now() + LIMIT;
        while lab.hosts().iter().any(|host| journals(host).next().is_some()) {
            if std::time::Instant::now() >= end {
                return Err(Error::Check("the move there and back is not settled".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let lacking = || Error::Check("the source had no journal".to_owned());
        all.push(kept.remove("a").ok_or_else(lacking)?);
    }
    let id = container_state::id(a, NAME)?;
    let places = runs_on(lab, &id);
    if places != ["a"] {
        return Err(Error::Check(format!("after there and back it runs on {places:?}")));
    }
    Ok(all)
}
