//! Processes that have restricted themselves by Landlock (landlock(7)). CRIU does not carry such a restriction, so the container is
//! not moved, unless its user accepts the loss. It is looked at before anything is changed, and right before the interruption, when
//! the kernel begins to count further restrictions as well; that count is read when the container is frozen.

use checkpoint::cgroup::{self, Cgroup};
use checkpoint::landlock::{self, Found, RestrictionCount, Subject};
use engine::description::Description;
use state::blocker::Blocker;
use tokio::task::block_in_place;

use super::plan::Plan;
use crate::request::{Loss, Options};

/// The code of a container of which a process is restricted.
const RESTRICTED: &str = "landlock-restricted";
/// The code of a container of which a process may be restricted, which could not be found out.
const MAYBE_RESTRICTED: &str = "maybe-landlock";
/// Processes with this capability need not give up gaining privileges.
const CAP_SYS_ADMIN: &str = "CAP_SYS_ADMIN";

/// A process restricts itself while the container is being moved.
#[derive(Debug, thiserror::Error)]
pub enum RestrictedMeanwhile {
    /// A process was found.
    #[error("{0}")]
    Found(String),
    /// The kernel has counted it.
    #[error(
        "a process of {0} has restricted itself by Landlock, or tried to, while the container was being moved, and CRIU cannot \
         restore such a restriction; move it again, or with --accept-loss landlock"
    )]
    Counted(String),
}

/// Returns what stands in the way of a container of which a process is restricted, or may be. Blocks the calling thread.
///
/// # Errors
/// The processes in its cgroup cannot be read.
pub fn blocker(
    options: &Options,
    subject: &Subject<'_>,
    name: &str,
    cgroup: &Cgroup,
) -> Result<Option<Blocker>, cgroup::Error> {
    if options.accepted_losses.contains(&Loss::Landlock) {
        return Ok(None);
    }
    let found = landlock::find(subject, || cgroup.pids())?;
    Ok(found.map(|found| {
        let code = if found.is_certain { RESTRICTED } else { MAYBE_RESTRICTED };
        Blocker::new(code, message(name, &found))
    }))
}

fn message(container: &str, found: &Found) -> String {
    let Found { process, thread, name, is_certain } = found;
    let who = match process == thread {
        true => format!("process {process} ({name}) of {container}"),
        false => format!("thread {thread} ({name}) of process {process} of {container}"),
    };
    if *is_certain {
        format!(
            "{who} has restricted itself by Landlock, and CRIU cannot restore such a restriction; turn it off in the \
             program, or move the container without it by --accept-loss landlock"
        )
    } else {
        format!(
            "{who} may have restricted itself by Landlock, which could not be found out: CRIU cannot restore such a \
             restriction; if the program does not use Landlock, or may do without, move it with --accept-loss landlock"
        )
    }
}

/// Returns whether processes of a container may restrict themselves although they may gain privileges.
pub fn may_administer(description: &Description) -> bool {
    let capabilities = &description.process.capabilities;
    capabilities.bounding.iter().any(|one| one == CAP_SYS_ADMIN)
}

/// Notices processes that restrict themselves from now on.
#[derive(Debug, Default)]
pub struct LandlockWatch {
    count: Option<RestrictionCount>,
}

impl LandlockWatch {
    /// Begins to watch, and looks at the processes once more.
    ///
    /// # Errors
    /// [`RestrictedMeanwhile::Found`], or the processes in the container's cgroup cannot be read.
    pub fn begin(plan: &Plan, options: &Options) -> Result<Self, state::cause::Cause> {
        if options.accepted_losses.contains(&Loss::Landlock) || !landlock::is_available() {
            return Ok(Self::default());
        }
        let count = RestrictionCount::begin(plan.cgroup.path());
        if let Err(error) = &count {
            tracing::debug!("restrictions by Landlock are not counted: {error}");
        }
        let subject = Subject {
            shim: &plan.shim,
            first: plan.process.pid,
            may_administer: may_administer(&plan.offer.description),
        };
        let name = &plan.container.name;
        match block_in_place(|| landlock::find(&subject, || plan.cgroup.pids()))? {
            Some(found) => Err(RestrictedMeanwhile::Found(message(name, &found)).into()),
            None => Ok(Self { count: count.ok() }),
        }
    }

    /// Fails if a process of the container, which is frozen, has restricted itself since. Takes some microseconds.
    ///
    /// # Errors
    /// [`RestrictedMeanwhile::Counted`], also where the count cannot be read.
    pub fn check(self, name: &str) -> Result<(), RestrictedMeanwhile> {
        match self.count.map(|count| count.read()) {
            None | Some(Ok(0)) => Ok(()),
            Some(_) => Err(RestrictedMeanwhile::Counted(name.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_restricted_is_named() {
        let of = |thread, is_certain| {
            message("web", &Found { process: 7, thread, name: "worker".to_owned(), is_certain })
        };
        assert!(
            of(7, true).contains("process 7 (worker) of web has restricted itself by Landlock")
        );
        assert!(of(8, true).contains("thread 8 (worker) of process 7 of web has"));
        assert!(of(7, false).contains("may have restricted itself by Landlock"));
        for told in [of(7, true), of(7, false)] {
            assert!(told.contains("--accept-loss landlock"), "{told}");
        }
    }

    #[test]
    fn the_capability_is_seen_in_what_a_container_is_bounded_to() {
        let mut description = Description::default();
        assert!(!may_administer(&description));
        description.process.capabilities.bounding =
            vec!["CAP_KILL".to_owned(), CAP_SYS_ADMIN.to_owned()];
        assert!(may_administer(&description));
    }
}
