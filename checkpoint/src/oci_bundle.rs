//! An OCI bundle's `config.json`, as far as a migration needs it
//! (<https://github.com/opencontainers/runtime-spec/blob/main/config.md>).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Largest `config.json` that is read, in bytes.
const MOST: u64 = 8 << 20;

/// A bundle could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not an OCI configuration.
    #[error("{path} is not an OCI configuration")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// A bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Its directory.
    pub dir: PathBuf,
    /// The root file system.
    pub root: PathBuf,
    /// What is mounted on `/dev/shm`, when it comes from the host.
    pub shm: Option<PathBuf>,
    /// The path of its network namespace.
    pub netns: Option<PathBuf>,
    /// The cgroup as the engine asked for it: a path below the cgroup mount, or with systemd
    /// `SLICE:PREFIX:NAME`.
    pub cgroups_path: Option<String>,
    /// Whether it has a user namespace.
    pub user_namespace: bool,
    /// Stages for which it has hooks.
    pub hooks: Vec<String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

impl Bundle {
    /// Reads `config.json` in a bundle's directory.
    ///
    /// # Errors
    /// [`Error`]; files above 8 MiB count as no configuration.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("config.json");
        let mut text = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MOST).read_to_end(&mut text))
            .map_err(|source| Error::Read { path: path.clone(), source })?;
        Self::parse(dir, &text).map_err(|source| Error::Parse { path, source })
    }

    /// Reads the text of a `config.json` that belongs into `dir`.
    ///
    /// # Errors
    /// When it is not JSON of that form.
    pub fn parse(dir: &Path, text: &[u8]) -> Result<Self, serde_json::Error> {
        let spec: Spec = serde_json::from_slice(text)?;
        let linux = spec.linux.unwrap_or_default();
        let netns = linux.namespaces.iter().find(|ns| ns.kind == "network");
        Ok(Self {
            dir: dir.to_path_buf(),
            root: dir.join(spec.root.path),
            shm: spec
                .mounts
                .into_iter()
                .find(|mount| mount.destination == Path::new("/dev/shm"))
                .and_then(|mount| mount.source)
                .filter(|source| source.is_absolute()),
            netns: netns.and_then(|ns| ns.path.clone()),
            cgroups_path: linux.cgroups_path,
            user_namespace: linux.namespaces.iter().any(|ns| ns.kind == "user"),
            hooks: spec
                .hooks
                .into_iter()
                .filter(|(_, list)| list.as_array().is_some_and(|list| !list.is_empty()))
                .map(|(stage, _)| stage)
                .collect(),
            annotations: spec.annotations.unwrap_or_default(),
        })
    }

    /// Returns the writable layer of an overlay as containers/storage lays it out: `LAYER/diff` beside
    /// `LAYER/merged`, which is the root.
    #[must_use]
    pub fn upper(&self) -> Option<PathBuf> {
        (self.root.file_name()? == "merged").then(|| self.root.with_file_name("diff"))
    }
}

#[derive(Deserialize)]
struct Spec {
    root: Root,
    #[serde(default)]
    mounts: Vec<SpecMount>,
    #[serde(default)]
    hooks: BTreeMap<String, serde_json::Value>,
    annotations: Option<BTreeMap<String, String>>,
    linux: Option<Linux>,
}

#[derive(Deserialize)]
struct Root {
    path: PathBuf,
}

#[derive(Deserialize)]
struct SpecMount {
    destination: PathBuf,
    source: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
struct Linux {
    #[serde(rename = "cgroupsPath")]
    cgroups_path: Option<String>,
    #[serde(default)]
    namespaces: Vec<Namespace>,
}

#[derive(Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    path: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &[u8] = br#"{"ociVersion":"1.2.1","root":{"path":"/s/overlay/28/merged"},
      "mounts":[{"destination":"/proc","type":"proc","source":"proc"},
        {"destination":"/dev/shm","type":"bind","source":"/s/u/shm","options":["bind"]}],
      "annotations":{"io.container.manager":"libpod"},
      "process":{"args":["a"]},
      "hooks":{"prestart":[{"path":"/bin/h"}],"poststop":[]},
      "linux":{"cgroupsPath":"/libpod_parent/libpod-a7","namespaces":[{"type":"pid"},
        {"type":"network","path":"/run/netns/netns-71"}]}}"#;

    #[test]
    fn paths_come_from_the_bundle() {
        let bundle = Bundle::parse(Path::new("/s/u"), SPEC).unwrap();
        assert_eq!(bundle.upper().unwrap(), Path::new("/s/overlay/28/diff"));
        assert_eq!(bundle.shm.unwrap(), Path::new("/s/u/shm"));
        assert_eq!(bundle.netns.unwrap(), Path::new("/run/netns/netns-71"));
        assert_eq!(bundle.cgroups_path.unwrap(), "/libpod_parent/libpod-a7");
        assert_eq!(bundle.hooks, ["prestart"]);
        assert!(!bundle.user_namespace);
    }

    #[test]
    fn tmpfs_on_dev_shm_and_a_relative_root() {
        let spec = br#"{"root":{"path":"rootfs"},"mounts":[{"destination":"/dev/shm",
            "type":"tmpfs","source":"shm"}]}"#;
        let bundle = Bundle::parse(Path::new("/b"), spec).unwrap();
        assert_eq!((bundle.root.as_path(), bundle.shm.as_ref()), (Path::new("/b/rootfs"), None));
        assert_eq!(bundle.upper(), None);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "{}", "[]", "{\"root\":7}", "nul"] {
            assert!(Bundle::parse(Path::new("/b"), text.as_bytes()).is_err());
        }
        for cut in 0..SPEC.len() {
            assert!(Bundle::parse(Path::new("/b"), &SPEC[..cut]).is_err());
        }
    }
}
