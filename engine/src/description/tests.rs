//! Descriptions that no honest source sends.

use super::*;

/// Returns a description of a container with nothing special.
pub(crate) fn plain() -> Description {
    let id = "a7".repeat(32);
    Description {
        id: id.clone(),
        name: "web".into(),
        created: "2026-11-28T17:47:59.709796569Z".into(),
        image: Image { id, name: "localhost/probe:1".into(), requested: "probe:1".into() },
        runtime: "crun".into(),
        specification: "1.2.1".into(),
        process: Process { args: vec!["sleep".into()], cwd: "/".into(), ..Process::default() },
        ..Description::default()
    }
}

type Change<'a> = &'a dyn Fn(&mut Description);

fn refused(change: Change) -> Option<&'static str> {
    let mut description = plain();
    change(&mut description);
    description.validate().err().map(|invalid| invalid.setting)
}

#[test]
fn usual_values_are_taken() {
    let changes: [Change; 9] = [
        &|_| {},
        &|d| d.process.args = vec!["sh".into(), "-c".into(), "a\nb\t\u{e9}".into()],
        &|d| d.labels = [("a".into(), "line\nline".into())].into(),
        &|d| d.annotations = [("org.opencontainers.image.base.name".into(), "x".into())].into(),
        &|d| d.confinement.sysctls = [("net.ipv4.ip_forward".into(), "1".into())].into(),
        &|d| d.resources.unified = [("memory.high".into(), "1".into())].into(),
        &|d| d.resources.parent = "user-work.slice".into(),
        &|d| d.timezone = "America/Argentina/Buenos_Aires".into(),
        &|d| {
            d.storage.mounts = vec![mount("/scratch", Filesystem::Tmpfs, &["size=8m", "mode=1777"])]
        },
    ];
    for (number, change) in changes.into_iter().enumerate() {
        assert_eq!(refused(change), None, "{number}");
    }
}

fn mount(destination: &str, filesystem: Filesystem, options: &[&str]) -> Mount {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    Mount { destination: destination.into(), filesystem, options }
}

#[test]
fn hostile_texts_are_refused_by_name() {
    let long = || "x".repeat(1 << 20);
    let nul = || "a\0b".to_owned();
    let many = || vec![String::new(); 5000];
    let changes: [(&str, Change); 34] = [
        ("id", &|d| d.id = "../a".into()),
        ("id", &|d| d.id = "A7".repeat(32)),
        ("name", &|d| d.name = "a/b".into()),
        ("name", &|d| d.name = "--privileged".into()),
        ("created", &|d| d.created = "now\n".into()),
        ("create_command", &|d| d.create_command = many()),
        ("image.name", &|d| d.image.name = "--x".into()),
        ("image.name", &|d| d.image.name = "\u{1b}[2J".into()),
        ("image.id", &|d| d.image.id = String::new()),
        ("runtime", &|d| d.runtime = "/bin/sh".into()),
        ("specification", &|d| d.specification = "/".into()),
        ("process.args", &|d| d.process.args = vec![long()]),
        ("process.env", &|d| d.process.env = vec![nul()]),
        ("process.cwd", &|d| d.process.cwd = "/a/../b".into()),
        ("process.user", &|d| d.process.user = "a\nb".into()),
        ("process.umask", &|d| d.process.umask = "0o22".into()),
        ("process.capabilities", &|d| d.process.capabilities.bounding = vec!["ALL".into()]),
        ("process.passwd_entry", &|d| d.process.passwd_entry = nul()),
        ("hostname", &|d| d.hostname = "a b".into()),
        ("labels", &|d| drop(d.labels.insert("a".into(), nul()))),
        ("life.restart", &|d| d.life.restart = "sometimes".into()),
        ("life.stop_signal", &|d| d.life.stop_signal = 65),
        ("health.log", &|d| d.health.log = Some("/etc/cron.d".into())),
        ("log.driver", &|d| d.log.driver = "passthrough".into()),
        ("timezone", &|d| d.timezone = "../../../etc/shadow".into()),
        ("timezone", &|d| d.timezone = "/etc/shadow".into()),
        ("resources.cpu.cpus", &|d| d.resources.cpu.cpus = "0;x".into()),
        ("resources.parent", &|d| d.resources.parent = "/a/../..".into()),
        ("resources.parent", &|d| d.resources.parent = "relative".into()),
        ("resources.parent", &|d| d.resources.parent = format!("/libpod-{}", "b8".repeat(32))),
        ("connectivity.hosts_file", &|d| d.connectivity.hosts_file = "/etc/shadow".into()),
        ("connectivity.extra_hosts", &|d| d.connectivity.extra_hosts = vec!["a\n1.2.3.4 b".into()]),
        ("confinement.readonly_paths", &|d| d.confinement.readonly_paths = vec!["..".into()]),
        ("confinement.apparmor", &|d| d.confinement.apparmor = Apparmor::Default("../x".into())),
    ];
    for (number, (setting, change)) in changes.into_iter().enumerate() {
        assert_eq!(refused(change), Some(setting), "{number}");
    }
}

#[test]
fn maps_have_only_keys_that_nobody_acts_upon() {
    for name in [
        "",
        "run.oci.handler",
        "org.criu.config",
        "org.systemd.property.ExecStartPre",
        "io.podman.annotations.cid-file",
        "io.podman.annotations.privileged",
        "io.container.manager",
        "org.opencontainers.image.stopSignal",
        "a\u{1b}",
    ] {
        let change = |d: &mut Description| drop(d.annotations.insert(name.into(), "x".into()));
        assert_eq!(refused(&change), Some("annotations"), "{name}");
    }
    for name in ["kernel.core_pattern", "net..x", "net/../x", "vm.swappiness", "net.\n"] {
        let change =
            |d: &mut Description| drop(d.confinement.sysctls.insert(name.into(), "1".into()));
        assert_eq!(refused(&change), Some("confinement.sysctls"), "{name}");
    }
    for name in ["../cgroup.procs", "cgroup.procs", "memory", "memory/x.y", "memory..x", ""] {
        let change =
            |d: &mut Description| drop(d.resources.unified.insert(name.into(), "1".into()));
        assert_eq!(refused(&change), Some("resources.unified"), "{name}");
    }
}

#[test]
fn mounts_stay_in_their_container() {
    let host = || Filesystem::Host("/etc".into());
    for one in [
        mount("", Filesystem::Tmpfs, &[]),
        mount("/", Filesystem::Tmpfs, &[]),
        mount("//", Filesystem::Tmpfs, &[]),
        mount("relative", Filesystem::Tmpfs, &[]),
        mount("/a/../../b", Filesystem::Tmpfs, &[]),
        mount("/a\0b", Filesystem::Tmpfs, &[]),
        mount("/dev/shm", Filesystem::Tmpfs, &[]),
        mount("/etc/hosts", host(), &[]),
        mount("/x", Filesystem::Tmpfs, &["bind"]),
        mount("/x", Filesystem::Proc, &["rbind"]),
        mount("/x", Filesystem::Tmpfs, &["size=1,uid=0"]),
        mount("/x", Filesystem::Tmpfs, &["upperdir=/etc"]),
        mount("/x", host(), &["Z"]),
        mount("/x", host(), &["U"]),
        mount("/x", host(), &["idmap=uids=0-0-1"]),
        mount("/x", host(), &["subpath=../.."]),
        mount("/x", Filesystem::Host("relative".into()), &[]),
        mount("/x", Filesystem::Host("/srv/../etc".into()), &[]),
        mount("/x", Filesystem::Host(String::new()), &[]),
    ] {
        let change = |d: &mut Description| d.storage.mounts = vec![one.clone()];
        assert_eq!(refused(&change), Some("storage.mounts"), "{one:?}");
    }
    let change = |d: &mut Description| {
        d.storage.mounts = vec![mount("/x", Filesystem::Tmpfs, &[]); 5000];
    };
    assert_eq!(refused(&change), Some("storage.mounts"));
}

#[test]
fn networks_have_names_and_addresses() {
    let network =
        || Network { name: "podman".into(), interface: "eth0".into(), ..Network::default() };
    type Change<'a> = &'a dyn Fn(&mut Network);
    let changes: [(&str, Change); 8] = [
        ("network.name", &|n| n.name = "../x".into()),
        ("network.interface", &|n| n.interface = "a/b".into()),
        ("network.interface", &|n| n.interface = "x".repeat(16)),
        ("network.aliases", &|n| n.aliases = vec!["a\nb".into()]),
        ("network.static_mac", &|n| n.static_mac = "02:11".into()),
        ("network.mac", &|n| n.mac = "zz:11:22:33:44:55".into()),
        ("network.options", &|n| {
            drop(n.options.insert("host_interface_name".into(), "eth0".into()))
        }),
        ("network.addresses", &|n| {
            let ip = "10.0.0.1".parse().unwrap();
            n.addresses = vec![Address { ip, prefix: 33, gateway: None }];
        }),
    ];
    for (setting, change) in changes {
        let mut one = network();
        change(&mut one);
        let change = |d: &mut Description| d.connectivity.networks = vec![one.clone()];
        assert_eq!(refused(&change), Some(setting));
    }
    let port = |protocol: &str, host_port, range| Port {
        protocol: protocol.into(),
        host_address: None,
        host_port,
        container_port: 80,
        range,
    };
    for one in [port("icmp", 1, 1), port("", 1, 1), port("tcp", 0, 1), port("tcp", 65_535, 2)] {
        let change = |d: &mut Description| d.connectivity.ports = vec![one.clone()];
        assert_eq!(refused(&change), Some("connectivity.ports"), "{one:?}");
    }
}
