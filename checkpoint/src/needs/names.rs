//! podman is written in Go, whose JSON decoder takes `HOOKS` for `hooks`. Whoever judges a text
//! must not read another one than podman does.

use serde_json::Value;

/// Names that this crate reads or writes in podman's and OCI's texts.
const NAMES: &[&str] = &[
    "Dependencies",
    "allow",
    "ambient",
    "annotations",
    "baseHostsFile",
    "bounding",
    "capabilities",
    "cgroupNsCtr",
    "cgroupParent",
    "conmonPidFile",
    "createNetNS",
    "defaultAction",
    "devices",
    "effective",
    "exitCommand",
    "healthLogDestination",
    "hooks",
    "id",
    "inheritable",
    "ipcNsCtr",
    "limit",
    "linux",
    "logPath",
    "major",
    "maskedPaths",
    "memory",
    "minor",
    "mountNsCtr",
    "mounts",
    "name",
    "namedVolumes",
    "namespaces",
    "netNsCtr",
    "networkMode",
    "options",
    "overlayVolumes",
    "path",
    "permitted",
    "pidNsCtr",
    "pid_file",
    "pod",
    "privileged",
    "process",
    "readonlyPaths",
    "resources",
    "rootfs",
    "rootfsImageID",
    "rootfsImageName",
    "runtime",
    "sdnotifySocket",
    "seccomp",
    "secret_env",
    "secrets",
    "source",
    "timezone",
    "type",
    "userNsCtr",
    "utsNsCtr",
    "volumeName",
];
/// Maps whose keys are anybody's.
const FREE: [&str; 3] = ["annotations", "labels", "sysctl"];

/// The first key that Go would take for another one.
pub(super) fn ambiguous(value: &Value) -> Option<&str> {
    match value {
        Value::Array(list) => list.iter().find_map(ambiguous),
        Value::Object(map) => map.iter().find_map(|(key, value)| {
            if !NAMES.contains(&key.as_str()) && NAMES.iter().any(|name| same_to_go(key, name)) {
                return Some(key.as_str());
            }
            if FREE.contains(&key.as_str()) { None } else { ambiguous(value) }
        }),
        _ => None,
    }
}

/// `encoding/json` compares under simple Unicode folding: two letters beyond ASCII fold into it.
fn same_to_go(key: &str, name: &str) -> bool {
    let folded = key.chars().map(|letter| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    });
    folded.eq(name.chars().map(|letter| letter.to_ascii_lowercase()))
}
