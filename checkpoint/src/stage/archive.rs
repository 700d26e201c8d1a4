//! The archive that podman imports: a checkpoint export without a checkpoint.
//!
//! The names are those of checkpointctl's `lib/metadata.go`. podman looks at the presence of
//! `checkpoint/inventory.img` before it calls the runtime, never at its content, and the shim
//! takes the images from elsewhere. The directories must be there, or the unpacking stops.

use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::podman::Metadata;

/// The directories that podman looks for.
const DIRECTORIES: [&str; 2] = ["checkpoint", "artifacts"];
/// Bytes at the beginning of every archive that are the same in all of them: the directories' headers.
pub(super) const BEGINNING: usize = 512 * DIRECTORIES.len();

/// The archive.
pub(super) fn build(metadata: &Metadata, log: &[u8], place: &Place) -> io::Result<Vec<u8>> {
    append(Vec::new(), metadata, log, place)
}

/// The [first bytes](BEGINNING) of any archive.
pub(super) fn beginning() -> io::Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    append_directories(&mut archive)?;
    let mut bytes = archive.into_inner()?;
    bytes.truncate(BEGINNING);
    Ok(bytes)
}

fn append_directories<W: Write>(archive: &mut Builder<W>) -> io::Result<()> {
    for dir in DIRECTORIES {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(0o700);
        header.set_size(0);
        archive.append_data(&mut header, dir, io::empty())?;
    }
    Ok(())
}

fn append<W: Write>(to: W, metadata: &Metadata, log: &[u8], place: &Place) -> io::Result<W> {
    let config = place.adapt(&metadata.config)?;
    let mut archive = Builder::new(to);
    append_directories(&mut archive)?;
    let spec = without_netns(&metadata.spec)?;
    let files: [(&str, &[u8]); 5] = [
        ("config.dump", &config),
        ("spec.dump", &spec),
        ("network.status", &metadata.network_status),
        ("ctr.log", log),
        ("checkpoint/inventory.img", &[]),
    ];
    for (name, content) in files {
        let mut header = Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content)?;
    }
    archive.into_inner()
}

/// Where this host's engine keeps a container's files.
pub(super) struct Place {
    /// The container's own directory, below the engine's.
    pub(super) userdata: PathBuf,
    /// What conmon runs when the container has ended, where podman keeps that on record.
    pub(super) cleanup: Vec<String>,
}

impl Place {
    /// podman's configuration with this host's paths. podman and conmon mount on, write to, unmount
    /// and run what stands there, as root: nothing of it may be the source's.
    fn adapt(&self, config: &[u8]) -> io::Result<Vec<u8>> {
        let mut config: Value = serde_json::from_slice(config)?;
        let Some(map) = config.as_object_mut() else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let shm = self.userdata.join("shm");
        let mut cleanup = self.cleanup.clone();
        let asked = map.get("exitCommand").and_then(Value::as_array);
        if asked.is_some_and(|asked| asked.iter().any(|word| word == "--rm")) {
            // podman wants the ID last.
            cleanup.insert(cleanup.len().saturating_sub(1), "--rm".into());
        }
        let mut set = |name: &str, value: Value| {
            // What is absent or empty stays so.
            if let Some(old) = map.get_mut(name)
                && !matches!(old, Value::Null)
                && *old != json!("")
                && *old != json!([])
            {
                *old = value;
            }
        };
        set("staticDir", json!(self.userdata));
        set("secretsPath", json!(self.userdata.join("secrets")));
        set("ShmDir", json!(shm));
        set("mounts", json!([shm]));
        set("logPath", json!(self.userdata.join("ctr.log")));
        set("exitCommand", json!(cleanup));
        // podman fills these in.
        set("conmonPidFile", json!(""));
        set("pid_file", json!(""));
        Ok(serde_json::to_vec(&config)?)
    }
}

/// The OCI configuration without the path of the source's network namespace: podman puts its own
/// in, but keeps this one on record, and complains of it once the container has stopped.
fn without_netns(spec: &[u8]) -> io::Result<Vec<u8>> {
    let mut spec: Value = serde_json::from_slice(spec)?;
    if let Some(namespaces) =
        spec.pointer_mut("/linux/namespaces").and_then(|list| list.as_array_mut())
    {
        for namespace in namespaces.iter_mut().filter_map(Value::as_object_mut) {
            if namespace.get("type").is_some_and(|kind| kind == "network") {
                namespace.remove("path");
            }
        }
    }
    Ok(serde_json::to_vec(&spec)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    fn place() -> Place {
        Place { userdata: "/u".into(), cleanup: vec!["podman".into(), "a7".into()] }
    }

    #[test]
    fn everything_podman_looks_for_is_there() {
        let config = br#"{"id":"a7","staticDir":"/etc","ShmDir":"/etc","mounts":["/etc"],
            "logPath":"/etc/cron.d/x","exitCommand":["/bin/sh","--rm","x"],"pid_file":"/etc/passwd",
            "secretsPath":null,"conmonPidFile":"","shmSize":65536000}"#;
        let metadata = Metadata {
            config: config.to_vec(),
            spec: br#"{"linux":{"namespaces":[{"path":"/n","type":"network"},{"path":"/p","type":"pid"}]}}"#
                .to_vec(),
            network_status: b"{}".to_vec(),
        };
        let bytes = append(Vec::new(), &metadata, b"a line\n", &place()).unwrap();
        assert_eq!(beginning().unwrap(), &bytes[..BEGINNING], "what podman got before");
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut entries = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().trim_end_matches('/').to_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            entries.insert(name, (entry.header().entry_type().is_dir(), content));
        }
        let names: Vec<&str> = entries.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "artifacts",
                "checkpoint",
                "checkpoint/inventory.img",
                "config.dump",
                "ctr.log",
                "network.status",
                "spec.dump"
            ]
        );
        assert!(entries["checkpoint"].0 && !entries["spec.dump"].0);
        let config: Value = serde_json::from_slice(&entries["config.dump"].1).unwrap();
        let wanted = json!({"id": "a7", "staticDir": "/u", "ShmDir": "/u/shm",
            "mounts": ["/u/shm"], "logPath": "/u/ctr.log", "exitCommand": ["podman", "--rm", "a7"],
            "pid_file": "", "secretsPath": null, "conmonPidFile": "", "shmSize": 65_536_000});
        assert_eq!(config, wanted, "nothing is where the source wants it");
        let spec = String::from_utf8(entries["spec.dump"].1.clone()).unwrap();
        assert!(!spec.contains("/n") && spec.contains("/p"), "{spec}");
        assert_eq!(entries["network.status"].1, metadata.network_status);
        assert_eq!(entries["ctr.log"].1, b"a line\n");
    }
}
