//! podman's version and its configuration on this host (podman-info(1)).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::command::Overdue;
use super::{Error, Podman};

/// podman's version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// As it is printed, such as `5.8.6`.
    pub text: String,
    /// The first two numbers.
    pub number: (u32, u32),
}

/// podman's configuration on this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// podman's version.
    pub version: Version,
    /// Where images and containers are kept.
    pub graph_root: PathBuf,
    /// Where their state until the next boot is kept.
    pub run_root: PathBuf,
    /// Where podman keeps its own files: by default `libpod` below [`Info::graph_root`].
    pub static_dir: PathBuf,
    /// Where volumes are kept.
    pub volume_root: PathBuf,
    /// The storage driver.
    pub storage_driver: String,
    /// The name of the default OCI runtime.
    pub runtime: String,
    /// The default OCI runtime's program.
    pub runtime_path: PathBuf,
    /// conmon's program.
    pub conmon_path: PathBuf,
    /// `systemd` or `cgroupfs`.
    pub cgroup_manager: String,
    /// `v1` or `v2`.
    pub cgroup_version: String,
    /// `netavark` or `cni`.
    pub network_backend: String,
    /// `sqlite` or `boltdb`.
    pub database: String,
    /// Whether podman runs without root.
    pub rootless: bool,
}

#[derive(Deserialize)]
struct RawVersion {
    #[serde(rename = "Client")]
    client: RawVersionNumber,
}

#[derive(Deserialize)]
struct RawVersionNumber {
    #[serde(rename = "Version")]
    version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawInfo {
    host: RawHost,
    store: RawStore,
    version: RawVersionNumber,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawHost {
    cgroup_manager: String,
    cgroup_version: String,
    conmon: RawProgram,
    oci_runtime: RawProgram,
    network_backend: String,
    database_backend: String,
    security: RawSecurity,
}

#[derive(Deserialize)]
struct RawProgram {
    #[serde(default)]
    name: String,
    path: PathBuf,
}

#[derive(Deserialize)]
struct RawSecurity {
    rootless: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawStore {
    graph_driver_name: String,
    graph_root: PathBuf,
    run_root: PathBuf,
    #[serde(default)]
    volume_path: Option<PathBuf>,
}

impl Version {
    fn parse(text: String) -> Self {
        let mut numbers = text.split(['.', '-']).map(|n| n.parse().unwrap_or(0));
        let number = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        Self { text, number }
    }
}

impl Info {
    /// Returns where podman keeps a container's lasting files, its OCI bundle among them.
    #[must_use]
    pub fn userdata(&self, id: &str) -> PathBuf {
        self.userdata_below(&self.graph_root, id)
    }

    /// Returns where podman keeps a container's files until the next boot.
    #[must_use]
    pub fn volatile_userdata(&self, id: &str) -> PathBuf {
        self.userdata_below(&self.run_root, id)
    }

    fn userdata_below(&self, root: &Path, id: &str) -> PathBuf {
        root.join(format!("{}-containers", self.storage_driver)).join(id).join("userdata")
    }
}

/// Returns where podman keeps the files of a volume (`newVolume` in `libpod/runtime_volume_common.go`).
pub(super) fn volume_data(root: &Path, name: &str) -> PathBuf {
    root.join(name).join("_data")
}

impl Podman {
    /// Asks podman for its version.
    ///
    /// # Errors
    /// [`Error`] when podman cannot be run or prints something else.
    pub async fn version(&self) -> Result<Version, Error> {
        let args = ["version", "--format", "json"];
        let text = self.run(&args, self.deadlines.query, Overdue::Kill).await?;
        parse_version(&text)
    }

    /// Returns podman's configuration: the one that is kept, else the cached one while it is valid
    /// ([`Podman::with_cache`]), else podman's answer.
    ///
    /// # Errors
    /// As [`Podman::version`].
    pub async fn info(&self) -> Result<Info, Error> {
        if let Some(info) = self.kept.get() {
            return Ok(info.clone());
        }
        if let Some(info) = self.read_cache() {
            return Ok(info);
        }
        // Before podman reads them: a change in between is noticed the next time.
        let sources = self.sources();
        let args = ["info", "--format", "json"];
        let text = self.run(&args, self.deadlines.query, Overdue::Kill).await?;
        let info = parse_info(&text)?;
        self.write_cache(sources, &info);
        Ok(info)
    }
}

fn parse_version(text: &[u8]) -> Result<Version, Error> {
    let raw: RawVersion = serde_json::from_slice(text)
        .map_err(|source| Error::Parse { what: "podman's version".into(), source })?;
    Ok(Version::parse(raw.client.version))
}

pub(super) fn parse_info(text: &[u8]) -> Result<Info, Error> {
    let RawInfo { host, store, version } = serde_json::from_slice(text)
        .map_err(|source| Error::Parse { what: "podman's information".into(), source })?;
    Ok(Info {
        version: Version::parse(version.version),
        static_dir: store.graph_root.join("libpod"),
        volume_root: store.volume_path.unwrap_or_else(|| store.graph_root.join("volumes")),
        graph_root: store.graph_root,
        run_root: store.run_root,
        storage_driver: store.graph_driver_name,
        runtime: host.oci_runtime.name,
        runtime_path: host.oci_runtime.path,
        conmon_path: host.conmon.path,
        cgroup_manager: host.cgroup_manager,
        cgroup_version: host.cgroup_version,
        network_backend: host.network_backend,
        database: host.database_backend,
        rootless: host.security.rootless,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = r#"{"host":{"cgroupManager":"cgroupfs","cgroupVersion":"v2",
      "conmon":{"package":"conmon_2.1.13","path":"/usr/bin/conmon","version":"2.1.13"},
      "databaseBackend":"sqlite","networkBackend":"netavark","idMappings":{"uidmap":null},
      "ociRuntime":{"name":"crun","path":"/usr/bin/crun","version":"crun version 1.28"},
      "security":{"rootless":false}},
      "store":{"graphDriverName":"overlay","graphRoot":"/var/lib/containers/storage",
      "runRoot":"/run/containers/storage"},"version":{"Version":"5.8.6"}}"#;

    #[test]
    fn information_is_read() {
        let info = parse_info(INFO.as_bytes()).unwrap();
        assert_eq!(info.version.number, (5, 8));
        assert_eq!(info.static_dir, PathBuf::from("/var/lib/containers/storage/libpod"));
        assert_eq!((info.runtime.as_str(), info.database.as_str()), ("crun", "sqlite"));
        for cut in 0..INFO.len() {
            assert!(parse_info(&INFO.as_bytes()[..cut]).is_err());
        }
    }

    #[test]
    fn versions_are_read() {
        let version = |v: &str| {
            let text = format!(r#"{{"Client":{{"APIVersion":"5","Version":"{v}"}}}}"#);
            parse_version(text.as_bytes()).unwrap().number
        };
        assert_eq!(version("5.8.6"), (5, 8));
        assert_eq!(version("6.0.0-dev"), (6, 0));
        assert_eq!(version("x"), (0, 0));
    }
}
