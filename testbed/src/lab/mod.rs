//! A lab: hosts on one network, with the product's programs, podman and test images.

pub(crate) mod cgroup;
pub(crate) mod claim;
mod diagnosis;
mod migrate;
mod start;
pub mod storage_template;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::host::host_process::HostProcess;
use crate::host::namespaces::Namespaces;
use crate::host::{self, Host};
use crate::subprocess;
use crate::switch;
use claim::{Claim, Places};

pub use migrate::{Attempt, FlowCount, MemoryFigures, MigrationReport, NewAddress, Step};
pub use start::LabBuilder;

/// The environment variable with the name of the lab that `testbed up` leaves running. The default is `standing`;
/// other names allow several such labs.
pub const NAME_VARIABLE: &str = "NETMIG_TESTBED_LAB";

/// Returns the name of the standing lab.
pub(crate) fn standing_name() -> Result<String> {
    let name = std::env::var(NAME_VARIABLE).unwrap_or_else(|_| "standing".to_owned());
    host::check_name(&name)?;
    Ok(name)
}

/// An OCI runtime for the hosts' podman.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// crun.
    #[default]
    Crun,
    /// runc.
    Runc,
}

impl Runtime {
    /// Both runtimes.
    pub const ALL: [Self; 2] = [Self::Crun, Self::Runc];

    /// Returns the name, which is also that of the program.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crun => "crun",
            Self::Runc => "runc",
        }
    }
}

/// The stored state of a running lab, by which other programs find it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct State {
    hosts: Vec<(String, i32)>,
    switch: i32,
    runtime: Runtime,
}

/// The time limit for a killed process 1 to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// What ends the lab.
#[derive(Debug)]
enum Owner {
    /// The drop of this value.
    Us { claim: Claim, children: Mutex<Vec<Child>> },
    /// The command `testbed down`.
    Standing(Places),
}

/// A running lab. Dropping it ends a lab that this program has started.
#[derive(Debug)]
pub struct Lab {
    owner: Owner,
    hosts: Vec<Host>,
    switch: Namespaces,
    runtime: Runtime,
    servers: Mutex<BTreeMap<String, HostProcess>>,
    /// The pairs of source and destination that have been paired.
    pairs: Mutex<BTreeSet<(String, String)>>,
}

impl Lab {
    /// Starts a lab of the named hosts with the default settings. The first host has the address 192.0.2.1.
    ///
    /// # Errors
    /// See [`LabBuilder::start`].
    pub fn start<S: AsRef<str>>(hosts: &[S]) -> Result<Self> {
        LabBuilder::new(hosts).start()
    }

    /// Returns the lab that `testbed up` left running.
    ///
    /// # Errors
    /// No such lab runs.
    pub fn standing() -> Result<Self> {
        let places = Places::of(&standing_name()?)?;
        if !claim::is_alive(&places)? {
            return Err(Error::Refused(
                "no lab is up; start one with: cargo testbed up".to_owned(),
            ));
        }
        let path = places.run.join("lab.json");
        let state: State = fs::read(&path)
            .and_then(|text| serde_json::from_slice(&text).map_err(Into::into))
            .context(|| format!("reading {}", path.display()))?;
        let mut hosts = Vec::new();
        for (number, (name, init)) in (1..).zip(&state.hosts) {
            let cgroup = places.cgroup.join(name);
            // The process ID alone might belong to another process by now.
            if !cgroup::processes(&cgroup).contains(init) {
                return Err(Error::Refused(format!(
                    "host {name} of the lab has died; end it with: cargo testbed down"
                )));
            }
            hosts.push(Host::new(name, number, *init, &cgroup, &places.disk.join(LOGS))?);
        }
        let switch = switch_namespaces(state.switch, &places.cgroup)?;
        Ok(Self {
            owner: Owner::Standing(places),
            hosts,
            switch,
            runtime: state.runtime,
            servers: Mutex::default(),
            pairs: Mutex::default(),
        })
    }

    /// Returns the host with this name.
    ///
    /// # Errors
    /// The lab has no such host.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.hosts.iter().find(|host| host.name() == name).ok_or_else(|| {
            let names: Vec<&str> = self.hosts.iter().map(Host::name).collect();
            Error::Refused(format!("no host {name} in the lab (there are: {})", names.join(", ")))
        })
    }

    /// Returns all hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Returns the runtime of the hosts' podman.
    pub fn runtime(&self) -> Runtime {
        self.runtime
    }

    /// Returns the name of the lab, which is unique among running labs.
    pub fn id(&self) -> &str {
        &self.places().id
    }

    fn places(&self) -> &Places {
        match &self.owner {
            Owner::Us { claim, .. } => &claim.places,
            Owner::Standing(places) => places,
        }
    }

    /// Returns the process IDs of the lab in this machine's PID namespace.
    pub fn processes(&self) -> Vec<i32> {
        cgroup::processes(&self.places().cgroup)
    }

    /// Returns the lab's cgroup on this machine.
    pub fn cgroup(&self) -> &Path {
        &self.places().cgroup
    }

    /// Returns the lab's directory on disk.
    pub fn disk(&self) -> &Path {
        &self.places().disk
    }

    /// Returns the directory that every host has at `/lab`.
    pub fn share(&self) -> PathBuf {
        self.places().disk.join(SHARE)
    }

    /// Returns the directory with the logs of background programs.
    pub fn logs(&self) -> PathBuf {
        self.places().disk.join(LOGS)
    }

    /// Connects or disconnects a host's network cable. Its link gains or loses the carrier.
    ///
    /// # Errors
    /// There is no such host, or the kernel refused.
    pub fn set_cable(&self, host: &str, plugged: bool) -> Result<()> {
        switch::set_cable(&self.switch, self.host(host)?, plugged)
    }

    /// Kills every process of the lab and removes everything that it has.
    ///
    /// # Errors
    /// Something could not be removed; the next lab's start tries again.
    pub fn down(self) -> Result<()> {
        self.clear()
    }

    /// Kills every process of the lab and removes everything that it has, while other threads still refer to the lab.
    /// Their next operations fail.
    ///
    /// # Errors
    /// As for [`Lab::down`].
    pub fn clear(&self) -> Result<()> {
        let outcome = self.places().clear();
        // A process 1 does not end before the last process of its namespace is reaped, and this program has to reap
        // those that it has started there.
        self.servers().clear();
        let Owner::Us { children, .. } = &self.owner else { return outcome };
        let mut children = children.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut ended = Ok(());
        for mut child in children.drain(..) {
            if !subprocess::ends_within(&mut child, END_LIMIT) {
                ended = Err(Error::Refused(format!(
                    "process {} of the lab {} is dead but not gone: a program on its host has not \
                     been waited for",
                    child.id(),
                    self.id()
                )));
            }
        }
        outcome.and(ended)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if matches!(self.owner, Owner::Us { .. })
            && let Err(error) = self.clear()
        {
            eprintln!("the lab {} is not quite gone: {}", self.id(), crate::error::chain(&error));
        }
    }
}

/// Removes labs without owner and returns their names.
///
/// # Errors
/// Something could not be removed.
pub fn sweep() -> Result<Vec<String>> {
    claim::sweep_all()
}

/// Removes every lab of this program, before the program exits by a signal.
pub fn clear_all() {
    claim::clear_ours();
}

/// Directory below a lab's own with what every host has at `/lab`.
const SHARE: &str = "share";
/// Directory below a lab's own with the logs of background programs.
const LOGS: &str = "logs";
/// The name of the switch's cgroup; no host may be called so.
const SWITCH: &str = "switch-";

fn switch_namespaces(pid: i32, cgroup: &Path) -> Result<Namespaces> {
    Namespaces::of(pid, &cgroup.join(SWITCH)).context(|| "opening the switch's network namespace")
}
