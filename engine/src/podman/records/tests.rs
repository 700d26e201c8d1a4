//! Records of containers that podman 5.8 made with many options.

use serde_json::{Map, json};

use super::*;
use crate::needs::Needs;
use crate::podman::database::tests::info;

const SAMPLES: &str = include_str!("samples.json");

/// Records that podman wrote, and where.
fn sample(name: &str) -> (Records, Place) {
    let mut samples: Map<String, Value> = serde_json::from_str(SAMPLES).unwrap();
    let mut sample = samples.remove(name).unwrap();
    let mut text = |part: &str| sample[part].take().to_string();
    let [config, spec, networks] = ["config", "spec", "networks"].map(&mut text);
    let records = Records::parse(config.as_bytes(), spec.as_bytes(), networks.as_bytes()).unwrap();
    let id = records.config["id"].as_str().unwrap().to_owned();
    (records, place("/var/lib/containers/storage", "/run/containers/storage", &id))
}

fn place(root: &str, run: &str, id: &str) -> Place {
    let volume_root = Path::new(root).join("volumes");
    let (graph_root, run_root) = (root.into(), run.into());
    let info = Info { graph_root, run_root, volume_root, ..info(Path::new("/x")) };
    let init = "/usr/libexec/podman/catatonit".into();
    Place { init, ..Place::of(&info, id, vec!["podman".into(), id.into()]) }
}

fn described(name: &str) -> Described {
    let (records, place) = sample(name);
    records.describe(&place).unwrap()
}

fn lost(name: &str, change: impl FnOnce(&mut Records)) -> Vec<String> {
    let (mut records, place) = sample(name);
    change(&mut records);
    records.describe(&place).unwrap().lost.into_iter().collect()
}

#[test]
fn nothing_of_these_containers_is_lost() {
    for name in ["plain", "rich", "removed", "user", "privileged", "device", "bind", "pid"] {
        let Described { description, lost, has_secrets } = described(name);
        assert!(lost.is_empty() && !has_secrets, "{name}: {lost:?}");
        // And once more, as if another host's podman had written it: it puts one into the other.
        let there = place("/data", "/run/data", &description.id);
        let mut written = Records::write(&description, &there);
        written.config["spec"] = written.spec.clone();
        let again = written.describe(&there).unwrap();
        assert_eq!(again, Described { description, lost, has_secrets }, "{name}");
    }
}

#[test]
fn settings_are_what_the_creator_gave() {
    let rich = described("rich").description;
    assert_eq!((rich.hostname.as_str(), rich.timezone.as_str()), ("richhost", "UTC"));
    assert_eq!(rich.process.args, ["sh", "-c", "sleep 10000"], "without the engine's init");
    assert!(rich.life.init && rich.storage.read_only && rich.process.terminal);
    assert_eq!((rich.process.uid, rich.process.umask.as_str()), (1000, "0027"));
    assert_eq!(
        rich.annotations.into_iter().collect::<Vec<_>>(),
        [("my.note".into(), "hello".into())]
    );
    let network = &rich.connectivity.networks[0];
    assert_eq!(network.aliases, ["one"], "those of the engine are not the creator's");
    assert_eq!((network.addresses.len(), network.addresses[1].prefix), (2, 64));
    assert_eq!(rich.resources.memory.limit, Some(512 << 20));
    assert_eq!(rich.confinement.seccomp.unwrap().default_action, "SCMP_ACT_ERRNO");
    let plain = described("plain").description;
    assert_eq!(plain.hostname, "", "podman's own choice is none");
    assert_eq!(Needs::of(&plain), Needs::default());
    assert_eq!(described("user").description.resources.parent, "/mine");
    assert!(described("removed").description.life.auto_remove);
}

#[test]
fn what_is_the_hosts_is_seen() {
    let needs = |name: &str| Needs::of(&described(name).description);
    assert!(needs("privileged").privileged.contains("it is privileged"));
    assert_eq!(needs("device").devices, ["/dev/fuse".into()].into());
    assert_eq!(needs("bind").mounts, ["/etc".into()].into());
    assert_eq!(needs("pid").shared_namespaces, ["pid".into()].into());
}

#[test]
fn settings_without_a_place_are_named() {
    let open = lost("open", |_| {});
    assert_eq!(open, ["--cidfile /tmp/cid"]);
    type Change = (&'static str, Value, &'static str);
    let config: [Change; 17] = [
        ("ctrImageVolumes", json!([{"source": "i", "dest": "/x"}]), "ctrImageVolumes"),
        ("overlayVolumes", json!([{"source": "/etc", "dest": "/x"}]), "overlayVolumes"),
        ("labelopts", json!(["type:x"]), "labelopts"),
        ("HostUsers", json!(["root"]), "HostUsers"),
        ("netNsCtr", json!("b8"), "netNsCtr"),
        ("pod", json!("b8"), "pod"),
        ("rootfs", json!("/"), "rootfs"),
        ("logPath", json!("/etc/cron.d/x"), "logPath"),
        ("pid_file", json!("/etc/x"), "pid_file"),
        ("ShmDir", json!("/etc"), "ShmDir"),
        ("mounts", json!(["/etc"]), "mounts"),
        ("baseHostsFile", json!("/etc/shadow"), "connectivity.hosts_file=\"/etc/shadow\""),
        ("storageOpts", json!({"size": "1G"}), "storageOpts"),
        ("sdnotifySocket", json!("/run/systemd/notify"), "sdnotifySocket"),
        ("preserveFds", json!(1), "preserveFds"),
        ("networkMode", json!("host"), "networkMode"),
        ("a setting of tomorrow", json!(true), "a setting of tomorrow"),
    ];
    for (key, value, named) in config {
        let lost = lost("plain", |records| records.config[key] = value);
        assert!(lost.contains(&named.to_owned()), "{key}: {lost:?}");
    }
    let spec: [Change; 11] = [
        ("hooks", json!({"poststop": [{"path": "/h"}]}), "hooks"),
        ("domainname", json!("d"), "domainname"),
        ("process/scheduler", json!({"policy": "SCHED_FIFO"}), "process.scheduler"),
        ("process/ioPriority", json!({"class": "IOPRIO_CLASS_RT"}), "process.ioPriority"),
        ("process/selinuxLabel", json!("u:r:t:s0"), "process.selinuxLabel"),
        ("process/apparmorProfile", json!("mine"), "process.apparmorProfile"),
        ("linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt"),
        ("linux/personality", json!({"domain": "LINUX32"}), "linux.personality"),
        ("linux/uidMappings", json!([{"size": 1}]), "linux.uidMappings"),
        ("linux/rootfsPropagation", json!("shared"), "linux.rootfsPropagation"),
        ("annotations/run.oci.handler", json!("krun"), "annotations=\"run.oci.handler=krun\""),
    ];
    for (path, value, named) in spec {
        let lost = lost("plain", |records| {
            let (parent, key) = path.rsplit_once('/').unwrap_or(("", path));
            let parent = if parent.is_empty() { String::new() } else { format!("/{parent}") };
            records.spec.pointer_mut(&parent).unwrap()[key] = value;
        });
        assert!(lost.contains(&named.to_owned()), "{path}: {lost:?}");
    }
    let overlay = json!({"destination": "/x", "type": "overlay", "source": "overlay"});
    let mounted = lost("plain", |records| {
        records.spec["mounts"].as_array_mut().unwrap().push(overlay);
    });
    assert_eq!(mounted, ["mounts./x"]);
}

#[test]
fn secrets_are_told_apart() {
    let secrets =
        [("secrets", json!([{"name": "s"}])), ("secret_env", json!({"S": {"name": "s"}}))];
    for (key, value) in secrets {
        let (mut records, place) = sample("plain");
        records.config[key] = value;
        records.config["pod"] = json!("b8");
        let Described { lost, has_secrets, .. } = records.describe(&place).unwrap();
        assert!(has_secrets && lost.iter().eq(["pod"]), "{key}: {lost:?}");
    }
}

#[test]
fn aliases_do_not_grow() {
    let (mut records, place) = sample("rich");
    let short = records.config["id"].as_str().unwrap()[..12].to_owned();
    let aliases = json!(["one", short, "richhost", short, "richhost", short]);
    records.config["newNetworks"]["n6"]["aliases"] = aliases;
    let Described { description, lost, .. } = records.describe(&place).unwrap();
    assert!(lost.is_empty(), "{lost:?}");
    let written = Records::write(&description, &place);
    assert_eq!(written.config["newNetworks"]["n6"]["aliases"], json!(["one"]));
}

/// Every text in a JSON value, keys too.
fn texts(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::String(text) => into.push(text.clone()),
        Value::Array(list) => list.iter().for_each(|value| texts(value, into)),
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            into.push(key.clone());
            texts(value, into);
        }),
        _ => {}
    }
}

#[test]
fn each_path_of_a_host_is_this_hosts_own() {
    for name in ["plain", "rich", "removed", "user"] {
        let description = described(name).description;
        let there = place("/data", "/run/data", &description.id);
        let Records { config, spec, networks } = Records::write(&description, &there);
        let mut all = Vec::new();
        [&config, &spec, &networks].into_iter().for_each(|part| texts(part, &mut all));
        let of_the_source = ["/var/lib/containers", "/run/containers", "/run/netns"];
        let left = all.iter().find(|text| of_the_source.iter().any(|path| text.contains(path)));
        assert_eq!(left, None, "{name}");
        assert_eq!(config["staticDir"], json!(there.userdata));
        assert_eq!(config["logPath"], json!(""), "podman puts its own in");
        let binds = spec["mounts"].as_array().unwrap().iter().filter(|m| m["type"] == "bind");
        let sources: Vec<&Value> = binds.map(|mount| &mount["source"]).collect();
        assert!(sources.iter().all(|source| **source == json!(there.init)), "{sources:?}");
    }
}

#[test]
fn keys_are_podmans_and_never_a_peers() {
    // Go takes "shmdir" for "ShmDir": a peer has no way to write either.
    let (mut records, place) = sample("plain");
    records.config["shmdir"] = json!("/etc");
    let Described { description, lost, .. } = records.describe(&place).unwrap();
    assert!(lost.contains("shmdir"), "{lost:?}");
    let mut all = Vec::new();
    texts(&Records::write(&description, &place).config, &mut all);
    assert!(all.iter().all(|text| !text.eq_ignore_ascii_case("shmdir") && text != "/etc"));
}

#[test]
fn a_volume_is_described_by_its_name_and_has_its_place_on_each_host() {
    assert_eq!(lost("volume", |_| {}), [""; 0]);
    let Described { mut description, .. } = described("volume");
    let [volume] = &mut description.storage.volumes[..] else { panic!("one volume") };
    assert_eq!((volume.volume.as_str(), volume.destination.as_str()), ("vv", "/vol"));
    assert_eq!(volume.mount_options, ["rprivate", "nosuid", "nodev", "rbind"]);
    assert!(Needs::of(&description).mounts.is_empty(), "no directory of the host's choice");
    description.storage.volumes[0].is_anonymous = true;
    let there = place("/srv/storage", "/run/storage", &description.id);
    let Records { config, spec, .. } = Records::write(&description, &there);
    assert_eq!(config["namedVolumes"][0]["setAnonymous"], true);
    let mounts = spec["mounts"].as_array().unwrap();
    let mount = mounts.iter().find(|mount| mount["destination"] == "/vol").unwrap();
    assert_eq!(mount["source"], "/srv/storage/volumes/vv/_data");

    let part = lost("volume", |records| records.config["namedVolumes"][0]["SubPath"] = json!("a"));
    assert_eq!(part, ["namedVolumes.SubPath"]);
    for option in ["U", "O", "idmap"] {
        let other = lost("volume", |records| {
            records.config["namedVolumes"][0]["options"] = json!([option])
        });
        assert!(
            other.iter().any(|lost| lost.starts_with("storage.volumes")),
            "{option}: {other:?}"
        );
    }
    let elsewhere = lost("volume", |records| {
        let mounts = records.spec["mounts"].as_array_mut().unwrap();
        let mount = mounts.iter_mut().find(|mount| mount["destination"] == "/vol").unwrap();
        mount["source"] = json!("/etc");
    });
    assert!(elsewhere.contains(&"mounts./vol.source".to_owned()), "{elsewhere:?}");
}
