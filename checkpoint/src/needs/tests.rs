use serde_json::{Value, json};

use super::*;
use crate::podman::Version;

fn info() -> Info {
    Info {
        version: Version { text: "5.8.6".into(), number: (5, 8) },
        graph_root: "/g".into(),
        run_root: "/r".into(),
        static_dir: "/g/libpod".into(),
        storage_driver: "overlay".into(),
        runtime: "crun".into(),
        runtime_path: "/usr/bin/crun".into(),
        conmon_path: "/usr/bin/conmon".into(),
        cgroup_manager: "cgroupfs".into(),
        cgroup_version: "v2".into(),
        network_backend: "netavark".into(),
        database: "sqlite".into(),
        rootless: false,
    }
}

/// Both texts of an ordinary container.
fn plain() -> (Value, Value) {
    let config = json!({
        "id": "a7", "name": "web", "Dependencies": null, "privileged": false,
        "createNetNS": true, "networkMode": "bridge", "cgroupParent": "/libpod_parent",
        "healthLogDestination": "local", "runtime": "crun",
    });
    let spec = json!({
        "process": {"capabilities": {
            "bounding": ["CAP_CHOWN", "CAP_SETUID"], "effective": ["CAP_CHOWN"],
        }},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
            {"destination": "/dev/shm", "type": "bind", "options": ["bind", "rprivate"],
                "source": "/g/overlay-containers/a7/userdata/shm"},
            {"destination": "/etc/hosts", "type": "bind", "options": ["bind"],
                "source": "/r/overlay-containers/a7/userdata/hosts"},
        ],
        "annotations": {"org.systemd.property.KillSignal": "15"},
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/n"},
                {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}],
            "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"},
            "maskedPaths": ["/proc/kcore", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    (config, spec)
}

fn read(config: &Value, spec: &Value) -> Needs {
    let metadata = Metadata {
        config: config.to_string().into(),
        spec: spec.to_string().into(),
        network_status: b"{}".to_vec(),
    };
    Needs::read(&metadata, &info()).unwrap()
}

/// What an ordinary container needs after one value of its specification has been replaced.
fn with_spec(pointer: &str, value: Value) -> Needs {
    let (config, mut spec) = plain();
    *spec.pointer_mut(pointer).unwrap() = value;
    read(&config, &spec)
}

fn with_config(name: &str, value: Value) -> Needs {
    let (mut config, spec) = plain();
    config[name] = value;
    read(&config, &spec)
}

#[test]
fn an_ordinary_container_needs_nothing() {
    let (config, spec) = plain();
    assert_eq!(read(&config, &spec), Needs::default());
}

#[test]
fn files_of_the_host_are_named() {
    let bind = |source: &str| {
        with_spec("/mounts/1", json!({"destination": "/x", "type": "bind", "source": source}))
    };
    for source in [
        "/etc",
        "/g/overlay-containers/b8/userdata/shm",
        "/g/overlay-containers/a7/userdata/..",
        "/g/overlay-containers/a7/userdata/x/../../../..",
        "/evil/g/overlay-containers/a7/userdata/shm",
        "",
    ] {
        assert_eq!(bind(source).mounts, BTreeSet::from([source.into()]), "{source}");
    }
    let disguised =
        json!({"destination": "/x", "type": "tmpfs", "source": "/", "options": ["rbind"]});
    assert_eq!(with_spec("/mounts/0", disguised).mounts, BTreeSet::from(["/".into()]));
    let overlay = with_config("overlayVolumes", json!([{"dest": "/x", "source": "/root"}]));
    assert_eq!(overlay.mounts, BTreeSet::from(["/root".into()]));
    let volume = with_config("namedVolumes", json!([{"volumeName": "data", "dest": "/x"}]));
    assert_eq!(volume.volumes, BTreeSet::from(["data".into()]));
    for kind in ["ext4", "overlay", "devtmpfs", ""] {
        let mount = json!({"destination": "/x", "type": kind, "source": "/dev/sda1"});
        assert_eq!(with_spec("/mounts/0", mount).forbidden.len(), 1, "{kind}");
    }
}

#[test]
fn whatever_makes_a_container_privileged_is_named() {
    let cases = [
        with_config("privileged", json!(true)),
        with_spec("/annotations", json!({"io.podman.annotations.privileged": "TRUE"})),
        with_spec("/linux/seccomp", Value::Null),
        with_spec("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW"})),
        with_spec("/linux/maskedPaths", Value::Null),
        with_spec("/linux/readonlyPaths", json!(["/proc/sys"])),
        with_spec("/linux/resources/devices", Value::Null),
        with_spec("/linux/resources/devices", json!([{"allow": true, "access": "rwm"}])),
        with_spec("/linux/resources/devices/0", json!({"allow": false, "type": "c", "major": 9})),
        with_spec(
            "/linux/resources/devices",
            json!([{"allow": false}, {"allow": true, "type": "b", "major": 8, "minor": 0}]),
        ),
    ];
    for (number, needs) in cases.iter().enumerate() {
        assert_eq!(needs.privileged.len(), 1, "{number}: {needs:?}");
    }
}

#[test]
fn devices_and_capabilities_are_named() {
    let (config, mut spec) = plain();
    spec["linux"]["devices"] =
        json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]);
    spec["linux"]["resources"]["devices"] =
        json!([{"allow": false}, {"allow": true, "type": "c", "major": 10, "minor": 229}]);
    let needs = read(&config, &spec);
    assert_eq!(needs.devices, BTreeSet::from(["/dev/fuse".into()]));
    assert!(needs.privileged.is_empty());
    for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
        let (config, mut spec) = plain();
        spec["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN", "CAP_KILL"]);
        let needs = read(&config, &spec);
        assert_eq!(needs.capabilities, BTreeSet::from(["SYS_ADMIN".into()]), "{set}");
    }
    let limited = with_spec(
        "/linux/resources",
        json!({"devices": [{"allow": false}],
        "memory": {"limit": 4096}}),
    );
    assert_eq!(limited.memory_limit, Some(4096));
}

#[test]
fn shared_namespaces_are_named() {
    for kind in OWN_NAMESPACES {
        let (config, mut spec) = plain();
        let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|ns| ns["type"] != kind);
        assert_eq!(read(&config, &spec).shared_namespaces, BTreeSet::from([kind.into()]));
    }
    let joined = with_spec("/linux/namespaces/0", json!({"type": "pid", "path": "/proc/1/ns/pid"}));
    assert_eq!(joined.shared_namespaces, BTreeSet::from(["pid".into()]));
    for needs in [
        with_config("createNetNS", json!(false)),
        with_config("networkMode", json!("host")),
        with_config("netNsCtr", json!("b8")),
    ] {
        assert_eq!(needs.shared_namespaces, BTreeSet::from(["network".into()]));
    }
}

#[test]
fn what_nobody_may_have_is_named() {
    let cases = [
        ("rootfs", json!("/")),
        ("secrets", json!([{"name": "s"}])),
        ("secret_env", json!({"S": {}})),
        ("pod", json!("p")),
        ("Dependencies", json!(["d"])),
        ("baseHostsFile", json!("/etc/shadow")),
        ("timezone", json!("../../../etc/shadow")),
        ("cgroupParent", json!("/libpod_parent/../..")),
        ("healthLogDestination", json!("/etc/cron.d")),
        ("sdnotifySocket", json!("/run/systemd/notify")),
    ];
    for (name, value) in cases {
        assert_eq!(with_config(name, value).forbidden.len(), 1, "{name}");
    }
    let (config, mut spec) = plain();
    spec["hooks"] = json!({"poststop": [{"path": "/bin/sh"}]});
    assert_eq!(read(&config, &spec).forbidden.len(), 1);
    for name in ["run.oci.handler", "org.criu.config", "org.systemd.property.ExecStartPre"] {
        let needs = with_spec("/annotations", json!({ name: "x" }));
        assert_eq!(needs.forbidden.len(), 1, "{name}");
    }
}

#[test]
fn other_texts_are_refused() {
    for text in ["", "[]", "{}", "{\"id\":7}", "null"] {
        let metadata =
            Metadata { config: text.into(), spec: b"{}".to_vec(), network_status: Vec::new() };
        assert!(Needs::read(&metadata, &info()).is_err(), "{text}");
    }
}

#[test]
fn keys_that_podman_would_take_for_others_are_refused() {
    let (config, spec) = plain();
    let refused = |config: &Value, spec: &str| {
        let metadata = Metadata {
            config: config.to_string().into(),
            spec: spec.into(),
            network_status: Vec::new(),
        };
        Needs::read(&metadata, &info()).is_err()
    };
    let text = spec.to_string();
    assert!(!refused(&config, &text));
    for key in ["Hooks", "HOOKS", "hoo\u{212a}s", "hook\u{17f}"] {
        assert!(refused(&config, &text.replacen('{', &format!("{{\"{key}\":{{}},"), 1)), "{key}");
    }
    assert!(refused(&config, &text.replacen('{', "{\"linux\":{},", 1)), "twice");
    for key in ["Privileged", "LOGPATH", "NetNsCtr", "dependencies"] {
        let mut config = config.clone();
        config[key] = Value::Null;
        assert!(refused(&config, &text), "{key}");
    }
    let mut config = config;
    config["labels"] = json!({"Name": "anybody's"});
    assert!(!refused(&config, &text));
}
