//! A service as systemd has it.

use std::path::PathBuf;

use crate::manager::{Manager, SERVICE, UNIT};
use crate::{Error, UnitName};

/// A command of a service as D-Bus has it: program, arguments, whether failure is ignored, four times, and how it ended.
type Command = (String, Vec<String>, bool, u64, u64, u64, u64, u32, i32, i32);

/// What depends on a service, by the names of units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dependents {
    /// Units that go down together with it.
    pub bound: Vec<String>,
    /// Units that need it to be started.
    pub required: Vec<String>,
    /// Units that start it when something happens: timers, sockets, paths.
    pub triggers: Vec<String>,
}

/// A service as systemd has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// Whether its settings could be read: `loaded`, `not-found`, `masked`.
    pub load: String,
    /// What it does: `active`, `inactive`, `failed`, `activating` and others.
    pub state: String,
    /// How systemd hears that it is started: `notify`, `simple` and others.
    pub kind: String,
    /// Whether processes of the unit manage their control groups themselves.
    pub delegates: bool,
    /// When systemd starts it again: `no`, `always` and others.
    pub restart: String,
    /// The main process; 0 if there is none.
    pub main: u32,
    /// Its control group, from the root of the hierarchy; empty if there is none.
    pub cgroup: String,
    /// The command lines that start it.
    pub start: Vec<Vec<String>>,
    /// The file of its settings.
    pub fragment: PathBuf,
    /// The file from which these were generated; empty if they were not.
    pub source: PathBuf,
    /// Files with further settings.
    pub drop_ins: Vec<PathBuf>,
    /// What depends on it.
    pub dependents: Dependents,
    /// Whether the last attempt to start it was refused by an assertion.
    pub is_start_refused: bool,
}

/// Why a service is none that moves together with its container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsuitable {
    /// systemd has no such unit.
    #[error("its settings are {0}")]
    NotLoaded(String),
    /// It hears of its start by other means.
    #[error("it has Type={0}, and only Type=notify can be told of a container that was moved")]
    Kind(String),
    /// systemd manages its control groups.
    #[error("it has no Delegate=yes, which a container in its control group needs")]
    NoDelegate,
    /// It is not running.
    #[error("it is {0}")]
    NotActive(String),
    /// Its main process is another one.
    #[error("its main process is not the monitor of the container")]
    OtherMain,
    /// The container is elsewhere.
    #[error("the container is not in its control group (--cgroups=split)")]
    OtherCgroup,
    /// A socket unit keeps connections for it.
    #[error("{0} holds its sockets")]
    Socket(String),
}

impl Unit {
    pub(crate) async fn read(manager: &Manager, name: &UnitName) -> Result<Self, Error> {
        let object = manager.object(name).await?;
        macro_rules! property {
            ($interface:expr, $name:literal) => {
                manager.property(&object, $interface, $name).await?
            };
        }
        let commands: Vec<Command> = property!(SERVICE, "ExecStart");
        let drop_ins: Vec<String> = property!(UNIT, "DropInPaths");
        let fragment: String = property!(UNIT, "FragmentPath");
        let source: String = property!(UNIT, "SourcePath");
        let asserted_at: u64 = property!(UNIT, "AssertTimestampMonotonic");
        let is_asserted: bool = property!(UNIT, "AssertResult");
        Ok(Self {
            load: property!(UNIT, "LoadState"),
            state: property!(UNIT, "ActiveState"),
            kind: property!(SERVICE, "Type"),
            delegates: property!(SERVICE, "Delegate"),
            restart: property!(SERVICE, "Restart"),
            main: property!(SERVICE, "MainPID"),
            cgroup: property!(SERVICE, "ControlGroup"),
            start: commands.into_iter().map(|command| command.1).collect(),
            fragment: fragment.into(),
            source: source.into(),
            drop_ins: drop_ins.into_iter().map(PathBuf::from).collect(),
            dependents: Dependents {
                bound: property!(UNIT, "BoundBy"),
                required: property!(UNIT, "RequiredBy"),
                triggers: property!(UNIT, "TriggeredBy"),
            },
            is_start_refused: asserted_at > 0 && !is_asserted,
        })
    }

    /// Returns whether nothing of it runs, and nothing is about to.
    #[must_use]
    pub fn is_down(&self) -> bool {
        matches!(self.state.as_str(), "inactive" | "failed")
    }

    /// Checks that a container can be run by it: that systemd can be told of one that it has not started.
    ///
    /// # Errors
    /// [`Unsuitable`].
    pub fn check_settings(&self) -> Result<(), Unsuitable> {
        if self.load != "loaded" {
            return Err(Unsuitable::NotLoaded(self.load.clone()));
        }
        if self.kind != "notify" {
            return Err(Unsuitable::Kind(self.kind.clone()));
        }
        if !self.delegates {
            return Err(Unsuitable::NoDelegate);
        }
        match self.dependents.triggers.iter().find(|unit| unit.ends_with(".socket")) {
            Some(socket) => Err(Unsuitable::Socket(socket.clone())),
            None => Ok(()),
        }
    }

    /// Checks that it runs a container whose monitor has this process ID and whose processes are in this control group
    /// (`/proc/PID/cgroup`).
    ///
    /// # Errors
    /// [`Unsuitable`].
    pub fn check_runs(&self, monitor: i32, cgroup: &str) -> Result<(), Unsuitable> {
        self.check_settings()?;
        if self.state != "active" {
            return Err(Unsuitable::NotActive(self.state.clone()));
        }
        if u32::try_from(monitor).ok() != Some(self.main) || self.main <= 1 {
            return Err(Unsuitable::OtherMain);
        }
        let below = cgroup.strip_prefix(&self.cgroup).unwrap_or_default();
        if self.cgroup.len() > 1 && below.starts_with('/') {
            Ok(())
        } else {
            Err(Unsuitable::OtherCgroup)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quadlet() -> Unit {
        Unit {
            load: "loaded".into(),
            state: "active".into(),
            kind: "notify".into(),
            delegates: true,
            main: 7,
            cgroup: "/system.slice/web.service".into(),
            ..Unit::default()
        }
    }

    const INSIDE: &str = "/system.slice/web.service/libpod-payload-1";

    #[test]
    fn a_unit_of_quadlet_runs_its_container() {
        assert_eq!(quadlet().check_runs(7, INSIDE), Ok(()));
    }

    #[test]
    fn others_are_told_apart() {
        type Change = fn(&mut Unit);
        let others: [(Change, Unsuitable); 6] = [
            (|u| u.load = "masked".into(), Unsuitable::NotLoaded("masked".into())),
            (|u| u.kind = "simple".into(), Unsuitable::Kind("simple".into())),
            (|u| u.delegates = false, Unsuitable::NoDelegate),
            (|u| u.state = "failed".into(), Unsuitable::NotActive("failed".into())),
            (|u| u.main = 8, Unsuitable::OtherMain),
            (
                |u| u.dependents.triggers = vec!["web.timer".into(), "web.socket".into()],
                Unsuitable::Socket("web.socket".into()),
            ),
        ];
        for (change, unsuitable) in others {
            let mut unit = quadlet();
            change(&mut unit);
            assert_eq!(unit.check_runs(7, INSIDE), Err(unsuitable));
        }
        for outside in
            ["/system.slice/web.service", "/system.slice/web.service2/x", "/machine.slice/x"]
        {
            assert_eq!(quadlet().check_runs(7, outside), Err(Unsuitable::OtherCgroup), "{outside}");
        }
        let nowhere = Unit { cgroup: String::new(), ..quadlet() };
        assert_eq!(nowhere.check_runs(7, INSIDE), Err(Unsuitable::OtherCgroup));
    }
}
