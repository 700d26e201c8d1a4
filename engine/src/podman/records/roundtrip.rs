//! Differences between podman's records and the same records after they were read and written again.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use super::container_config::{OWN_PARENTS, SHORT_ID};
use super::oci_spec::{INIT, PREFIX};
use super::{Place, Records, program};

/// What podman makes anew for every container that it imports.
const MADE_ANEW: [&str; 6] =
    ["spec", "lockID", "cgroupManager", "exitCommand", "logPath", "mounts"];
/// Files that podman makes for every container: where they are in it, and their names beside it
/// (`makeBindMounts`, `libpod/container_internal_common.go`).
const OWN_FILES: [(&str, &str); 9] = [
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

/// Annotations of podman that are not carried, and the options of `podman run` that make them.
const OPTIONS: [(&str, &str); 2] = [("cid-file", "--cidfile"), ("volumes-from", "--volumes-from")];

/// Names every setting that differs.
pub(super) fn lost_between(before: &Records, after: &Records, place: &Place) -> BTreeSet<String> {
    let (mut before, mut after) = (before.clone(), after.clone());
    let mut lost = BTreeSet::new();
    if let Some(elsewhere) = elsewhere(&before.config, place) {
        lost.insert(elsewhere.to_owned());
    }
    // Aliases that podman gives by itself, however often.
    let text = |path: &str| before.config.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let id = text("/id");
    let given = [id.get(..SHORT_ID).unwrap_or(id).to_owned(), text("/spec/hostname").to_owned()];
    for config in [&mut before.config, &mut after.config] {
        settle_config(config, place, &given);
    }
    for spec in [&mut before.spec, &mut after.spec] {
        settle_spec(spec, place);
    }
    for network in before.networks.as_object_mut().into_iter().flat_map(|map| map.values_mut()) {
        // podman asks for these again.
        remove(network, &["dns_server_ips", "dns_search_domains"]);
    }
    compare(&before.config, &after.config, "", &mut lost);
    compare(&before.spec, &after.spec, "", &mut lost);
    compare(&before.networks, &after.networks, "networkStatus", &mut lost);
    lost
}

/// Returns the name of a setting with the option of `podman run` that makes it, where it is one of podman's annotations
/// (`libpod/define/annotations.go`).
pub(super) fn by_option(setting: String) -> String {
    let value = |(annotation, option): (&str, &str)| {
        let value = setting.strip_prefix("annotations=\"")?.strip_suffix('"')?;
        let value = value.strip_prefix(PREFIX)?.strip_prefix(annotation)?.strip_prefix('=')?;
        Some(format!("{option} {value}"))
    };
    OPTIONS.into_iter().find_map(value).unwrap_or(setting)
}

/// Returns a file of podman's or conmon's that its creator wanted to be somewhere else.
fn elsewhere(config: &Value, place: &Place) -> Option<&'static str> {
    let text = |name: &str| config.get(name).and_then(Value::as_str).unwrap_or_default();
    let is_own = |text: &str, own: &Path| text.is_empty() || Path::new(text) == own;
    let shm = place.userdata.join("shm");
    let mounts = config.get("mounts").and_then(Value::as_array);
    if !is_own(text("logPath"), &place.userdata.join("ctr.log")) {
        Some("logPath")
    } else if mounts.is_some_and(|list| list.iter().any(|mount| *mount != json!(shm))) {
        Some("mounts")
    } else {
        None
    }
}

/// Removes what podman makes anew, and what is where it belongs.
fn settle_config(config: &mut Value, place: &Place, given_aliases: &[String]) {
    remove(config, &MADE_ANEW);
    let own = [
        ("staticDir", place.userdata.clone()),
        ("secretsPath", place.userdata.join("secrets")),
        ("ShmDir", place.userdata.join("shm")),
        ("conmonPidFile", place.volatile.join("conmon.pid")),
        ("pid_file", place.volatile.join("pidfile")),
    ];
    for (name, path) in own {
        if config.get(name) == Some(&json!(path)) {
            remove(config, &[name]);
        }
    }
    if config.get("cgroupParent").and_then(Value::as_str).is_some_and(|p| OWN_PARENTS.contains(&p))
    {
        remove(config, &["cgroupParent"]);
    }
    // Whether a volume is anonymous is the volume's own setting; here it is only told when one is to be made.
    let volumes = config.get_mut("namedVolumes").and_then(Value::as_array_mut);
    for volume in volumes.into_iter().flatten() {
        remove(volume, &["setAnonymous"]);
    }
    let networks = config.get_mut("newNetworks").and_then(Value::as_object_mut);
    for network in networks.into_iter().flat_map(|map| map.values_mut()) {
        if let Some(list) = network.get_mut("aliases").and_then(Value::as_array_mut) {
            let mut seen: BTreeSet<String> = given_aliases.iter().cloned().collect();
            list.retain(|alias| alias.as_str().is_none_or(|alias| seen.insert(alias.to_owned())));
        }
    }
}

/// Removes what podman makes anew from an OCI configuration.
fn settle_spec(spec: &mut Value, place: &Place) {
    // podman gives a host name by itself, which is in the other record if it is the creator's.
    remove(spec, &["hostname"]);
    if let Some(root) = spec.get_mut("root") {
        remove(root, &["path"]);
    }
    if let Some(linux) = spec.get_mut("linux") {
        remove(linux, &["cgroupsPath"]);
        if let Some(namespaces) = linux.get_mut("namespaces").and_then(Value::as_array_mut) {
            for namespace in namespaces.iter_mut().filter(|n| n["type"] == "network") {
                remove(namespace, &["path"]);
            }
            namespaces.sort_by_key(ToString::to_string);
        }
    }
    remove_own_files(spec, place);
    if let Some(mounts) = spec.get_mut("mounts").and_then(Value::as_array_mut) {
        for init in mounts.iter_mut().filter(|mount| mount["destination"] == INIT) {
            let source = Path::new(init["source"].as_str().unwrap_or_default());
            init["source"] = json!(program(source));
        }
        // Each by its destination: the order is podman's, and a name is told.
        let named = mounts
            .drain(..)
            .map(|mount| (mount["destination"].as_str().unwrap_or_default().to_owned(), mount));
        let named: serde_json::Map<String, Value> = named.collect();
        spec["mounts"] = Value::Object(named);
    }
}

/// Removes the mounts of podman's own files, which it makes and mounts anew.
pub(super) fn remove_own_files(spec: &mut Value, place: &Place) {
    if let Some(mounts) = spec.get_mut("mounts").and_then(Value::as_array_mut) {
        mounts.retain(|mount| !is_own_file(mount, place));
    }
}

fn is_own_file(mount: &Value, place: &Place) -> bool {
    OWN_FILES.iter().any(|(destination, name)| {
        let is_source = |dir: &Path| mount["source"] == json!(dir.join(name));
        mount["destination"] == *destination
            && (is_source(&place.userdata) || is_source(&place.volatile))
    })
}

fn compare(before: &Value, after: &Value, path: &str, lost: &mut BTreeSet<String>) {
    match (before, after) {
        (Value::Object(one), Value::Object(two)) => {
            let keys: BTreeSet<&String> = one.keys().chain(two.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let [before, after] = [one, two].map(|map| map.get(key).unwrap_or(&Value::Null));
                compare(before, after, &path, lost);
            }
        }
        (Value::Array(one), Value::Array(two)) if one.len() == two.len() => {
            one.iter().zip(two).for_each(|(before, after)| compare(before, after, path, lost));
        }
        _ if before == after || (is_zero(before) && is_zero(after)) => {}
        _ => drop(lost.insert(path.to_owned())),
    }
}

/// Returns whether it says no more than Go's zero value. An object in an object may be an entry of a map, and
/// says at least its key.
pub(in crate::podman) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.values().all(|value| !value.is_object() && is_zero(value)),
    }
}

fn remove(value: &mut Value, keys: &[&str]) {
    if let Some(map) = value.as_object_mut() {
        map.retain(|key, _| !keys.contains(&key.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_named_by_its_option() {
        let of = |text: &str| by_option(text.to_owned());
        let cidfile = r#"annotations="io.podman.annotations.cid-file=/tmp/cid""#;
        assert_eq!(of(cidfile), "--cidfile /tmp/cid");
        for other in [r#"annotations="a=b""#, "logPath"] {
            assert_eq!(of(other), other);
        }
    }
}
