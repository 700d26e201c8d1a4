//! podman's configuration, kept in a file until something changes that it comes from.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Info, Podman};

/// Files and directories of which the configuration is made (containers.conf(5),
/// containers-storage.conf(5)).
const SOURCES: [&str; 7] = [
    "/usr/share/containers/containers.conf",
    "/usr/share/containers/containers.conf.d",
    "/usr/share/containers/storage.conf",
    "/etc/containers/containers.conf",
    "/etc/containers/containers.conf.d",
    "/etc/containers/storage.conf",
    "/etc/containers/storage.conf.d",
];
/// The same, below a user's directory: root has one, too.
const OWN_SOURCES: [&str; 3] =
    ["containers/containers.conf", "containers/containers.conf.d", "containers/storage.conf"];
/// Variables that hold the path of another such file.
const FURTHER: [&str; 4] = [
    "CONTAINERS_CONF",
    "CONTAINERS_CONF_OVERRIDE",
    "CONTAINERS_STORAGE_CONF",
    "CONTAINERS_STORAGE_CONF_OVERRIDE",
];
/// Variables that change it begin so.
const VARIABLES: [&str; 4] = ["CONTAINERS_", "STORAGE_", "XDG_", "PATH"];

#[derive(Serialize, Deserialize)]
struct Cached {
    sources: Vec<String>,
    info: Info,
}

impl Podman {
    /// Returns the cached configuration, if it still holds.
    pub(super) fn read_cache(&self) -> Option<Info> {
        let text = fs::read(self.cache.as_ref()?).ok()?;
        let cached: Cached = serde_json::from_slice(&text).ok()?;
        (cached.sources == self.sources()?).then_some(cached.info)
    }

    /// Writes the configuration to the cache; without one podman is asked again. So is a podman whose database is
    /// to be replaced: no file of its configuration changes when it is.
    pub(super) fn write_cache(&self, sources: Option<Vec<String>>, info: &Info) {
        if info.database != "sqlite" {
            return;
        }
        let (Some(path), Some(sources)) = (&self.cache, sources) else { return };
        let fresh = path.with_extension(std::process::id().to_string());
        let write = || -> std::io::Result<()> {
            let text = serde_json::to_vec(&Cached { sources, info: info.clone() })?;
            let mut options = fs::OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(&text)?;
            fs::rename(&fresh, path)
        };
        if let Err(error) = write() {
            // On a full disk it was made, and holds nothing.
            let _ = fs::remove_file(&fresh);
            tracing::debug!(path = %path.display(), %error, "podman's configuration is not kept");
        }
    }

    /// Identity of everything that podman's configuration is made of; `None` if podman is nowhere.
    pub(super) fn sources(&self) -> Option<Vec<String>> {
        let mut sources = vec![identity(&self.found()?)];
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let home = variable("XDG_CONFIG_HOME")
            .or_else(|| Some(variable("HOME")?.join(".config")))
            .unwrap_or_else(|| "/root/.config".into());
        let usual = SOURCES.into_iter().map(PathBuf::from);
        let own = OWN_SOURCES.into_iter().map(|path| home.join(path));
        let further = FURTHER.into_iter().filter_map(variable);
        for source in usual.chain(own).chain(further) {
            sources.push(identity(&source));
            let mut below: Vec<PathBuf> = fs::read_dir(&source)
                .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
                .unwrap_or_default();
            below.sort();
            sources.extend(below.iter().map(|path| identity(path)));
        }
        let relevant = |name: &str| VARIABLES.iter().any(|start| name.starts_with(start));
        let mut variables: Vec<String> = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
            .filter(|(name, _)| relevant(name))
            .map(|(name, value)| format!("{name}={}", value.to_string_lossy()))
            .collect();
        variables.sort();
        sources.extend(variables);
        Some(sources)
    }

    /// podman's program.
    fn found(&self) -> Option<PathBuf> {
        if self.program.components().count() > 1 {
            return Some(self.program.clone());
        }
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join(&self.program)).find(|p| p.is_file())
    }
}

/// What tells a file from one that was changed or replaced.
fn identity(path: &Path) -> String {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(meta) => format!(
            "{shown} {}:{} {} {}.{}",
            meta.dev(),
            meta.ino(),
            meta.len(),
            meta.ctime(),
            meta.ctime_nsec()
        ),
        Err(_) => format!("{shown} is not there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podman::database::tests::info;

    #[test]
    fn a_changed_program_makes_it_ask_again() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("podman");
        fs::write(&program, "1").unwrap();
        let podman = Podman::new(&program).with_cache(dir.path().join("engine.json"));
        assert_eq!(podman.read_cache(), None);
        let info = info(dir.path());
        podman.write_cache(podman.sources(), &info);
        assert_eq!(podman.read_cache(), Some(info));
        fs::write(&program, "12").unwrap();
        assert_eq!(podman.read_cache(), None);
        fs::write(dir.path().join("engine.json"), "{").unwrap();
        assert_eq!(podman.read_cache(), None);
    }

    #[test]
    fn a_podman_without_cache_is_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let podman = Podman::new("/nonexistent/podman");
        podman.write_cache(podman.sources(), &info(dir.path()));
        assert_eq!(podman.read_cache(), None);
    }
}
