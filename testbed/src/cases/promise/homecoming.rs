//! Recovery of a journal of an earlier migration, while the container has returned under the same ID.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::signal::Signal;

use super::{LIMIT, home, settled};
use crate::cases::subject::{Clients, serve};
use crate::ensure;
use crate::error::{Context as _, Error, Result, chain};
use crate::faults::container_state;
use crate::faults::forget::forget;
use crate::faults::stale_journal::{self, Journal, LastRecord};
use crate::host::Host;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("promise-recover-leaves-what-came-home", &["promise"], departures).limit(400),
    Case::new("promise-arrivals-leave-what-came-home", &["promise"], arrivals).limit(400),
    Case::new("promise-what-came-home-needs-no-other-host", &["promise"], alone).limit(240),
    Case::new("promise-recover-removes-what-was-killed", &["promise"], killed).limit(240),
];

/// A container that has migrated to b and back to a under traffic.
struct Home<'a> {
    lab: &'a Lab,
    id: String,
    first: i32,
    clients: Clients,
    /// The journals of both migrations, each by its host.
    journals: Vec<BTreeMap<String, Journal>>,
}

/// A stale journal: the number of the migration, the host, and the last record.
type Stale = (usize, &'static str, LastRecord);

impl<'a> Home<'a> {
    fn start(lab: &'a Lab) -> Result<Self> {
        let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
        lab.serve("a")?;
        lab.serve("b")?;
        serve(a, "web", 7000, &[], c)?;
        let id = container_state::id(a, "web")?;
        let clients = Clients::gentle(c, a.port(7000))?;
        let mut journals = Vec::new();
        for (from, to) in [("a", "b"), ("b", "a")] {
            let (kept, outcome) =
                stale_journal::record_journals(&[a, b], || lab.migrate("web", from, to))?;
            outcome?;
            settled(lab)?;
            journals.push(kept);
        }
        ensure!(home(lab, &id)? == "a", "it did not come home");
        let first = first_process(a, &id);
        Ok(Self { lab, id, first, clients, journals })
    }

    /// Restores a stale journal, recovers it, and checks the container.
    fn try_one(&self, stale: Stale, settle: &dyn Fn(&Lab, &Host) -> Result<()>) -> Result<()> {
        let (number, host, kind) = stale;
        let (host, a) = (self.lab.host(host)?, self.lab.host("a")?);
        let journal = self.journals[number].get(host.name());
        let lacking = || Error::Check(format!("host {} had no journal", host.name()));
        let path = journal.ok_or_else(lacking)?.plant(host, kind)?;
        let settled = settle(self.lab, host);
        // A journal that cannot be recovered may stay, and is reported. It must not affect the next one.
        let left = host.path(&path);
        if left.exists() {
            fs::remove_file(&left).context(|| format!("removing {}", left.display()))?;
        }
        settled?;
        let runs_on = container_state::runs_on(self.lab, &self.id);
        let first = first_process(a, &self.id);
        ensure!(
            runs_on == ["a"] && first == self.first,
            "it runs on {runs_on:?}, its first process was {} and is {first}",
            self.first
        );
        let known = a.podman(["ps", "--quiet", "--filter", "name=^web$"])?;
        ensure!(!known.is_empty(), "podman does not know it any more");
        self.lab.host("c")?.probe().wait_for_echo(a.port(7000), LIMIT)
    }
}

fn first_process(host: &Host, id: &str) -> i32 {
    container_state::processes(host, id).into_iter().min().unwrap_or_default()
}

/// Tries the journals one after the other. After one that did harm, goes on with a fresh container.
fn try_all(
    context: &Context,
    all: &[Stale],
    settle: &dyn Fn(&Lab, &Host) -> Result<()>,
) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let mut problems = Vec::new();
    let mut home: Option<Home<'_>> = None;
    for stale in all {
        let present = match home.take() {
            Some(present) => present,
            None => Home::start(&lab)?,
        };
        match present.try_one(*stale, settle) {
            Ok(()) => home = Some(present),
            Err(error) => {
                problems.push(format!("{stale:?}: {}", chain(&error)));
                drop(present);
                clear(&lab)?;
            }
        }
    }
    if let Some(present) = home {
        match present.clients.stop() {
            Ok(seen) => context.remark(seen.gaps()),
            Err(error) => problems.push(chain(&error)),
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

fn clear(lab: &Lab) -> Result<()> {
    for name in ["a", "b"] {
        // A running server keeps its connections and its knowledge of journals.
        lab.stop_server(name, Signal::SIGTERM)?;
        let host = lab.host(name)?;
        host.podman(["rm", "--all", "--force", "--time", "0"])?;
        forget(host)?;
    }
    Ok(())
}

/// Journals of departures: of the first migration on a, and of the return on b.
fn departures(context: &Context) -> Result<()> {
    let kinds = LastRecord::ALL.into_iter().filter(|kind| kind.is_departure());
    let all: Vec<Stale> = kinds.flat_map(|kind| [(0, "a", kind), (1, "b", kind)]).collect();
    // This test does not check the message about a journal that is left.
    let recover = |_: &Lab, host: &Host| {
        let recovery = host.command("agent-client").args(["recover"]).limit(LIMIT).output()?;
        let said = recovery.error_text();
        ensure!(!said.contains("two of it"), "recover sees two copies of one: {said}");
        Ok(())
    };
    try_all(context, &all, &recover)
}

/// Journals of arrivals: of the return on a, and of the first migration on b.
fn arrivals(context: &Context) -> Result<()> {
    let kinds = LastRecord::ALL.into_iter().filter(|kind| !kind.is_departure());
    let all: Vec<Stale> = kinds.flat_map(|kind| [(1, "a", kind), (0, "b", kind)]).collect();
    let restart = |lab: &Lab, host: &Host| {
        lab.stop_server(host.name(), Signal::SIGTERM)?;
        lab.serve(host.name())?;
        // The server recovers all journals before it is ready.
        lab.host("c")?.run(["true"]).map(drop)
    };
    try_all(context, &all, &restart)
}

/// The host from which the container has come home is gone. The stale journal is settled all the same.
fn alone(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let home = Home::start(&lab)?;
    lab.stop_server("b", Signal::SIGKILL)?;
    home.try_one((0, "a", LastRecord::Acknowledged), &|_, host| {
        let recovery = host.command("agent-client").args(["recover"]).limit(LIMIT).output()?;
        let said = recovery.error_text();
        ensure!(recovery.status.success(), "{:?}: {said}", recovery.status);
        ensure!(said.contains("has come back since"), "no word of it: {said}");
        Ok(())
    })?;
    home.clients.stop().map(drop)
}

/// The agent died after it had killed the original and before the engine removed it. The engine does not know that the
/// container has ended.
fn killed(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let Home { id, clients, journals, .. } = Home::start(&lab)?;
    clients.stop()?;
    let a = lab.host("a")?;
    a.command("pkill").args(["-KILL", "-x", "conmon"]).run()?;
    for cgroup in container_state::cgroups(a, &id) {
        let path = cgroup.join("cgroup.kill");
        fs::write(&path, "1").context(|| format!("writing {}", path.display()))?;
    }
    let journal = journals[0].get("a");
    let journal = journal.ok_or_else(|| Error::Check("host a had no journal".to_owned()))?;
    let path = journal.decided_at(u64::from(u32::MAX)).plant(a, LastRecord::Acknowledged)?;
    let said = a.command("agent-client").args(["recover"]).limit(LIMIT).run()?;
    let known = a.podman(["ps", "--all", "--quiet", "--filter", "name=^web$"])?;
    ensure!(known.is_empty(), "podman still has it; recover said {}", said.error_text());
    ensure!(!a.path(&path).exists(), "the journal is left");
    Ok(())
}
