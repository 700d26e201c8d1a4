//! Records of a container that podman 5.8 made, beside what the same podman said of it.

use serde_json::json;

use super::*;
use crate::podman::database::tests::info;
use crate::podman::inspect;
use checkpoint::oci_bundle::Bundle;

const SAMPLE: &str = include_str!("sample.json");

/// Configuration, state, and podman's description.
fn sample() -> [Value; 3] {
    let mut sample: Map<String, Value> = serde_json::from_str(SAMPLE).unwrap();
    ["config", "state", "inspected"].map(|name| sample.remove(name).unwrap())
}

fn here() -> Info {
    Info { graph_root: "/var/lib/containers/storage".into(), ..info(Path::new("/x")) }
}

fn text(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

#[test]
fn the_description_is_podmans() {
    let [config, state, inspected] = sample();
    let bundle = br#"{"root":{"path":"/x"},"annotations":{"a":"b"}}"#;
    let bundle = || Some(Bundle::parse(Path::new("/bundle"), bundle).unwrap());
    let raw = describe(&here(), &text(&config), &text(&state)).unwrap();
    let by_records = raw.into_container(bundle(), &here());
    let by_podman = inspect::parse(&text(&json!([inspected]))).unwrap();
    let by_podman = by_podman.into_container(bundle(), &here());
    assert_eq!(by_records, by_podman);
    assert_eq!((by_records.networks.len(), by_records.ports.len()), (2, 4));
    assert_eq!(by_records.annotations["a"], "b");
}

#[test]
fn whatever_is_not_plain_is_left_to_podman() {
    let changes = [
        ("/id", json!("short")),
        ("/createNetNS", json!(false)),
        ("/networkMode", json!("host")),
        ("/netNsCtr", json!("a7")),
        ("/cgroupsMode", json!("no-conmon")),
        ("/privileged", json!(true)),
        ("/pod", json!("b8")),
        ("/rootfs", json!("/x")),
        ("/systemd", json!(true)),
        ("/stdin", json!(true)),
        ("/healthcheck", json!({"Test": ["CMD-SHELL", "true"]})),
        ("/namedVolumes", json!([{"volumeName": "v"}])),
        ("/userVolumes", json!(["/v"])),
        ("/mounts", json!(["/x"])),
        ("/Dependencies", json!(["b8"])),
        ("/idMappingsOptions/HostUIDMapping", json!(false)),
        ("/idMappingsOptions/UIDMap", json!([{"size": 1}])),
        ("/spec/process/terminal", json!(true)),
        ("/spec/annotations", json!({"org.criu.config": "/x"})),
        ("/spec/hooks", json!({"prestart": [{"path": "/x"}]})),
        ("/spec/linux/devices", json!([{"path": "/dev/kvm"}])),
        ("/spec/linux/resources/memory", json!({"limit": 1})),
        ("/spec/linux/resources/devices/0/allow", json!(true)),
        ("/spec/linux/namespaces/0/path", json!("/proc/1/ns/pid")),
        ("/spec/linux/namespaces/0/type", json!("user")),
        ("/spec/mounts/1/type", json!("bind")),
        ("/spec/mounts/1/destination", json!("/data")),
        ("/newPortMappings/0/range", json!(0)),
        ("/newPortMappings/0/container_port", json!(70000)),
        ("/newNetworks/other", json!({})),
        ("/setting of tomorrow", json!(1)),
    ];
    for (field, value) in changes {
        let [mut config, state, _] = sample();
        set(&mut config, field, value);
        assert!(describe(&here(), &text(&config), &text(&state)).is_none(), "{field}");
    }
    let changes = [
        ("/state", json!(5)),
        ("/pid", json!(0)),
        ("/conmonPid", json!(0)),
        ("/mounted", json!(false)),
        ("/mountPoint", json!("/elsewhere/merged")),
        ("/error", json!("x")),
        ("/newExecSessions", json!({"a7": {}})),
        ("/networkStatus/second/interfaces/eth7", json!({"subnets": [], "mac_address": ""})),
    ];
    for (field, value) in changes {
        let [config, mut state, _] = sample();
        set(&mut state, field, value);
        assert!(describe(&here(), &text(&config), &text(&state)).is_none(), "{field}");
    }
    let [config, state, _] = sample();
    let zfs = Info { storage_driver: "zfs".into(), ..here() };
    assert!(describe(&zfs, &text(&config), &text(&state)).is_none());
    assert!(describe(&here(), b"{}", &text(&state)).is_none());
    assert!(describe(&here(), &text(&config), b"[]").is_none());
}

#[test]
fn what_other_tables_say_is_seen() {
    let [config, state, _] = sample();
    let id = config["id"].as_str().unwrap();
    let database = Connection::open_in_memory().unwrap();
    database
        .execute_batch(
            "CREATE TABLE ContainerConfig(ID TEXT, Name TEXT, JSON TEXT);
             CREATE TABLE ContainerState(ID TEXT, JSON TEXT);
             CREATE TABLE ContainerDependency(ID TEXT, DependencyID TEXT);
             CREATE TABLE ContainerExecSession(ID TEXT, ContainerID TEXT);
             CREATE TABLE ContainerVolume(ContainerID TEXT, VolumeName TEXT);",
        )
        .unwrap();
    let insert = "INSERT INTO ContainerConfig VALUES (?1, 'plain', ?2)";
    database.execute(insert, (id, text(&config))).unwrap();
    database.execute("INSERT INTO ContainerState VALUES (?1, ?2)", (id, text(&state))).unwrap();
    assert_eq!(read(&database, "plain"), Some((text(&config), text(&state))));
    assert!(read(&database, id).is_some());
    for other in ["plai", "a7", "", "%"] {
        assert_eq!(read(&database, other), None, "{other:?}");
    }
    for row in [
        "ContainerDependency VALUES (?1, 'b8')",
        "ContainerExecSession VALUES ('b8', ?1)",
        "ContainerVolume VALUES (?1, 'v')",
    ] {
        let table = row.split_once(' ').unwrap().0;
        database.execute(&format!("INSERT INTO {row}"), [id]).unwrap();
        assert_eq!(read(&database, "plain"), None, "{row}");
        database.execute(&format!("DELETE FROM {table}"), []).unwrap();
    }
    database.execute("DROP TABLE ContainerVolume", []).unwrap();
    assert_eq!(read(&database, "plain"), None, "another version of the tables");
}

/// Sets a field, which may be new.
fn set(value: &mut Value, field: &str, new: Value) {
    if let Some(old) = value.pointer_mut(field) {
        *old = new;
        return;
    }
    let (parent, name) = field.rsplit_once('/').unwrap();
    value.pointer_mut(parent).unwrap()[name] = new;
}
