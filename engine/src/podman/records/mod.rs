//! podman's records of a container, read into a [`Description`] and written from one.
//!
//! podman keeps a `ContainerConfig` in its database (`libpod/container_config.go`), an OCI configuration in
//! the container's bundle, and the state of its networks. It imports the same three and accepts everything in them; its
//! decoder takes keys in capitals, too. So a destination never passes on what a peer wrote: it writes all three by itself.
//!
//! A source makes sure that nothing is lost on the way. It reads its records, writes them again, and names every
//! difference.

mod container_config;
mod oci_spec;
mod roundtrip;
mod volume_mounts;

#[cfg(test)]
mod tests;

pub(super) use roundtrip::is_zero;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::host_info::volume_data;
use super::{Error, Info};
use crate::Described;
use crate::description::Description;

/// The configuration, the OCI configuration and the networks' state of a container, as podman writes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Records {
    /// podman's `ContainerConfig`.
    pub(super) config: Value,
    /// The OCI configuration by which the container was started.
    pub(super) spec: Value,
    /// The networks' state.
    pub(super) networks: Value,
}

/// Where this host's podman keeps a container's files, and what it runs.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The container's own directory, below podman's.
    pub(super) userdata: PathBuf,
    /// The one that does not outlive a boot.
    pub(super) volatile: PathBuf,
    /// The init for containers that have one: the program itself, no symbolic link to it.
    pub(super) init: PathBuf,
    /// Where volumes are kept.
    volumes: PathBuf,
    /// What conmon runs when the container has ended, for podman before 5.1.
    pub(super) cleanup: Vec<String>,
    /// Whether the container's cgroup is made below that of the podman which makes it (`--cgroups=split`).
    pub(super) is_split: bool,
}

/// Where podman looks for its init (`containers.conf(5)`, `helper_binaries_dir`).
const INIT: [&str; 5] = [
    "/usr/libexec/podman/catatonit",
    "/usr/local/libexec/podman/catatonit",
    "/usr/local/lib/podman/catatonit",
    "/usr/lib/podman/catatonit",
    "/usr/bin/catatonit",
];

/// Settings of a container with secrets, and the mount that goes with them.
const SECRETS: [&str; 3] = ["secrets", "secret_env", "storage.mounts=\"/run/secrets\""];

impl Place {
    /// Returns the place of a container on this host.
    pub(super) fn of(info: &Info, id: &str, cleanup: Vec<String>) -> Self {
        Self {
            userdata: info.userdata(id),
            volatile: info.volatile_userdata(id),
            init: init().unwrap_or_else(|| INIT[0].into()),
            volumes: info.volume_root.clone(),
            cleanup,
            is_split: false,
        }
    }

    /// Returns the place with a cgroup below that of the podman which makes the container, or without.
    pub(super) fn split(self, is_split: bool) -> Self {
        Self { is_split, ..self }
    }

    /// Returns where the files of a volume are.
    pub(super) fn volume_data(&self, name: &str) -> PathBuf {
        volume_data(&self.volumes, name)
    }
}

/// Returns the program that is process 1 of containers with `--init` on this host, if it has it.
pub(super) fn init() -> Option<PathBuf> {
    INIT.into_iter().map(Path::new).find(|path| path.is_file()).map(program)
}

/// Returns the program that a path leads to. Where podman finds its init, Debian has a symbolic link. A
/// runtime follows it; CRIU would mount the link itself, and fail (`__do_bind_mount_v2` in
/// `criu/mount-v2.c`).
fn program(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

impl Records {
    /// Reads three texts.
    ///
    /// # Errors
    /// [`Error::Parse`] for what is not JSON.
    pub(super) fn parse(config: &[u8], spec: &[u8], networks: &[u8]) -> Result<Self, Error> {
        let read = |what: &str, text: &[u8]| {
            let fail = |source| Error::Parse { what: what.to_owned(), source };
            serde_json::from_slice(text).map(without_nulls).map_err(fail)
        };
        Ok(Self {
            config: read("the container's configuration", config)?,
            spec: read("the container's OCI configuration", spec)?,
            networks: read("the container's network status", networks)?,
        })
    }

    /// Describes the container, and names what cannot be described. `place` is that of this host.
    ///
    /// # Errors
    /// [`Error::Parse`] when a setting does not have the type that podman gives it.
    pub(super) fn describe(&self, place: &Place) -> Result<Described, Error> {
        let fail = |source| Error::Parse { what: "the container's settings".into(), source };
        let mut description = Description::default();
        container_config::read(&self.config, &self.networks, &mut description).map_err(fail)?;
        let mut spec = self.spec.clone();
        roundtrip::remove_own_files(&mut spec, place);
        volume_mounts::take(&mut spec, &mut description.storage.volumes, place);
        oci_spec::read(&spec, &mut description).map_err(fail)?;
        let again = Self::write(&description, place);
        let mut lost = roundtrip::lost_between(self, &again, place);
        if let Err(invalid) = description.validate() {
            lost.insert(roundtrip::by_option(format!("{}={}", invalid.setting, invalid.value)));
        }
        let (secrets, lost): (BTreeSet<_>, BTreeSet<_>) =
            lost.into_iter().partition(|setting| SECRETS.contains(&setting.as_str()));
        Ok(Described { description, lost, has_secrets: !secrets.is_empty() })
    }

    /// Writes the records of a container. Each path in them is of `place`, or of a mount of the host's.
    pub(super) fn write(description: &Description, place: &Place) -> Self {
        Self {
            config: without_nulls(container_config::write(description, place)),
            spec: without_nulls(oci_spec::write(description, place)),
            networks: without_nulls(container_config::write_networks(
                &description.connectivity.networks,
            )),
        }
    }
}

/// Returns a value without what Go writes for an absent one.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(_, value)| !value.is_null());
            kept.map(|(key, value)| (key, without_nulls(value))).collect()
        }
        Value::Array(list) => list.into_iter().map(without_nulls).collect(),
        other => other,
    }
}
