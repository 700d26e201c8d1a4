//! The systemd unit of a container that is to be moved.

use std::fs;
use std::path::{Path, PathBuf};

use engine::inspect::Container;
use protocol::message::SERVICES;
use protocol::wire::Connection;
use services::{Guard, Manager, Unit, UnitName};
use state::blocker::Blocker;
use state::cause::{Cause, chain};
use state::journal::{Journal, Record};
use tokio::task::block_in_place;

use crate::offered_service::{OfferedService, OfferedUnitFile};
use crate::request::UnitPolicy;

/// The code of the blocker that stands for a unit.
pub const CODE: &str = "service-unit";
/// Settings that a container has from the unit which starts it: where its control group is, and the socket of systemd's that hears
/// when it has started. The destination's unit gives them anew.
pub const SETTINGS: [&str; 2] = ["cgroupsMode", "sdnotifySocket"];
/// The directory of Quadlet's files (podman-systemd.unit(5)).
pub const QUADLET: &str = "/etc/containers/systemd";
/// How Quadlet's files of containers end.
const CONTAINER: &str = ".container";
/// Most bytes of a file.
const LARGEST: u64 = 256 << 10;

/// A unit that is to run the container at the destination.
#[derive(Debug)]
pub struct PlannedService {
    /// What is offered.
    pub offered: OfferedService,
    /// What keeps the unit from starting another container here.
    pub guard: Guard,
    /// What will differ on this host, for people.
    pub warnings: Vec<String>,
    manager: Manager,
}

/// Looks at the unit `name`, which runs a container. Returns what stands in the way if it cannot move along.
///
/// # Errors
/// A file of the unit cannot be read.
pub async fn look(
    container: &Container,
    name: &str,
    policy: UnitPolicy,
    connection: &Connection,
) -> Result<Result<PlannedService, Blocker>, Cause> {
    let refused = |reason: String| {
        let container = &container.name;
        let message = format!(
            "{container} is run by {name}, which cannot move along: {reason}; it would start another {container} here \
             after the move; stop the unit, start {container} without it, and move it then"
        );
        Ok(Err(Blocker::new(CODE, message)))
    };
    if policy == UnitPolicy::Refuse {
        return refused("that was not asked for (--unit)".to_owned());
    }
    let Ok(unit_name) = name.parse::<UnitName>() else {
        return refused("its name is none of a service".to_owned());
    };
    let manager = match Manager::connect().await {
        Ok(manager) => manager,
        Err(e) => return refused(chain(&e)),
    };
    let unit = match manager.unit(&unit_name).await {
        Ok(unit) => unit,
        Err(e) => return refused(chain(&e)),
    };
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", container.pid)).unwrap_or_default();
    let cgroup = cgroups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    if let Err(e) = unit.check_runs(container.monitor_pid, cgroup) {
        return refused(e.to_string());
    }
    if !connection.has(SERVICES) {
        return refused("the agent of the destination is of an earlier version".to_owned());
    }
    let files = match policy {
        UnitPolicy::Carry => match files(&unit)? {
            Some(files) => files,
            None => {
                return refused(format!(
                    "it is not made from a file of Quadlet below {QUADLET}, so it cannot be carried (--unit carry)"
                ));
            }
        },
        _ => Vec::new(),
    };
    Ok(Ok(PlannedService {
        warnings: warnings(name, &unit),
        offered: OfferedService { unit: unit_name.clone(), start: unit.start, files },
        guard: Guard::of(unit_name),
        manager,
    }))
}

/// Reads the files that make a unit of Quadlet; `None` for one that is made otherwise.
fn files(unit: &Unit) -> Result<Option<Vec<OfferedUnitFile>>, Cause> {
    let is_source = unit.source.parent() == Some(Path::new(QUADLET))
        && unit.source.to_string_lossy().ends_with(CONTAINER);
    if !is_source {
        return Ok(None);
    }
    block_in_place(|| {
        let mut paths = vec![unit.source.clone()];
        let mut directory = unit.source.clone().into_os_string();
        directory.push(".d");
        let directory = PathBuf::from(directory);
        if directory.is_dir() {
            for entry in fs::read_dir(&directory)? {
                paths.extend(
                    Some(entry?.path())
                        .filter(|path| path.extension().is_some_and(|e| e == "conf")),
                );
            }
        }
        paths.sort();
        paths.iter().map(|path| file(path)).collect::<Result<Vec<_>, _>>().map(Some)
    })
}

/// A file of the unit is none that can be sent.
#[derive(Debug, thiserror::Error)]
#[error("{0} is too large for a file of a unit")]
struct TooLarge(PathBuf);

fn file(path: &Path) -> Result<OfferedUnitFile, Cause> {
    if fs::metadata(path)?.len() > LARGEST {
        return Err(TooLarge(path.to_owned()).into());
    }
    let below = path.strip_prefix(QUADLET)?;
    Ok(OfferedUnitFile {
        path: below.to_string_lossy().into_owned(),
        content: fs::read_to_string(path)?,
    })
}

/// Names what depends on the unit and stays here.
fn warnings(name: &str, unit: &Unit) -> Vec<String> {
    let mut warnings = Vec::new();
    let dependents = &unit.dependents;
    let targets = |unit: &&String| !unit.ends_with(".target");
    let list =
        |units: &[String]| units.iter().filter(targets).cloned().collect::<Vec<_>>().join(", ");
    for (units, what) in [
        (&dependents.bound, "stops on this host together with it"),
        (&dependents.required, "needs it on this host, and does not start any more"),
        (&dependents.triggers, "starts it on this host, and fails from now on"),
    ] {
        let units = list(units);
        if !units.is_empty() {
            warnings.push(format!("{name} goes with its container; {units} {what}"));
        }
    }
    warnings
}

impl PlannedService {
    /// Keeps the unit from starting another container here, whatever happens to this one.
    ///
    /// # Errors
    /// The journal or the guard cannot be written, or systemd does not take it.
    pub async fn guard(&self, journal: &mut Journal, destination: &str) -> Result<(), Cause> {
        let unit = self.guard.unit().to_string();
        block_in_place(|| journal.append(&Record::GuardedUnit { unit }))?;
        Ok(self.guard.raise(&self.manager, &format!("moved to {destination}")).await?)
    }

    /// Has the unit be as it was.
    ///
    /// # Errors
    /// The guard stays.
    pub async fn put_back(&self) -> Result<(), Cause> {
        Ok(self.guard.lower(&self.manager).await?)
    }

    /// Waits until systemd knows that the unit is down, whose container was removed.
    ///
    /// # Errors
    /// It does not go down.
    pub async fn settle(&self) -> Result<(), Cause> {
        Ok(self.guard.settle(&self.manager).await?)
    }

    /// Tells the user what stays here.
    #[must_use]
    pub fn kept(&self, destination: &str) -> String {
        let (unit, path) = (self.guard.unit(), self.guard.path().display());
        format!(
            "{unit} of this host does not start any more, also not at boot, since its container runs at {destination}; \
             that ends when the container comes back, or by removing {path} and systemctl daemon-reload"
        )
    }
}

/// Has the unit of a journal be as it was.
///
/// # Errors
/// The guard stays, or systemd cannot be reached.
pub async fn put_back(unit: &str) -> Result<(), Cause> {
    let guard = Guard::of(unit.parse()?);
    Ok(guard.lower(&Manager::connect().await?).await?)
}

/// Waits until the unit of a journal is down, whose container was removed. One whose container has come home is left alone.
///
/// # Errors
/// It does not go down, or systemd cannot be reached.
pub async fn settle(unit: &str) -> Result<(), Cause> {
    let guard = Guard::of(unit.parse()?);
    if !guard.is_up() {
        return Ok(());
    }
    Ok(guard.settle(&Manager::connect().await?).await?)
}
