//! The archive that podman imports: a checkpoint export without a checkpoint.
//!
//! The names are those of checkpointctl's `lib/metadata.go`. podman looks at the presence of
//! `checkpoint/inventory.img` before it calls the runtime, never at its content, and the shim
//! takes the images from elsewhere. The directories must be there, or the unpacking stops.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::Value;
use tar::{Builder, EntryType, Header};

use crate::podman::Metadata;

/// Writes the archive, readable by root alone.
pub(super) fn write(path: &Path, metadata: &Metadata, log: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    append(io::BufWriter::new(file), metadata, log)?.into_inner()?.sync_data()
}

fn append<W: Write>(to: W, metadata: &Metadata, log: &[u8]) -> io::Result<W> {
    let mut archive = Builder::new(to);
    for dir in ["checkpoint", "artifacts"] {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(0o700);
        header.set_size(0);
        archive.append_data(&mut header, dir, io::empty())?;
    }
    let spec = without_netns(&metadata.spec)?;
    let files: [(&str, &[u8]); 5] = [
        ("config.dump", &metadata.config),
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

    #[test]
    fn everything_podman_looks_for_is_there() {
        let metadata = Metadata {
            config: b"{\"id\":1}".to_vec(),
            spec: br#"{"linux":{"namespaces":[{"path":"/n","type":"network"},{"path":"/p","type":"pid"}]}}"#
                .to_vec(),
            network_status: b"{}".to_vec(),
        };
        let bytes = append(Vec::new(), &metadata, b"a line\n").unwrap();
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
        assert_eq!(entries["config.dump"].1, metadata.config);
        let spec = String::from_utf8(entries["spec.dump"].1.clone()).unwrap();
        assert!(!spec.contains("/n") && spec.contains("/p"), "{spec}");
        assert_eq!(entries["network.status"].1, metadata.network_status);
        assert_eq!(entries["ctr.log"].1, b"a line\n");
    }
}
