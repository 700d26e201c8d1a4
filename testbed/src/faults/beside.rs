//! What takes part beside a migration: a rival order, another container, a strange host, an old journal.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use super::NAME;
use super::cell::{Cell, Side};
use super::container::{self, runs_on};
use super::fault::Fault;
use super::hostile::{self, NO_MIGRATION};
use super::moment::journals;
use super::outcome::Problem;
use super::stale::{self, Journal};
use crate::error::{Error, Result, chain};
use crate::host::Host;
use crate::host::process::HostProcess;
use crate::lab::Lab;
use crate::probe::EchoRun;

/// The host that moves nothing here, or to which somebody else moves the container.
pub(super) const THIRD: &str = "d";
/// The container that moves the other way.
const OTHER: &str = "other";
/// Its address, which no container on the other host has.
const OTHER_ADDRESS: &str = "10.88.0.200";
const OTHER_PORT: u16 = 8000;
/// How long anything here may take.
const LIMIT: Duration = Duration::from_secs(150);
/// Messages a second of the other container's client.
const RATE: f64 = 50.0;

/// All of it, for one cell.
#[derive(Default)]
pub(super) struct Beside {
    orders: Vec<HostProcess>,
    other: Option<(String, EchoRun)>,
    /// Of the container's former moves, on the source.
    journals: Vec<Journal>,
    problems: Vec<(Problem, String)>,
}

impl Beside {
    /// Prepares what has to be there before the clients begin.
    pub(super) fn set_up(lab: &Lab, cell: Cell) -> Result<Self> {
        let mut beside = Self::default();
        match cell.fault {
            Fault::Rival => lab.serve(THIRD)?,
            Fault::Opposite(_) => {
                lab.serve(Side::Source.host())?;
                beside.other = Some(start_other(lab)?);
            }
            Fault::Stale(_) => {
                lab.serve(Side::Source.host())?;
                beside.journals = there_and_back(lab)?;
            }
            _ => {}
        }
        Ok(beside)
    }

    /// Begins together with the migration.
    pub(super) fn begin(&mut self, lab: &Lab, fault: Fault) -> Result<()> {
        if matches!(fault, Fault::Opposite(_)) {
            let words = ["migrate", OTHER, "a", "--max-interruption", "120"];
            self.orders.push(lab.host("b")?.command("agent-client").args(words).spawn()?);
        }
        Ok(())
    }

    /// The moment has come.
    pub(super) fn strike(&mut self, lab: &Lab, fault: Fault) -> Result<()> {
        let (a, b) = (lab.host("a")?, lab.host("b")?);
        match fault {
            Fault::Rival => {
                let words = ["migrate", NAME, THIRD];
                self.orders.push(a.command("agent-client").args(words).spawn()?);
                // It is refused, or goes as far as it gets.
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
                // What cannot be settled may stay, and is told.
                a.run(["rm", "-f", &path])?;
            }
            _ => {}
        }
        Ok(())
    }

    /// A paired host gives every order for the migration under way, and says all else out of turn.
    fn out_of_turn(&mut self, from: &Host, to: &Host) -> Result<()> {
        let migration = hostile::migration(to).unwrap_or_else(|| json!(NO_MIGRATION));
        let orders = hostile::orders(&migration).into_iter();
        let firsts = hostile::first_messages(&migration).into_iter().map(|one| vec![one]);
        let said: Vec<_> = firsts.chain(orders).collect();
        let answers = hostile::say_hastily(from, to, &said)?;
        let obeyed = answers.iter().flatten().filter(|answer| !answer.is_refusal());
        self.problems.extend(obeyed.map(|answer| {
            (Problem::Authority, format!("{} is answered with {}", answer.sent, answer.text))
        }));
        Ok(())
    }

    /// Whether nobody of them is at work any more.
    pub(super) fn is_over(&mut self) -> bool {
        self.orders.iter_mut().all(|order| !order.is_running())
    }

    /// What is not as promised about them; `exit` is how the migration itself ended.
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

/// A container on the destination that is to come to the source, with a client.
fn start_other(lab: &Lab) -> Result<(String, EchoRun)> {
    let (b, c) = (lab.host("b")?, lab.host("c")?);
    let run = ["run", "--detach", "--name", OTHER, "--ip", OTHER_ADDRESS];
    let publish = ["--publish", "8000:7000/tcp"];
    let id = b.podman([&run[..], &publish, &["probe:1", "netmig-probe", "serve"]].concat())?;
    let server = b.port(OTHER_PORT);
    c.probe().wait_for_echo(server, LIMIT)?;
    Ok((id, c.probe().tcp_echo(server).rate(RATE).start()?))
}

/// Moves the container to the destination and back, and gives the source's journals of both.
fn there_and_back(lab: &Lab) -> Result<Vec<Journal>> {
    let a = lab.host("a")?;
    let mut all = Vec::new();
    for (from, to) in [("a", "b"), ("b", "a")] {
        let (mut kept, moved) = stale::keep(&[a], || lab.migrate(NAME, from, to))?;
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
    let id = container::id(a, NAME)?;
    let places = runs_on(lab, &id);
    if places != ["a"] {
        return Err(Error::Check(format!("after there and back it runs on {places:?}")));
    }
    Ok(all)
}
