use super::*;
use crate::description::tests::plain;
use crate::description::{Device, Mount, Seccomp};

/// Returns an ordinary container, confined as podman confines it.
fn ordinary() -> Description {
    let mut description = plain();
    description.process.capabilities.bounding = vec!["CAP_CHOWN".into(), "CAP_SETUID".into()];
    let confinement = &mut description.confinement;
    confinement.seccomp =
        Some(Seccomp { default_action: "SCMP_ACT_ERRNO".into(), ..Seccomp::default() });
    confinement.masked_paths = vec!["/proc/kcore".into(), "/sys/firmware".into()];
    confinement.readonly_paths = vec!["/proc/sys".into(), "/proc/sysrq-trigger".into()];
    confinement.device_rules = vec![rule(false, "", None)];
    description
}

fn rule(allow: bool, kind: &str, numbers: Option<(i64, i64)>) -> DeviceRule {
    DeviceRule {
        allow,
        kind: kind.into(),
        major: numbers.map(|(major, _)| major),
        minor: numbers.map(|(_, minor)| minor),
        access: "rwm".into(),
    }
}

type Change<'a> = &'a dyn Fn(&mut Description);

fn needs(change: Change) -> Needs {
    let mut description = ordinary();
    change(&mut description);
    Needs::of(&description)
}

#[test]
fn an_ordinary_container_needs_nothing() {
    assert_eq!(needs(&|_| {}), Needs::default());
}

#[test]
fn whatever_makes_a_container_privileged_is_named() {
    let changes: [Change; 12] = [
        &|d| d.confinement.privileged = true,
        &|d| d.confinement.all_devices = true,
        &|d| d.confinement.seccomp = None,
        &|d| d.confinement.seccomp = Some(Seccomp::default()),
        &|d| {
            let default_action = "SCMP_ACT_ALLOW".into();
            d.confinement.seccomp = Some(Seccomp { default_action, ..Seccomp::default() });
        },
        &|d| d.confinement.apparmor = Apparmor::Unconfined,
        &|d| d.confinement.masked_paths.clear(),
        &|d| d.confinement.readonly_paths.truncate(1),
        &|d| d.confinement.device_rules.clear(),
        &|d| d.confinement.device_rules = vec![rule(true, "", None)],
        &|d| d.confinement.device_rules = vec![rule(false, "c", Some((9, 1)))],
        &|d| d.confinement.device_rules.push(rule(true, "b", Some((8, 0)))),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        assert_eq!(needs(change).privileged.len(), 1, "{number}");
    }
    let one = needs(&|d| d.confinement.device_rules[0].access = "m".into());
    assert_eq!(one.privileged.len(), 1, "devices that it cannot make it may use");
}

#[test]
fn the_kernels_files_are_where_they_are_protected() {
    let with = |destination: &str, filesystem: Filesystem, options: &[&str], host_cgroup| {
        let mount = Mount {
            destination: destination.into(),
            filesystem,
            options: options.iter().map(|option| (*option).into()).collect(),
        };
        let change = |d: &mut Description| {
            d.storage.mounts = vec![mount.clone()];
            d.confinement.namespaces.host_cgroup = host_cgroup;
        };
        needs(&change).privileged.len()
    };
    assert_eq!(with("/proc", Filesystem::Proc, &[], false), 0);
    assert_eq!(with("/x", Filesystem::Proc, &["ro"], false), 1);
    assert_eq!(with("/proc/", Filesystem::Proc, &[], false), 1);
    assert_eq!(with("/sys", Filesystem::Sysfs, &["ro"], false), 0);
    assert_eq!(with("/sys", Filesystem::Sysfs, &["rw"], false), 1);
    assert_eq!(with("/sys", Filesystem::Sysfs, &["ro", "rw"], false), 1);
    assert_eq!(with("/x", Filesystem::Sysfs, &["ro"], false), 1);
    assert_eq!(with("/sys/fs/cgroup", Filesystem::Cgroup, &["rw"], false), 0);
    assert_eq!(with("/sys/fs/cgroup", Filesystem::Cgroup, &["rw"], true), 1);
}

#[test]
fn what_is_the_hosts_is_named() {
    let fuse = Device {
        path: "/dev/fuse".into(),
        kind: "c".into(),
        major: 10,
        minor: 229,
        ..Device::default()
    };
    let device = needs(&|d| {
        d.confinement.devices.push(fuse.clone());
        d.confinement.device_rules.push(rule(true, "c", Some((10, 229))));
    });
    let devices = ["/dev/fuse".into()].into();
    assert_eq!(device, Needs { devices, ..Needs::default() });
    let mount = needs(&|d| {
        let filesystem = Filesystem::Host("/srv".into());
        d.storage.mounts = vec![Mount { filesystem, ..Mount::default() }];
    });
    assert_eq!(mount, Needs { mounts: ["/srv".into()].into(), ..Needs::default() });
    let shared: [(&str, Change); 3] = [
        ("pid", &|d| d.confinement.namespaces.host_pid = true),
        ("ipc", &|d| d.confinement.namespaces.host_ipc = true),
        ("uts", &|d| d.confinement.namespaces.host_uts = true),
    ];
    for (kind, change) in shared {
        assert_eq!(needs(change).shared_namespaces, [kind.into()].into());
    }
    let limited = needs(&|d| d.resources.memory.limit = Some(4096));
    assert_eq!(limited.memory_limit, Some(4096));
}

#[test]
fn capabilities_of_every_set_are_named() {
    let added = || vec!["CAP_SYS_ADMIN".to_owned(), "CAP_KILL".to_owned()];
    let changes: [Change; 5] = [
        &|d| d.process.capabilities.bounding = added(),
        &|d| d.process.capabilities.effective = added(),
        &|d| d.process.capabilities.permitted = added(),
        &|d| d.process.capabilities.inheritable = added(),
        &|d| d.process.capabilities.ambient = added(),
    ];
    for change in changes {
        assert_eq!(needs(change).capabilities, ["SYS_ADMIN".into()].into());
    }
}
