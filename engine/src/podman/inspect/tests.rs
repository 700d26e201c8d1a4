//! A description that podman 5.8 printed, trimmed to the fields that are read.

use std::path::Path;

use super::*;
use crate::podman::host_info::Version;

const SAMPLE: &str = include_str!("sample.json");
const NETWORKS: &str = r#"[{"name":"n6","driver":"bridge","network_interface":"podman1",
  "subnets":[{"subnet":"10.99.0.0/24"}],"containers":{
  "893931e380f9c1c6013a0d63b5fac1f6db8933f7fcaf496e9dc19c07a6ecb197":{"name":"rich",
  "interfaces":{"eth0":{"mac_address":"b2:fe:94:c8:e2:9e"}}}}},
  {"name":"other","driver":"macvlan","containers":null}]"#;

fn info() -> Info {
    Info {
        version: Version { text: "5.8.6".into(), number: (5, 8) },
        graph_root: "/var/lib/containers/storage".into(),
        run_root: "/run/containers/storage".into(),
        static_dir: "/var/lib/containers/storage/libpod".into(),
        volume_root: "/var/lib/containers/storage/volumes".into(),
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

#[test]
fn a_container_with_everything() {
    let raw = parse(SAMPLE.as_bytes()).unwrap();
    assert!(raw.bundle().unwrap().ends_with("userdata"));
    let mut c = raw.into_container(None, &info());
    finish(&mut c, parse_networks(NETWORKS.as_bytes()).unwrap());

    assert_eq!((c.name.as_str(), &c.state), ("rich", &State::Running));
    assert_eq!((c.pid, c.monitor_pid), (284, 282));
    assert_eq!(c.runtime.path.as_deref(), Some(Path::new("/usr/bin/crun")));
    assert_eq!(c.image.name, "localhost/probe:1");
    assert!(c.upper.unwrap().ends_with("diff") && c.merged.unwrap().ends_with("merged"));
    assert_eq!(c.networks.len(), 1);
    let network = &c.networks[0];
    assert_eq!((network.driver.as_str(), network.mac.as_deref().unwrap().len()), ("bridge", 17));
    let addresses: Vec<_> = network.addresses.iter().map(|(ip, n)| format!("{ip}/{n}")).collect();
    assert_eq!(addresses, ["10.99.0.2/24", "fd00:99::2/64"]);
    assert_eq!(network.gateways.len(), 2);
    assert!(c.netns.unwrap().starts_with("/run/netns"));
    assert_eq!(c.ports.len(), 4);
    assert_eq!((c.ports[0].protocol.as_str(), c.ports[0].host_ip), ("udp", None));
    assert_eq!(c.ports[3].host_port, 8082);
    assert_eq!(c.mounts[0].name.as_deref(), Some("vol1"));
    assert_eq!((&c.mounts[1].kind, c.mounts[1].writable), (&MountKind::Bind, false));
    assert_eq!(c.tmpfs.len(), 2);
    assert_eq!(c.restart.name, "always");
    assert!(c.privileged && c.tty && c.health_check);
    assert!(!c.init && !c.systemd && !c.auto_remove && !c.rootless && !c.user_namespace);
    assert_eq!((c.pod, c.memory_limit, c.external_rootfs), (None, None, None));
    assert_eq!(c.labels["a"], "b");
    assert!(c.shared_namespaces.is_empty());
}

#[test]
fn a_runtime_that_is_not_the_default_has_no_path() {
    let text = SAMPLE.replace("\"OCIRuntime\": \"crun\"", "\"OCIRuntime\": \"runc\"");
    let c = parse(text.as_bytes()).unwrap().into_container(None, &info());
    assert_eq!((c.runtime.name.as_str(), c.runtime.path), ("runc", None));
}

#[test]
fn nulls_and_absent_fields() {
    let text = r#"[{"Id":"a","Name":"n","State":{},"ExecIDs":null,"Mounts":null,
      "GraphDriver":null,"NetworkSettings":{"Ports":{"1/tcp":null,"x":[],"99999/udp":[]},
      "Networks":null},"Config":{"Labels":null,"Annotations":null},"HostConfig":{"Tmpfs":null,
      "Devices":null,
      "PidMode":"host","IpcMode":"container:x"}}]"#;
    let c = parse(text.as_bytes()).unwrap().into_container(None, &info());
    assert_eq!((c.state, c.pid, c.ports.len()), (State::Unknown, 0, 0));
    assert_eq!(c.shared_namespaces, ["pid host", "ipc container:x"]);
    assert!(c.networks.is_empty());
}

#[test]
fn other_texts_are_refused() {
    for text in ["", "[]", "{}", "null", "[1]", "[{\"Id\":3}]"] {
        assert!(parse(text.as_bytes()).is_err(), "{text}");
    }
    for cut in (0..SAMPLE.trim_end().len()).step_by(7) {
        assert!(parse(&SAMPLE.as_bytes()[..cut]).is_err());
    }
    let deep = "[".repeat(100_000);
    assert!(parse(deep.as_bytes()).is_err());
}
