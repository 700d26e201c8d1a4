//! Simultaneous migrations in opposite directions, and the return of a container before its first migration has ended.

use std::thread;

use super::{LIMIT, home, settled, until};
use crate::cases::subject::{Clients, serve};
use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::container_state;
use crate::faults::observation::has_record;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("promise-two-containers-in-opposite-directions", &["promise"], opposite)
        .exclusive()
        .limit(240),
    Case::new("promise-back-while-the-first-move-ends", &["promise"], back).exclusive().limit(300),
];

/// The number of rounds.
const ROUNDS: usize = 3;
/// The exit code of an order that was refused.
const REFUSED: i32 = 3;

fn opposite(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("a")?;
    lab.serve("b")?;
    serve(a, "one", 7000, &[], c)?;
    // podman would give both containers the same address.
    let run = ["run", "--detach", "--name", "two", "--ip", "10.88.0.200"];
    let ports = ["--publish", "8000:7000/tcp", "--publish", "8000:7000/udp"];
    b.podman([&run[..], &ports, &["probe:1", "netmig-probe", "serve"]].concat())?;
    c.probe().wait_for_echo(b.port(8000), LIMIT)?;
    let ids = [container_state::id(a, "one")?, container_state::id(b, "two")?];
    let clients = [Clients::gentle(c, a.port(7000))?, Clients::gentle(c, b.port(8000))?];
    for round in 0..ROUNDS {
        let (here, there) = if round % 2 == 0 { ("a", "b") } else { ("b", "a") };
        let orders = [("one", here, there), ("two", there, here)];
        let ends = thread::scope(|scope| {
            let moves =
                orders.map(|(name, from, to)| scope.spawn(|| lab.attempt(name, from, to, &[])));
            moves.map(|one| one.join().unwrap_or_else(|_| died()))
        });
        for (end, (name, from, to)) in ends.into_iter().zip(orders) {
            let end = end?;
            let said = &end.stderr;
            ensure!(end.code == Some(0), "round {round}, {name} from {from} to {to}: {said}");
        }
        settled(&lab)?;
        let homes = [home(&lab, &ids[0])?, home(&lab, &ids[1])?];
        ensure!(homes == [there, here], "round {round}: they run on {homes:?}");
    }
    for client in clients {
        context.remark(client.stop()?.gaps());
    }
    Ok(())
}

fn died<T>() -> Result<T> {
    Err(Error::Check("a thread of the test died".to_owned()))
}

/// Hosts and records that show that the container of the first migration is at its destination.
const STAGES: [(&str, &str); 3] = [("b", "activated"), ("a", "committed"), ("a", "acknowledged")];

/// The return succeeds, or is refused because the first migration has not ended.
fn back(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    lab.serve("a")?;
    lab.serve("b")?;
    serve(a, "web", 7000, &[], c)?;
    let id = container_state::id(a, "web")?;
    let clients = Clients::gentle(c, a.port(7000))?;
    for (host, record) in STAGES {
        let host = lab.host(host)?;
        let first = a.command("agent-client").args(["migrate", "web", "b"]).spawn()?;
        until(record, LIMIT, || Ok(has_record(host, record)))?;
        let second = lab.attempt("web", "b", "a", &[])?;
        let end = first.wait(LIMIT)?;
        ensure!(end.status.code() == Some(0), "{record}: the first move: {}", end.error_text());
        match second.code {
            Some(0) => context.remark(format!("{record}: moved back")),
            Some(REFUSED) => {
                let is_clear = ["busy", "no container"].iter().any(|w| second.stderr.contains(w));
                ensure!(is_clear, "{record}: it is refused with {}", second.stderr);
                context.remark(format!("{record}: refused"));
            }
            other => {
                let what = format!("{record}: the second ends with {other:?}: {}", second.stderr);
                return Err(Error::Check(what));
            }
        }
        settled(&lab)?;
        let there = home(&lab, &id)?;
        let wanted = if second.code == Some(0) { "a" } else { "b" };
        ensure!(there == wanted, "{record}: it runs on {there}");
        bring_home(&lab, there)?;
    }
    context.remark(clients.stop()?.gaps());
    Ok(())
}

fn bring_home(lab: &Lab, there: &str) -> Result<()> {
    if there == "b" {
        lab.migrate("web", "b", "a")?;
        settled(lab)?;
    }
    Ok(())
}
