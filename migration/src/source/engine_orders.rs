//! Orders that a user gives the engine about a container while it is being moved: a new name, another restart policy,
//! a stop. The destination was told before of what the container is, so such an order would be lost.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use checkpoint::cgroup::Cgroup;
use checkpoint::pidfd::PidFd;
use checkpoint::procfs;
use engine::Engine;
use engine::inspect::{Container, State};
use nix::libc;
use state::cause::Cause;
use tokio::task::{JoinHandle, spawn_blocking};

/// Between two looks at whether the container has ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The engine was given an order about the container.
#[derive(Debug, thiserror::Error)]
#[error("{container} was {what} on this host while it was being moved; move it again")]
pub struct Ordered {
    container: String,
    what: String,
    is_pause: bool,
}

/// Returns whether a move ended because the user has paused the container. It has to stay frozen then.
#[must_use]
pub fn is_pause(cause: &Cause) -> bool {
    cause.downcast_ref::<Ordered>().is_some_and(|ordered| ordered.is_pause)
}

/// The container's tasks are gone.
#[derive(Debug, thiserror::Error)]
#[error("{0} was stopped or restarted on this host, or ended by itself, while it was being moved")]
pub struct Ended(pub String);

/// Runs `work` until it is done or the container's first process ends. `work` is dropped then, so it must leave behind
/// only what its owner can undo. A stop would else be noticed only by a later step, which may come minutes later.
///
/// # Errors
/// Those of `work`, and [`Ended`].
pub async fn unless_ended<T>(
    name: &str,
    first: io::Result<PidFd>,
    work: impl Future<Output = Result<T, Cause>>,
) -> Result<T, Cause> {
    let ended = || Cause::from(Ended(name.to_owned()));
    let first = match first {
        Ok(first) => first,
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Err(ended()),
        Err(e) => return Err(e.into()),
    };
    let end = async {
        while !first.has_ended()? {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok::<_, io::Error>(())
    };
    tokio::select! {
        biased;
        result = work => result,
        looked = end => Err(looked.err().map_or_else(ended, Cause::from)),
    }
}

/// Fails if the engine describes the container otherwise than when the move was planned.
///
/// # Errors
/// An order was given, or the engine does not answer.
pub async fn check(engine: &dyn Engine, planned: &Container) -> Result<(), Cause> {
    compare(planned, &engine.describe(&planned.id).await?)
}

/// Begins to read what the engine's records say of a container that is frozen. That takes about a millisecond.
pub fn read(engine: &Arc<dyn Engine>, planned: &Container) -> JoinHandle<Option<Container>> {
    let (engine, id) = (Arc::clone(engine), planned.id.clone());
    spawn_blocking(move || engine.recorded(&id))
}

/// Fails if an order was given until the records were read. `is_plain` tells whether records alone described the
/// container when the move was planned.
///
/// # Errors
/// As [`check`].
pub async fn check_frozen(
    engine: &dyn Engine,
    planned: &Container,
    is_plain: bool,
    read: JoinHandle<Option<Container>>,
) -> Result<(), Cause> {
    match read.await? {
        Some(now) => compare(planned, &now),
        // It may not run any more, as far as the engine knows. Rarely could the records not be read.
        None if is_plain => check(engine, planned).await,
        None => Ok(()),
    }
}

/// Returns what the user has ordered since the move was decided: `None` if nothing. Looks at the original just before
/// it is removed. `signals` are those that waited when the copy was compared.
pub async fn find_late(
    engine: &Arc<dyn Engine>,
    planned: &Container,
    is_plain: bool,
    cgroup: &Cgroup,
    signals: &BTreeSet<(i32, u64)>,
) -> Option<String> {
    let recorded = if is_plain { read(engine, planned).await.ok().flatten() } else { None };
    let now = match recorded {
        Some(now) => Ok(now),
        None => engine.inspect(&planned.id).await,
    };
    match now {
        Err(engine::Error::NoSuchContainer { .. }) => return Some("removed".to_owned()),
        // What the engine does not tell is no order.
        Err(_) => {}
        Ok(now) => {
            if let Some(what) = change(planned, &now) {
                return Some(what);
            }
        }
    }
    if matches!(cgroup.is_populated(), Ok(false)) {
        return Some("stopped or killed".to_owned());
    }
    let arrived = sent_signals(cgroup).difference(signals).next().is_some();
    arrived.then(|| "sent a signal".to_owned())
}

/// Returns the signals that were sent to the frozen processes of a container and wait. The copy has those that waited when it
/// was made.
#[must_use]
pub fn sent_signals(cgroup: &Cgroup) -> BTreeSet<(i32, u64)> {
    let pids = cgroup.pids().unwrap_or_default();
    pids.into_iter().map(|pid| (pid, procfs::sent_signals(pid))).collect()
}

fn compare(planned: &Container, now: &Container) -> Result<(), Cause> {
    let Some(what) = change(planned, now) else { return Ok(()) };
    let is_pause = now.state == State::Paused;
    Err(Ordered { container: planned.name.clone(), what, is_pause }.into())
}

/// Returns what has become of a container by an order.
fn change(planned: &Container, now: &Container) -> Option<String> {
    let what = if now.name != planned.name {
        format!("renamed to {}", now.name)
    } else if restart_policy(now) != restart_policy(planned) {
        format!("given the restart policy {}", restart_policy(now).0)
    } else if now.state != planned.state {
        format!("made {}", state(&now.state))
    } else if networks(now) != networks(planned) {
        "connected to other networks".to_owned()
    } else {
        return None;
    };
    Some(what)
}

fn state(state: &State) -> &str {
    match state {
        State::Running => "running",
        State::Paused => "paused",
        State::Other(word) => word,
        State::Unknown => "something else",
    }
}

/// Records and the engine's own description may leave a default out or name it.
fn restart_policy(container: &Container) -> (&str, u64) {
    match container.restart.name.as_str() {
        "" => ("no", 0),
        name => (name, container.restart.maximum_retries),
    }
}

fn networks(container: &Container) -> BTreeSet<&str> {
    container.networks.iter().map(|network| network.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use engine::inspect::RestartPolicy;

    use super::*;

    #[test]
    fn each_order_is_named() {
        let planned =
            Container { name: "web".to_owned(), state: State::Running, ..Container::default() };
        compare(&planned, &Container { memory_in_use: 7, ..planned.clone() }).unwrap();
        let renamed = Container { name: "shop".to_owned(), ..planned.clone() };
        let always = RestartPolicy { name: "always".to_owned(), maximum_retries: 0 };
        let rearmed = Container { restart: always, ..planned.clone() };
        let paused = Container { state: State::Paused, ..planned.clone() };
        for (now, word) in [(renamed, "shop"), (rearmed, "always"), (paused, "paused")] {
            let cause = compare(&planned, &now).unwrap_err();
            let told = cause.to_string();
            assert!(told.starts_with("web was") && told.contains(word), "{told}");
            assert_eq!(is_pause(&cause), word == "paused");
        }
    }
}
