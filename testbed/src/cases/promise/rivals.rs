//! Several migrations of one container at once, to different hosts.

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::Serialize;

use super::{LIMIT, home, settled};
use crate::cases::subject::{Clients, serve};
use crate::error::{Error, Result, chain};
use crate::faults::container_state;
use crate::faults::forget::forget;
use crate::host::host_process::HostProcess;
use crate::lab::Lab;

/// The host on which the container runs at first.
const SOURCE: &str = "a";
/// The host of the clients.
const FAR: &str = "c";
/// The destinations. The interface of a host `f` would be named `vf`, which is a keyword of ip(8).
const DESTINATIONS: [&str; 4] = ["b", "d", "e", "g"];
/// The container.
const NAME: &str = "web";
/// The exit code of an order that was refused.
const REFUSED: i32 = 3;
/// The number of datagrams that a killed process may have held.
const MOST_HELD: u64 = 20;
/// The time between two runs of `agent-client recover`.
const BREATH: Duration = Duration::from_millis(50);

/// An interference with the migrations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interference {
    /// Nothing.
    Nothing,
    /// `agent-client recover`, again and again.
    Recover,
    /// The agent with this number is killed after this time.
    Kill(usize, Duration),
}

/// The result of one round.
#[derive(Debug, Serialize)]
pub(crate) struct Round {
    /// The delay of each migration in milliseconds.
    pub(crate) after_ms: Vec<u64>,
    /// The exit codes; `None` for an agent that was killed.
    pub(crate) exits: Vec<Option<i32>>,
    /// The host on which the container runs at the end.
    pub(crate) runs_on: Option<String>,
    /// The guarantees that were violated.
    pub(crate) problems: Vec<String>,
}

/// Returns the names of a source, a host of clients, and this number of destinations.
pub(crate) fn hosts(rivals: usize) -> Vec<&'static str> {
    [SOURCE, FAR].into_iter().chain(DESTINATIONS.into_iter().take(rivals)).collect()
}

/// Starts one migration to each destination of the lab and checks the results. The lab is ready for another round if
/// there was no problem.
pub(crate) fn round(lab: &Lab, after: &[Duration], interference: Interference) -> Result<Round> {
    let (source, far) = (lab.host(SOURCE)?, lab.host(FAR)?);
    let destinations = &DESTINATIONS[..after.len()];
    for host in destinations {
        lab.serve(host)?;
    }
    serve(source, NAME, 7000, &[], far)?;
    let id = container_state::id(source, NAME)?;
    let clients = Clients::gentle(far, source.port(7000))?;
    let mut outputs = Vec::new();
    thread::scope(|scope| -> Result<()> {
        let orders: Vec<_> = destinations
            .iter()
            .zip(after)
            .enumerate()
            .map(|(number, (host, after))| {
                scope.spawn(move || -> Result<HostProcess> {
                    thread::sleep(*after);
                    let words = ["migrate", NAME, host];
                    let mut order = source.command("agent-client").args(words).spawn()?;
                    if let Interference::Kill(victim, when) = interference
                        && victim == number
                    {
                        thread::sleep(when);
                        order.signal(Signal::SIGKILL)?;
                    }
                    order.await_end(LIMIT)?;
                    Ok(order)
                })
            })
            .collect();
        while interference == Interference::Recover
            && orders.iter().any(|order| !order.is_finished())
        {
            source.command("agent-client").args(["recover"]).limit(LIMIT).output()?;
            thread::sleep(BREATH);
        }
        for order in orders {
            let died = || Err(Error::Check("a thread of the test died".to_owned()));
            outputs.push(order.join().unwrap_or_else(|_| died())?.wait(LIMIT)?);
        }
        Ok(())
    })?;
    let said: Vec<(Option<i32>, String)> =
        outputs.iter().map(|output| (output.status.code(), output.error_text())).collect();
    let killed = if let Interference::Kill(number, _) = interference { Some(number) } else { None };
    let mut problems = judge(&said, killed);
    let mut note = |outcome: Result<()>| {
        problems.extend(outcome.err().map(|error| chain(&error)));
    };
    note(settled(lab));
    let runs_on = home(lab, &id).map(str::to_owned);
    note(runs_on.as_ref().map(drop).map_err(|error| Error::Check(chain(error))));
    // The kernel drops the held packets of a killed process. TCP retransmits.
    let lost = if killed.is_some() { MOST_HELD } else { 0 };
    note(clients.stop_losing(lost).map(drop));
    let winner = said.iter().position(|(code, _)| *code == Some(0));
    if let (Some(winner), Ok(place)) = (winner, &runs_on)
        && place != destinations[winner]
    {
        let text = format!("moved to {}, it says, and runs on {place}", destinations[winner]);
        note(Err(Error::Check(text)));
    }
    clear(lab)?;
    Ok(Round {
        after_ms: after.iter().map(|time| time.as_millis() as u64).collect(),
        exits: said.iter().map(|(code, _)| *code).collect(),
        runs_on: runs_on.ok(),
        problems,
    })
}

/// Returns the problems of exit codes and messages. `killed` is the agent that was killed.
fn judge(said: &[(Option<i32>, String)], killed: Option<usize>) -> Vec<String> {
    let mut problems = Vec::new();
    let moved = said.iter().filter(|(code, _)| *code == Some(0)).count();
    if moved > 1 || (moved == 0 && killed.is_none()) {
        problems.push(format!("{moved} orders say that they moved it"));
    }
    for (number, (code, text)) in said.iter().enumerate() {
        if *code == Some(0) || (killed == Some(number) && code.is_none()) {
            continue;
        }
        let words = text.lines().filter(|line| line.starts_with("agent-client: ")).count();
        let is_clear = ["busy", "no container", "no such container"]
            .iter()
            .any(|word| text.to_lowercase().contains(word));
        if *code != Some(REFUSED) || words != 1 || !is_clear {
            problems.push(format!("order {number} ended with {code:?}: {text}"));
        }
    }
    problems
}

/// Prepares the hosts for another round.
fn clear(lab: &Lab) -> Result<()> {
    for host in lab.hosts() {
        host.podman(["rm", "--all", "--force", "--time", "0"])?;
        forget(host)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: i32, text: &str) -> (Option<i32>, String) {
        (Some(code), text.to_owned())
    }

    #[test]
    fn one_moves_and_the_others_are_refused() {
        let busy = "agent-client: refused, nothing was changed: web is being moved already (busy)";
        assert!(judge(&[said(0, ""), said(3, busy)], None).is_empty());
        assert_eq!(judge(&[said(0, ""), said(0, "")], None).len(), 1);
        assert_eq!(judge(&[said(0, ""), said(4, busy)], None).len(), 1);
        assert_eq!(judge(&[said(0, ""), said(3, "agent-client: refused")], None).len(), 1);
        assert_eq!(judge(&[said(3, busy), said(3, busy)], None).len(), 1);
    }

    #[test]
    fn one_that_was_killed_says_nothing() {
        let busy = "agent-client: refused: busy";
        assert!(judge(&[(None, String::new()), said(3, busy)], Some(0)).is_empty());
        assert_eq!(judge(&[(None, String::new()), said(3, busy)], Some(1)).len(), 1);
    }

    #[test]
    fn each_rival_has_a_destination_of_its_own() {
        assert_eq!(hosts(2), ["a", "c", "b", "d"]);
        assert_eq!(hosts(4).len(), 6);
    }
}
