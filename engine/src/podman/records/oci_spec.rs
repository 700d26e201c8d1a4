//! OCI configurations (<https://github.com/opencontainers/runtime-spec/blob/main/config.md>) as podman writes
//! them (`pkg/specgen/generate/oci_linux.go`, `generateSpec` in `libpod/container_internal_common.go`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Place, volume_mounts};
use crate::description::{
    Apparmor, Capabilities, ConsoleSize, Description, Device, DeviceRule, Filesystem, Life, Limit,
    Mount, Requested, Resources, Seccomp, SelinuxLabels,
};

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    oci_version: String,
    process: Process,
    root: Root,
    mounts: Vec<SpecMount>,
    annotations: BTreeMap<String, String>,
    linux: Linux,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Process {
    terminal: bool,
    console_size: Option<ConsoleSize>,
    user: User,
    args: Vec<String>,
    env: Vec<String>,
    cwd: String,
    capabilities: Capabilities,
    rlimits: Vec<Limit>,
    no_new_privileges: bool,
    apparmor_profile: String,
    oom_score_adj: Option<i32>,
    selinux_label: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct User {
    uid: u32,
    gid: u32,
    additional_gids: Vec<u32>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Root {
    readonly: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SpecMount {
    destination: String,
    #[serde(rename = "type")]
    kind: String,
    source: String,
    options: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    sysctl: BTreeMap<String, String>,
    resources: ResourcesAndDevices,
    namespaces: Vec<Namespace>,
    devices: Vec<Device>,
    seccomp: Option<Seccomp>,
    masked_paths: Vec<String>,
    readonly_paths: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ResourcesAndDevices {
    devices: Vec<DeviceRule>,
    #[serde(flatten)]
    others: Resources,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
}

/// File systems of the kernel's: type, what it is in a description, and the source that podman writes.
const FILESYSTEMS: [(&str, Filesystem); 6] = [
    ("proc", Filesystem::Proc),
    ("sysfs", Filesystem::Sysfs),
    ("tmpfs", Filesystem::Tmpfs),
    ("devpts", Filesystem::Devpts),
    ("mqueue", Filesystem::Mqueue),
    ("cgroup", Filesystem::Cgroup),
];
/// Where podman puts its init (`libpod/define/container.go`, `ContainerInitPath`).
pub(super) const INIT: &str = "/run/podman-init";
/// What stands before the command then.
const INIT_ARGS: [&str; 2] = [INIT, "--"];
/// podman's own AppArmor profile begins so (`common/pkg/apparmor`).
const APPARMOR: &str = "containers-default-";
const UNCONFINED: &str = "unconfined";
/// Labels of ordinary containers, before their categories (container-selinux).
const PROCESS_LABEL: &str = "system_u:system_r:container_t:s0";
const MOUNT_LABEL: &str = "system_u:object_r:container_file_t:s0";

/// podman's annotations (`libpod/define/annotations.go`).
const MANAGER: (&str, &str) = ("io.container.manager", "libpod");
const STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";
const KILL_SIGNAL: &str = "org.systemd.property.KillSignal";
const STOP_TIMEOUT: &str = "org.systemd.property.TimeoutStopUSec";
pub(super) const PREFIX: &str = "io.podman.annotations.";
const TRUE: &str = "TRUE";

/// Reads an OCI configuration; `into` has what podman's own configuration says.
pub(super) fn read(spec: &Value, into: &mut Description) -> Result<(), serde_json::Error> {
    let Spec { oci_version, process, root, mounts, mut annotations, linux } =
        Spec::deserialize(spec)?;
    into.specification = oci_version;
    read_annotations(&mut annotations, into);
    into.annotations = annotations;
    let to = &mut into.process;
    to.args = process.args;
    if into.life.init && to.args.starts_with(&INIT_ARGS.map(str::to_owned)) {
        to.args.drain(..INIT_ARGS.len());
    }
    to.env = process.env;
    to.cwd = process.cwd;
    to.uid = process.user.uid;
    to.gid = process.user.gid;
    to.additional_gids = process.user.additional_gids;
    to.terminal = process.terminal;
    to.console_size = process.console_size;
    to.capabilities = process.capabilities;
    to.limits = process.rlimits;
    to.oom_score_adj = process.oom_score_adj;
    let to = &mut into.confinement;
    to.no_new_privileges = process.no_new_privileges;
    to.apparmor = match process.apparmor_profile.strip_prefix(APPARMOR) {
        Some(version) => Apparmor::Default(version.to_owned()),
        None if process.apparmor_profile == UNCONFINED => Apparmor::Unconfined,
        None => Apparmor::Absent,
    };
    to.selinux.categories = categories(&process.selinux_label);
    to.seccomp = linux.seccomp;
    to.masked_paths = linux.masked_paths;
    to.readonly_paths = linux.readonly_paths;
    to.devices = linux.devices;
    to.device_rules = linux.resources.devices;
    to.sysctls = linux.sysctl;
    let is_absent = |kind| linux.namespaces.iter().all(|namespace| namespace.kind != kind);
    to.namespaces.host_pid = is_absent("pid");
    to.namespaces.host_ipc = is_absent("ipc");
    to.namespaces.host_uts = is_absent("uts");
    to.namespaces.host_cgroup = is_absent("cgroup");
    let parent = std::mem::take(&mut into.resources.parent);
    into.resources = Resources { parent, ..linux.resources.others };
    into.storage.read_only = root.readonly;
    into.storage.mounts =
        mounts.into_iter().filter_map(|mount| read_mount(mount, into.life.init)).collect();
    Ok(())
}

/// Takes those of podman's annotations that are settings.
fn read_annotations(annotations: &mut BTreeMap<String, String>, into: &mut Description) {
    for name in [MANAGER.0, STOP_SIGNAL, KILL_SIGNAL, STOP_TIMEOUT] {
        annotations.remove(name);
    }
    let mut take = |name: &str| annotations.remove(&format!("{PREFIX}{name}"));
    into.life.auto_remove = take("autoremove").is_some();
    into.life.init = take("init").is_some();
    into.confinement.privileged |= take("privileged").is_some();
    let requested = &mut into.confinement.requested;
    requested.all_ports = take("publish-all").is_some();
    for (name, to) in text_annotations(requested) {
        *to = take(name).unwrap_or_default();
    }
}

/// Returns those that only tell what a creator wrote.
fn text_annotations(requested: &mut Requested) -> [(&'static str, &mut String); 6] {
    let Requested { seccomp, apparmor, label, pids_limit, cpus, mems, .. } = requested;
    [
        ("seccomp", seccomp),
        ("apparmor", apparmor),
        ("label", label),
        ("pids-limit", pids_limit),
        ("cpuset", cpus),
        ("memory-nodes", mems),
    ]
}

fn read_mount(mount: SpecMount, init: bool) -> Option<Mount> {
    let SpecMount { destination, kind, source, options } = mount;
    if init && destination == INIT {
        return None;
    }
    let known = FILESYSTEMS.into_iter().find(|(name, _)| *name == kind);
    let filesystem = match known {
        Some((_, filesystem)) => filesystem,
        None if kind == "bind" => Filesystem::Host(source),
        // Not the same when it is written again, and so named.
        None => return None,
    };
    Some(Mount { destination, filesystem, options })
}

/// Writes an OCI configuration. podman puts root, control group, network namespace, its own files and, at the
/// next start, a host name in.
pub(super) fn write(description: &Description, place: &Place) -> Value {
    let Description { process, life, confinement, storage, .. } = description;
    let init = if life.init { &INIT_ARGS[..] } else { &[] };
    let args = init.iter().copied().chain(process.args.iter().map(String::as_str));
    let apparmor = match &confinement.apparmor {
        Apparmor::Absent => String::new(),
        Apparmor::Default(version) => format!("{APPARMOR}{version}"),
        Apparmor::Unconfined => UNCONFINED.to_owned(),
    };
    let (process_label, mount_label) = labels(&confinement.selinux);
    json!({
        "ociVersion": description.specification,
        "process": {
            "terminal": process.terminal,
            "consoleSize": process.console_size,
            "user": {
                "uid": process.uid,
                "gid": process.gid,
                "umask": u32::from_str_radix(&process.umask, 8).ok(),
                "additionalGids": process.additional_gids,
            },
            "args": args.collect::<Vec<_>>(),
            "env": process.env,
            "cwd": process.cwd,
            "capabilities": process.capabilities,
            "rlimits": process.limits,
            "noNewPrivileges": confinement.no_new_privileges,
            "apparmorProfile": apparmor,
            "oomScoreAdj": process.oom_score_adj,
            "selinuxLabel": process_label,
        },
        "root": {"path": "rootfs", "readonly": storage.read_only},
        "hostname": description.hostname,
        "mounts": write_mounts(description, place),
        "annotations": write_annotations(description),
        "linux": {
            "sysctl": confinement.sysctls,
            "resources": write_resources(&description.resources, &confinement.device_rules),
            "namespaces": write_namespaces(description),
            "devices": confinement.devices,
            "seccomp": confinement.seccomp,
            "maskedPaths": confinement.masked_paths,
            "readonlyPaths": confinement.readonly_paths,
            "mountLabel": mount_label,
        },
    })
}

fn write_mounts(description: &Description, place: &Place) -> Vec<Value> {
    let mount = |mount: &Mount| {
        let (kind, source) = match &mount.filesystem {
            Filesystem::Host(source) => ("bind", source.as_str()),
            other => {
                let known = FILESYSTEMS.iter().find(|(_, filesystem)| filesystem == other);
                let name = known.map_or("", |(name, _)| name);
                (name, name)
            }
        };
        json!({
            "destination": mount.destination,
            "type": kind,
            "source": source,
            "options": mount.options,
        })
    };
    let mut mounts: Vec<Value> = description.storage.mounts.iter().map(mount).collect();
    mounts.extend(volume_mounts::write(&description.storage.volumes, place));
    if description.life.init {
        mounts.push(json!({
            "destination": INIT,
            "type": "bind",
            "source": place.init,
            "options": ["bind", "ro", "private"],
        }));
    }
    mounts
}

fn write_annotations(description: &Description) -> BTreeMap<String, String> {
    let mut annotations = description.annotations.clone();
    let Life { stop_signal, stop_timeout, auto_remove, init, .. } = description.life;
    let mut put = |name: &str, value: String| drop(annotations.insert(name.to_owned(), value));
    put(MANAGER.0, MANAGER.1.to_owned());
    put(STOP_SIGNAL, stop_signal.to_string());
    if stop_signal > 0 {
        put(KILL_SIGNAL, stop_signal.to_string());
    }
    if stop_timeout > 0 {
        // The type and microseconds, as systemd's bus wants it.
        put(STOP_TIMEOUT, format!("uint64 {}", stop_timeout.saturating_mul(1_000_000)));
    }
    let mut requested = description.confinement.requested.clone();
    for (name, is_set) in [
        ("autoremove", auto_remove),
        ("init", init),
        ("privileged", description.confinement.privileged),
        ("publish-all", requested.all_ports),
    ] {
        if is_set {
            put(&format!("{PREFIX}{name}"), TRUE.to_owned());
        }
    }
    for (name, text) in text_annotations(&mut requested) {
        if !text.is_empty() {
            put(&format!("{PREFIX}{name}"), std::mem::take(text));
        }
    }
    annotations
}

/// Leaves out what has no limit: a runtime would make an empty group of limits for it.
fn write_resources(resources: &Resources, rules: &[DeviceRule]) -> Value {
    let mut written = json!(resources);
    let Some(map) = written.as_object_mut() else { return written };
    map.remove("parent");
    map.insert("devices".into(), rules.iter().map(write_rule).collect());
    for part in map.values_mut().filter_map(Value::as_object_mut) {
        part.retain(|_, value| !value.is_null() && *value != json!(""));
    }
    map.retain(|_, value| !value.as_object().is_some_and(Map::is_empty) && *value != json!([]));
    written
}

fn write_rule(rule: &DeviceRule) -> Value {
    let mut written = json!(rule);
    if let Some(map) = written.as_object_mut() {
        map.retain(|_, value| *value != json!(""));
    }
    written
}

fn write_namespaces(description: &Description) -> Vec<Value> {
    let shared = description.confinement.namespaces;
    let all = [
        ("pid", shared.host_pid),
        ("network", false),
        ("ipc", shared.host_ipc),
        ("uts", shared.host_uts),
        ("mount", false),
        ("cgroup", shared.host_cgroup),
    ];
    let own = all.into_iter().filter(|(_, is_hosts)| !is_hosts);
    own.map(|(kind, _)| json!({"type": kind})).collect()
}

/// Labels of processes and of files.
pub(super) fn labels(selinux: &SelinuxLabels) -> (String, String) {
    match selinux.categories {
        Some((one, two)) => {
            (format!("{PROCESS_LABEL}:c{one},c{two}"), format!("{MOUNT_LABEL}:c{one},c{two}"))
        }
        None => (String::new(), String::new()),
    }
}

fn categories(label: &str) -> Option<(u16, u16)> {
    let (one, two) = label.strip_prefix(PROCESS_LABEL)?.strip_prefix(":c")?.split_once(",c")?;
    Some((one.parse().ok()?, two.parse().ok()?))
}
