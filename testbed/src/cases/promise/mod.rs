//! The guarantees of the product in all circumstances: a container runs exactly once and keeps its connections.

mod concurrency;
mod engine_orders;
mod frozen;
mod full_storage;
mod homecoming;
mod hostile_orders;
mod kept_settings;
mod killed_staging;
mod late_exec;
mod leftovers;
pub(crate) mod long;
mod lost_copy;
mod opposite;
mod original;
pub(crate) mod rivals;
mod shared_kernel_state;
mod units;

use std::time::{Duration, Instant};

use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::container_state;
use crate::faults::observation::journals;
use crate::lab::Lab;
use crate::runner::Case;
use crate::slowdown;

/// The time limit for migrations to settle, with the timeout of another host.
const SETTLES: Duration = Duration::from_secs(60);
/// The time limit for a migration, or for a stage of it.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// The time between two checks.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Returns all lab tests of this area.
pub(super) fn cases() -> Vec<Case> {
    [
        concurrency::CASES,
        opposite::CASES,
        engine_orders::CASES,
        original::CASES,
        units::CASES,
        homecoming::CASES,
        frozen::CASES,
        hostile_orders::CASES,
        long::CASES,
        lost_copy::CASES,
        full_storage::CASES,
        shared_kernel_state::CASES,
        kept_settings::CASES,
        killed_staging::CASES,
        late_exec::CASES,
        leftovers::CASES,
    ]
    .concat()
}

/// Waits until a condition holds. `what` describes it in the error.
pub(crate) fn until(
    what: &str,
    limit: Duration,
    mut reached: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + slowdown::limit(limit);
    while !reached()? {
        ensure!(Instant::now() < deadline, "after {} s not yet: {what}", limit.as_secs());
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// Waits until no host has a journal.
pub(crate) fn settled(lab: &Lab) -> Result<()> {
    let none = || Ok(lab.hosts().iter().all(|host| journals(host).next().is_none()));
    until("no journal is left", SETTLES, none).map_err(|error| {
        let all = lab.hosts().iter().flat_map(journals).collect::<Vec<_>>();
        Error::Check(format!("{error}: {}", all.join("\n")))
    })
}

/// Returns the host on which a container runs. It is an error if that is not exactly one.
pub(super) fn home<'a>(lab: &'a Lab, id: &str) -> Result<&'a str> {
    match container_state::runs_on(lab, id)[..] {
        [one] => Ok(one),
        ref all => Err(Error::Check(format!("the container runs on {all:?}"))),
    }
}
