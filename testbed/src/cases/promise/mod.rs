//! What the product promises whatever else happens: one container, once, with its connections.

mod concurrency;
mod description;
mod frozen;
mod homecoming;
mod kernel;
pub(crate) mod long;
mod lost;
mod opposite;
mod original;
mod peers;
pub(crate) mod rivals;
mod room;
mod units;

use std::time::{Duration, Instant};

use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::container;
use crate::faults::moment::journals;
use crate::lab::Lab;
use crate::pace;
use crate::runner::Case;

/// How long whatever a migration has left to do may take, if a far end has to be waited for.
const SETTLES: Duration = Duration::from_secs(60);
/// How long a program that moves a container may take, or a moment may be away.
const LIMIT: Duration = Duration::from_secs(120);
/// Between two looks.
const GLANCE: Duration = Duration::from_millis(2);

/// All lab tests of this area.
pub(super) fn cases() -> Vec<Case> {
    [
        concurrency::CASES,
        opposite::CASES,
        original::CASES,
        units::CASES,
        homecoming::CASES,
        frozen::CASES,
        peers::CASES,
        long::CASES,
        lost::CASES,
        room::CASES,
        kernel::CASES,
        description::CASES,
    ]
    .concat()
}

/// Waits until something is so.
pub(super) fn until(
    what: &str,
    limit: Duration,
    mut reached: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + pace::patience(limit);
    while !reached()? {
        ensure!(Instant::now() < deadline, "after {} s not yet: {what}", limit.as_secs());
        std::thread::sleep(GLANCE);
    }
    Ok(())
}

/// Waits until no migration is under way or left on any host.
pub(super) fn settled(lab: &Lab) -> Result<()> {
    let none = || Ok(lab.hosts().iter().all(|host| journals(host).next().is_none()));
    until("no journal is left", SETTLES, none).map_err(|error| {
        let all = lab.hosts().iter().flat_map(journals).collect::<Vec<_>>();
        Error::Check(format!("{error}: {}", all.join("\n")))
    })
}

/// The one host on which a container runs.
pub(super) fn home<'a>(lab: &'a Lab, id: &str) -> Result<&'a str> {
    match container::runs_on(lab, id)[..] {
        [one] => Ok(one),
        ref all => Err(Error::Check(format!("the container runs on {all:?}"))),
    }
}
