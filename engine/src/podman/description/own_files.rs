//! Files of podman's own in a container.

use std::path::Path;

use serde_json::{Value, json};

use super::Place;

/// Files that podman makes for every container: where they are in it, and their names beside it
/// (`makeBindMounts`, `libpod/container_internal_common.go`).
const FILES: [(&str, &str); 9] = [
    ("/dev/shm", "shm"),
    ("/etc/resolv.conf", "resolv.conf"),
    ("/etc/hosts", "hosts"),
    ("/etc/hostname", "hostname"),
    ("/run/.containerenv", ".containerenv"),
    ("/run/secrets", "secrets"),
    ("/etc/passwd", "passwd"),
    ("/etc/group", "group"),
    ("/etc/localtime", "localtime"),
];

/// Removes the mounts of podman's own files, which it makes and mounts anew.
pub(super) fn remove(spec: &mut Value, place: &Place) {
    if let Some(mounts) = spec.get_mut("mounts").and_then(Value::as_array_mut) {
        mounts.retain(|mount| !is_own_file(mount, place));
    }
}

fn is_own_file(mount: &Value, place: &Place) -> bool {
    FILES.iter().any(|(destination, name)| {
        let is_source = |dir: &Path| mount["source"] == json!(dir.join(name));
        mount["destination"] == *destination
            && (is_source(&place.userdata) || is_source(&place.volatile))
    })
}
