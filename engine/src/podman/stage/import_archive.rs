//! The archive that podman imports: a checkpoint export without a checkpoint.
//!
//! The names are those of checkpointctl's `lib/metadata.go`. podman checks that `checkpoint/inventory.img` exists before
//! it calls the runtime, and never reads it; the shim takes the images from elsewhere. The directories must exist, or
//! the unpacking stops.

use std::io::{self, Write};

use tar::{Builder, EntryType, Header};

use crate::podman::records::Records;

/// The directories that podman looks for.
const DIRECTORIES: [&str; 2] = ["checkpoint", "artifacts"];
/// Bytes at the beginning of every archive that are the same in all of them: the directories' headers.
pub(super) const BEGINNING: usize = 512 * DIRECTORIES.len();

/// What podman takes for the sign of a checkpoint.
const INVENTORY: &str = "checkpoint/inventory.img";

/// Returns the archive.
pub(super) fn build(records: &Records, log: &[u8]) -> io::Result<Vec<u8>> {
    append(Vec::new(), records, log, true)
}

/// Returns an archive from which podman makes the container, and then fails before it makes a network.
pub(super) fn without_checkpoint(records: &Records, log: &[u8]) -> io::Result<Vec<u8>> {
    append(Vec::new(), records, log, false)
}

/// Returns the [first bytes](BEGINNING) of any archive.
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

fn append<W: Write>(to: W, records: &Records, log: &[u8], has_checkpoint: bool) -> io::Result<W> {
    let mut archive = Builder::new(to);
    append_directories(&mut archive)?;
    let [config, spec, networks] =
        [&records.config, &records.spec, &records.networks].map(serde_json::to_vec);
    let files: [(&str, &[u8]); 5] = [
        ("config.dump", &config?),
        ("spec.dump", &spec?),
        ("network.status", &networks?),
        ("ctr.log", log),
        (INVENTORY, &[]),
    ];
    for (name, content) in
        files.into_iter().filter(|(name, _)| has_checkpoint || *name != INVENTORY)
    {
        let mut header = Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content)?;
    }
    archive.into_inner()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use serde_json::json;

    use super::*;

    #[test]
    fn everything_podman_looks_for_is_there() {
        let records = Records {
            config: json!({"id": "a7"}),
            spec: json!({"root": {}}),
            networks: json!({"podman": {}}),
        };
        let bytes = build(&records, b"a line\n").unwrap();
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
        assert_eq!(entries["config.dump"].1, br#"{"id":"a7"}"#);
        assert_eq!(entries["spec.dump"].1, br#"{"root":{}}"#);
        let failing = without_checkpoint(&records, b"a line\n").unwrap();
        let mut failing = tar::Archive::new(failing.as_slice());
        let count = failing.entries().unwrap().count();
        assert_eq!(count, entries.len() - 1, "it lacks the inventory alone");
        assert_eq!(entries["network.status"].1, br#"{"podman":{}}"#);
        assert_eq!(entries["ctr.log"].1, b"a line\n");
    }
}
