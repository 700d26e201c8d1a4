//! Validates a description, which is a peer's input: nothing in it may name a file of this host, another container, or
//! anything that an engine or a runtime interprets as more than a value.

mod text;

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{
    Apparmor, Confinement, Connectivity, Description, Filesystem, Health, HealthCheck, Life, Log,
    Mount, Network, Process, Resources, Seccomp, Storage, VolumeMount,
};
use crate::inspect::{is_full_id, is_name};
use text::{
    LIST, at_most, is_annotation, is_cgroup_file, is_cgroup_parent, is_destination, is_mac,
    is_mount_option, is_number_list, is_printable, is_sysctl, is_text, is_timestamp, is_word,
    is_zone, matches_none,
};

/// A setting that no container may have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its setting {setting} has a value that cannot be taken over: {value}")]
pub struct Invalid {
    /// The setting's name in a [`Description`].
    pub setting: &'static str,
    /// The beginning of its value.
    pub value: String,
}

/// Where engines put their own files.
const ENGINE_FILES: [&str; 8] = [
    "/dev/shm",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/hostname",
    "/run/.containerenv",
    "/run/secrets",
    "/var/run/.containerenv",
    "/var/run/secrets",
];

impl Description {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`Invalid`] names the first setting that a container may not have.
    pub fn validate(&self) -> Result<(), Invalid> {
        let Self { image, process, confinement, resources, storage, connectivity, .. } = self;
        demand("id", &self.id, is_full_id)?;
        demand("name", &self.name, is_name)?;
        demand("created", &self.created, is_timestamp)?;
        each("create_command", &self.create_command, is_text)?;
        demand("image.id", &image.id, is_full_id)?;
        demand("image.name", &image.name, |name| is_printable(name) && !name.starts_with('-'))?;
        demand("image.requested", &image.requested, is_printable)?;
        demand("runtime", &self.runtime, |runtime| matches!(runtime, "crun" | "runc"))?;
        demand("specification", &self.specification, |v| at_most(v, 32) && is_word(v, ".-+"))?;
        check_process(process)?;
        demand("hostname", &self.hostname, |name| at_most(name, 64) && is_word(name, ".-_"))?;
        map("labels", &self.labels, |name, value| {
            !name.is_empty() && is_text(name) && is_text(value)
        })?;
        map("annotations", &self.annotations, |name, value| is_annotation(name) && is_text(value))?;
        check_life(&self.life)?;
        check_health(&self.health)?;
        check_log(&self.log)?;
        check_confinement(confinement)?;
        check_resources(resources)?;
        check_storage(storage)?;
        check_connectivity(connectivity)?;
        demand("timezone", &self.timezone, is_zone)
    }
}

fn check_process(process: &Process) -> Result<(), Invalid> {
    each("process.args", &process.args, is_text)?;
    each("process.entrypoint", &process.entrypoint, is_text)?;
    each("process.command", &process.command, is_text)?;
    each("process.env", &process.env, |text| is_text(text) && !text.starts_with('='))?;
    demand("process.cwd", &process.cwd, |cwd| cwd == "/" || is_destination(cwd))?;
    demand("process.user", &process.user, is_printable)?;
    each("process.groups", &process.groups, is_printable)?;
    count("process.additional_gids", &process.additional_gids)?;
    let is_octal = |text: &str| at_most(text, 5) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
    demand("process.umask", &process.umask, is_octal)?;
    let sets = &process.capabilities;
    for set in [&sets.bounding, &sets.effective, &sets.inheritable, &sets.permitted, &sets.ambient]
    {
        each("process.capabilities", set, |name| name.starts_with("CAP_") && is_word(name, "_"))?;
    }
    count("process.limits", &process.limits)?;
    for limit in &process.limits {
        demand("process.limits", &limit.kind, |n| n.starts_with("RLIMIT_") && is_word(n, "_"))?;
    }
    let score = process.oom_score_adj.unwrap_or(0);
    demand("process.oom_score_adj", &score.to_string(), |_| (-1000..=1000).contains(&score))?;
    demand("process.passwd_entry", &process.passwd_entry, is_text)?;
    demand("process.group_entry", &process.group_entry, is_text)
}

fn check_life(life: &Life) -> Result<(), Invalid> {
    const RESTART: [&str; 5] = ["", "no", "on-failure", "always", "unless-stopped"];
    const READINESS: [&str; 5] = ["", "container", "monitor", "healthy", "ignore"];
    demand("life.restart", &life.restart, |policy| RESTART.contains(&policy))?;
    demand("life.readiness", &life.readiness, |mode| READINESS.contains(&mode))?;
    demand("life.stop_signal", &life.stop_signal.to_string(), |_| life.stop_signal <= 64)?;
    for (setting, number) in [
        ("life.restart_retries", life.restart_retries),
        ("life.stop_timeout", life.stop_timeout),
        ("life.timeout", life.timeout),
    ] {
        demand(setting, &number.to_string(), |_| number <= u64::from(u32::MAX))?;
    }
    Ok(())
}

fn check_health(health: &Health) -> Result<(), Invalid> {
    let startup = health.startup.iter().map(|startup| &startup.check);
    for HealthCheck { test, .. } in health.check.iter().chain(startup) {
        each("health.check", test, is_text)?;
    }
    let action = health.on_failure;
    demand("health.on_failure", &action.to_string(), |_| matches!(action, 0 | 2..=4))?;
    let log = health.log.as_deref().unwrap_or_default();
    demand("health.log", log, |log| matches!(log, "" | "local" | "events"))
}

fn check_log(log: &Log) -> Result<(), Invalid> {
    const DRIVERS: [&str; 5] = ["", "k8s-file", "json-file", "journald", "none"];
    demand("log.driver", &log.driver, |driver| DRIVERS.contains(&driver))?;
    demand("log.tag", &log.tag, is_printable)
}

fn check_confinement(confinement: &Confinement) -> Result<(), Invalid> {
    if let Apparmor::Default(name) = &confinement.apparmor {
        demand("confinement.apparmor", name, |name| at_most(name, 64) && is_word(name, ".-"))?;
    }
    let categories = confinement.selinux.categories.unwrap_or_default();
    demand("confinement.selinux", &format!("{categories:?}"), |_| {
        categories.0.max(categories.1) < 1024
    })?;
    each("confinement.masked_paths", &confinement.masked_paths, is_destination)?;
    each("confinement.readonly_paths", &confinement.readonly_paths, is_destination)?;
    count("confinement.devices", &confinement.devices)?;
    for device in &confinement.devices {
        demand("confinement.devices", &device.path, is_destination)?;
        demand("confinement.devices", &device.kind, |kind| matches!(kind, "c" | "b" | "u" | "p"))?;
    }
    each("confinement.requested_devices", &confinement.requested_devices, is_printable)?;
    count("confinement.device_rules", &confinement.device_rules)?;
    for rule in &confinement.device_rules {
        demand("confinement.device_rules", &rule.kind, |kind| {
            matches!(kind, "" | "a" | "b" | "c")
        })?;
        demand("confinement.device_rules", &rule.access, |access| {
            access.bytes().all(|b| b"rwm".contains(&b)) && access.len() <= 3
        })?;
    }
    map("confinement.sysctls", &confinement.sysctls, |name, value| {
        is_sysctl(name) && is_printable(value)
    })?;
    let asked = &confinement.requested;
    for text in
        [&asked.seccomp, &asked.apparmor, &asked.label, &asked.pids_limit, &asked.cpus, &asked.mems]
    {
        demand("confinement.requested", text, is_printable)?;
    }
    confinement.seccomp.as_ref().map_or(Ok(()), check_seccomp)
}

fn check_seccomp(seccomp: &Seccomp) -> Result<(), Invalid> {
    let is_constant = |text: &str| at_most(text, 64) && is_word(text, "_");
    demand("confinement.seccomp", &seccomp.default_action, is_constant)?;
    each("confinement.seccomp", &seccomp.architectures, is_constant)?;
    each("confinement.seccomp", &seccomp.flags, is_constant)?;
    count("confinement.seccomp", &seccomp.syscalls)?;
    for rule in &seccomp.syscalls {
        each("confinement.seccomp", &rule.names, is_constant)?;
        demand("confinement.seccomp", &rule.action, is_constant)?;
        count("confinement.seccomp", &rule.args)?;
        for argument in &rule.args {
            demand("confinement.seccomp", &argument.op, is_constant)?;
        }
    }
    Ok(())
}

fn check_resources(resources: &Resources) -> Result<(), Invalid> {
    demand("resources.cpu.cpus", &resources.cpu.cpus, is_number_list)?;
    demand("resources.cpu.mems", &resources.cpu.mems, is_number_list)?;
    count("resources.hugepage_limits", &resources.hugepage_limits)?;
    for limit in &resources.hugepage_limits {
        demand("resources.hugepage_limits", &limit.page_size, |s| {
            at_most(s, 16) && is_word(s, "")
        })?;
    }
    map("resources.unified", &resources.unified, |file, value| {
        is_cgroup_file(file) && is_text(value)
    })?;
    demand("resources.parent", &resources.parent, is_cgroup_parent)
}

fn check_storage(storage: &Storage) -> Result<(), Invalid> {
    let room = storage.shared_memory;
    demand("storage.shared_memory", &room.to_string(), |_| room >= 0)?;
    count("storage.mounts", &storage.mounts)?;
    for Mount { destination, filesystem, options } in &storage.mounts {
        let is_free = !ENGINE_FILES.contains(&destination.trim_end_matches('/'));
        demand("storage.mounts", destination, |path| is_free && is_destination(path))?;
        each("storage.mounts", options, is_mount_option)?;
        let shows_a_host = matches!(filesystem, Filesystem::Host(_));
        let is_bind = |option: &str| matches!(option, "bind" | "rbind");
        each("storage.mounts", options, |option| shows_a_host || !is_bind(option))?;
        if let Filesystem::Host(source) = filesystem {
            demand("storage.mounts", source, |path| path == "/" || is_destination(path))?;
        }
    }
    check_volumes(&storage.volumes)?;
    each("storage.requested_mounts", &storage.requested_mounts, is_destination)?;
    each("storage.roots", &storage.roots, is_destination)
}

/// Options of a volume's mount that change neither its files nor what they are on.
const VOLUME_OPTIONS: [&str; 20] = [
    "rw", "ro", "bind", "rbind", "private", "rprivate", "slave", "rslave", "shared", "rshared",
    "dev", "nodev", "suid", "nosuid", "exec", "noexec", "copy", "nocopy", "z", "Z",
];

fn check_volumes(volumes: &[VolumeMount]) -> Result<(), Invalid> {
    count("storage.volumes", volumes)?;
    for VolumeMount { volume, destination, options, mount_options, .. } in volumes {
        demand("storage.volumes", volume, is_name)?;
        let is_free = !ENGINE_FILES.contains(&destination.trim_end_matches('/'));
        demand("storage.volumes", destination, |path| is_free && is_destination(path))?;
        each("storage.volumes", options, |option| VOLUME_OPTIONS.contains(&option))?;
        each("storage.volumes", mount_options, is_mount_option)?;
    }
    Ok(())
}

fn check_connectivity(connectivity: &Connectivity) -> Result<(), Invalid> {
    const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];
    let is_protocol = |text: &str| PROTOCOLS.contains(&text);
    count("connectivity.networks", &connectivity.networks)?;
    connectivity.networks.iter().try_for_each(check_network)?;
    count("connectivity.ports", &connectivity.ports)?;
    for port in &connectivity.ports {
        demand("connectivity.ports", &port.protocol, |text| text.split(',').all(is_protocol))?;
        let last = |first: u16| u32::from(first) + u32::from(port.range.max(1)) - 1;
        let most = last(port.host_port).max(last(port.container_port));
        let is_free = port.container_port > 0 && port.host_port > 0 && most <= u32::from(u16::MAX);
        demand("connectivity.ports", &format!("{port:?}"), |_| is_free)?;
    }
    let exposed = connectivity.exposed.values().flatten();
    exposed.into_iter().try_for_each(|text| demand("connectivity.exposed", text, is_protocol))?;
    count("connectivity.dns_servers", &connectivity.dns_servers)?;
    each("connectivity.dns_search", &connectivity.dns_search, is_printable)?;
    each("connectivity.dns_options", &connectivity.dns_options, is_printable)?;
    each("connectivity.extra_hosts", &connectivity.extra_hosts, is_printable)?;
    demand("connectivity.hosts_file", &connectivity.hosts_file, |f| {
        matches!(f, "" | "none" | "image")
    })
}

fn check_network(network: &Network) -> Result<(), Invalid> {
    demand("network.name", &network.name, is_name)?;
    let is_interface =
        |name: &str| at_most(name, 15) && matches_none(name, &[".", ".."]) && is_word(name, ".-_");
    demand("network.interface", &network.interface, is_interface)?;
    each("network.aliases", &network.aliases, is_printable)?;
    count("network.static_addresses", &network.static_addresses)?;
    demand("network.static_mac", &network.static_mac, |mac| mac.is_empty() || is_mac(mac))?;
    demand("network.mac", &network.mac, |mac| mac.is_empty() || is_mac(mac))?;
    map("network.options", &network.options, |name, value| {
        matches!(name, "mtu" | "metric" | "no_default_route")
            && at_most(value, 10)
            && is_word(value, "")
    })?;
    count("network.addresses", &network.addresses)?;
    for address in &network.addresses {
        let most = if matches!(address.ip, IpAddr::V4(_)) { 32 } else { 128 };
        demand("network.addresses", &format!("{address:?}"), |_| address.prefix <= most)?;
    }
    Ok(())
}

/// Fails unless the value is valid.
fn demand(
    setting: &'static str,
    value: &str,
    is_valid: impl FnOnce(&str) -> bool,
) -> Result<(), Invalid> {
    const SHOWN: usize = 60;
    if is_valid(value) {
        return Ok(());
    }
    let shown: String = value.chars().take(SHOWN).collect();
    Err(Invalid { setting, value: format!("{shown:?}") })
}

fn count<T>(setting: &'static str, list: &[T]) -> Result<(), Invalid> {
    demand(setting, &format!("{} of them", list.len()), |_| list.len() <= LIST)
}

fn each(
    setting: &'static str,
    list: &[String],
    is_valid: impl Fn(&str) -> bool,
) -> Result<(), Invalid> {
    count(setting, list)?;
    list.iter().try_for_each(|text| demand(setting, text, &is_valid))
}

fn map(
    setting: &'static str,
    map: &BTreeMap<String, String>,
    is_valid: impl Fn(&str, &str) -> bool,
) -> Result<(), Invalid> {
    demand(setting, &format!("{} of them", map.len()), |_| map.len() <= LIST)?;
    for (name, value) in map {
        demand(setting, &format!("{name}={value}"), |_| is_valid(name, value))?;
    }
    Ok(())
}
