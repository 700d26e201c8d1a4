//! podman's `ContainerConfig` (`libpod/container_config.go`) and its state of networks
//! (`StatusBlock`, `libnetwork/types/network.go`).

mod raw;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Place;
use crate::description::{
    Address, Confinement, Connectivity, Description, Health, Image, Life, Log, Network, Port,
    Process, StartupCheck, Storage, VolumeMount,
};
use raw::{Config, Interface, NamedVolume, PortMapping, Startup, Status, Subnet};

/// podman's words that others would not know, and those of a description.
const READINESS: (&str, &str) = ("conmon", "monitor");
const HEALTH_LOG: (&str, &str) = ("events_logger", "events");
/// The control group in which podman makes containers, by itself or through systemd (`libpod/options.go`).
pub(super) const OWN_PARENTS: [&str; 2] = ["/libpod_parent", "machine.slice"];

/// Reads configuration and network status.
pub(super) fn read(
    config: &Value,
    status: &Value,
    into: &mut Description,
) -> Result<(), serde_json::Error> {
    let config = Config::deserialize(config)?;
    let mut status = BTreeMap::<String, Status>::deserialize(status)?;
    let short_id = config.id.get(..SHORT_ID).unwrap_or_default().to_owned();
    let mut networks = Vec::new();
    for (name, options) in config.networks {
        let status = status.remove(&name).unwrap_or_default();
        // podman gives these by itself whenever it makes or imports a container.
        let is_given = |alias: &String| *alias != short_id && *alias != config.spec.hostname;
        let mut aliases: Vec<String> = Vec::new();
        for alias in options.aliases.into_iter().filter(is_given) {
            if !aliases.contains(&alias) {
                aliases.push(alias);
            }
        }
        let (interface, state) = match status.interfaces.into_iter().next() {
            Some(found) => found,
            None => (options.interface_name, Interface::default()),
        };
        networks.push(Network {
            name,
            interface,
            aliases,
            static_addresses: options.static_ips,
            static_mac: options.static_mac,
            options: options.options,
            addresses: state.subnets.iter().filter_map(address).collect(),
            mac: state.mac_address,
        });
    }
    let port = |mapping: PortMapping| Port {
        protocol: mapping.protocol,
        host_address: mapping.host_ip.parse().ok(),
        host_port: mapping.host_port,
        container_port: mapping.container_port,
        range: mapping.range,
    };
    into.connectivity = Connectivity {
        networks,
        ports: config.ports.into_iter().map(port).collect(),
        exposed: config.exposed,
        dns_servers: config.dns_servers,
        dns_search: config.dns_search,
        dns_options: config.dns_options,
        extra_hosts: config.extra_hosts,
        hosts_file: config.hosts_file,
        image_resolver: config.image_resolver,
        image_hosts: config.image_hosts,
        image_hostname: config.image_hostname,
    };
    into.id = config.id;
    into.name = config.name;
    into.runtime = config.runtime;
    into.created = config.created;
    into.create_command = config.create_command;
    into.image =
        Image { id: config.image_id, name: config.image_name, requested: config.raw_image_name };
    into.hostname = config.spec.hostname;
    into.labels = config.labels;
    into.timezone = config.timezone;
    into.process = Process {
        entrypoint: config.entrypoint,
        command: config.command,
        creates_cwd: config.create_working_dir,
        user: config.user,
        groups: config.groups,
        umask: config.umask,
        stdin: config.stdin,
        keeps_accounts: config.passwd,
        passwd_entry: config.passwd_entry,
        group_entry: config.group_entry,
        ..Process::default()
    };
    into.life = Life {
        restart: config.restart_policy,
        restart_retries: config.restart_retries,
        stop_signal: config.stop_signal,
        stop_timeout: config.stop_timeout,
        timeout: config.timeout,
        readiness: neutral(READINESS, config.notify_mode),
        ..Life::default()
    };
    into.health = Health {
        check: config.healthcheck,
        startup: config
            .startup
            .map(|Startup { check, successes }| StartupCheck { check, successes }),
        on_failure: config.healthcheck_on_failure_action,
        log: config.health_log.map(|log| neutral(HEALTH_LOG, log)),
        log_count: config.health_log_count,
        log_size: config.health_log_size,
    };
    into.log = Log { driver: config.log_driver, tag: config.log_tag, max_size: config.log_size };
    into.confinement = Confinement {
        privileged: config.privileged,
        all_devices: config.all_devices,
        requested_devices: config.device_host_src.into_iter().map(|device| device.path).collect(),
        ..Confinement::default()
    };
    into.confinement.selinux.disabled = config.labelopts == ["disable"];
    into.resources.parent =
        Some(config.cgroup_parent).filter(|p| !OWN_PARENTS.contains(&&**p)).unwrap_or_default();
    into.storage = Storage {
        writable_memory: config.writable_memory,
        volatile: config.volatile,
        shared_memory: config.shm_size,
        without_shared_memory: config.no_shm,
        private_shared_memory: config.no_shm_share,
        volumes: config.named_volumes.into_iter().map(read_volume).collect(),
        requested_mounts: config.user_volumes,
        roots: config.chroot_directories,
        ..Storage::default()
    };
    Ok(())
}

/// Writes the configuration. What podman sets by itself is left out: its lock, the paths of its
/// logs and process IDs, and the directory of shared memory, which it adds to the mounts.
pub(super) fn write(description: &Description, place: &Place) -> Value {
    let Description { image, process, life, health, log, confinement, storage, .. } = description;
    let connectivity = &description.connectivity;
    let (process_label, mount_label) = super::oci_spec::labels(&confinement.selinux);
    let mut cleanup = place.cleanup.clone();
    if life.auto_remove {
        // podman wants the ID last.
        cleanup.insert(cleanup.len().saturating_sub(1), "--rm".into());
    }
    let first = json!({
        "id": description.id,
        "runtime": description.runtime,
        "name": description.name,
        "CreateCommand": description.create_command,
        "RawImageName": image.requested,
        "idMappingsOptions": {"HostUIDMapping": true, "HostGIDMapping": true},
        "rootfsImageID": image.id,
        "rootfsImageName": image.name,
        "NOShmShare": storage.private_shared_memory,
        "NoShm": storage.without_shared_memory,
        "shmSize": storage.shared_memory,
        "staticDir": place.userdata,
        "secretsPath": place.userdata.join("secrets"),
        "createWorkingDir": process.creates_cwd,
        "volatile": storage.volatile,
        "passwd": process.keeps_accounts,
        "chroot_directories": storage.roots,
        "privileged": confinement.privileged,
        "ProcessLabel": process_label,
        "MountLabel": mount_label,
        "labelopts": if confinement.selinux.disabled { json!(["disable"]) } else { Value::Null },
        "user": process.user,
        "groups": process.groups,
        "namedVolumes": storage.volumes.iter().map(write_volume).collect::<Vec<_>>(),
        "userVolumes": storage.requested_mounts,
        "entrypoint": process.entrypoint,
        "command": process.command,
        "stdin": process.stdin,
        "labels": description.labels,
        "stopSignal": life.stop_signal,
        "stopTimeout": life.stop_timeout,
        "timeout": life.timeout,
        "createdTime": description.created,
        "cgroupsMode": if place.is_split { "split" } else { "enabled" },
        "cgroupParent": description.resources.parent,
        "group_entry": process.group_entry,
        "logPath": "",
        "logTag": log.tag,
        "logSize": log.max_size,
        "logDriver": log.driver,
        "exitCommand": cleanup,
    });
    let second = json!({
        "createNetNS": true,
        "networkMode": "bridge",
        "newPortMappings": connectivity.ports.iter().map(write_port).collect::<Vec<_>>(),
        "exposedPorts": connectivity.exposed,
        "UseImageResolvConf": connectivity.image_resolver,
        "dnsServer": connectivity.dns_servers,
        "dnsSearch": connectivity.dns_search,
        "dnsOption": connectivity.dns_options,
        "useImageHostname": connectivity.image_hostname,
        "UseImageHosts": connectivity.image_hosts,
        "baseHostsFile": connectivity.hosts_file,
        "hostsAdd": connectivity.extra_hosts,
        "newNetworks": write_options(&connectivity.networks),
        "restart_policy": life.restart,
        "restart_retries": life.restart_retries,
        "sdnotifyMode": podmans(READINESS, &life.readiness),
        "healthcheck": health.check,
        "healthcheck_on_failure_action": health.on_failure,
        "healthLogDestination": health.log.as_ref().map(|log| podmans(HEALTH_LOG, log)),
        "healthMaxLogCount": health.log_count,
        "healthMaxLogSize": health.log_size,
        "startupHealthCheck": health.startup.as_ref().map(write_startup),
        "timezone": description.timezone,
        "umask": process.umask,
        "device_host_src": confinement.requested_devices.iter().map(|path| json!({"path": path}))
            .collect::<Vec<_>>(),
        "passwd_entry": process.passwd_entry,
        "mountAllDevices": confinement.all_devices,
        "readWriteTmpfs": storage.writable_memory,
    });
    let mut all = Map::new();
    for half in [first, second] {
        if let Value::Object(half) = half {
            all.extend(half);
        }
    }
    Value::Object(all)
}

/// Writes the state of networks, as far as podman looks at it when it imports a container.
pub(super) fn write_networks(networks: &[Network]) -> Value {
    let subnet = |address: &Address| {
        json!({
            "ipnet": format!("{}/{}", address.ip, address.prefix),
            "gateway": address.gateway,
        })
    };
    let status = |network: &Network| {
        let subnets: Vec<Value> = network.addresses.iter().map(subnet).collect();
        let mut interface = json!({"subnets": subnets});
        // Go takes an empty hardware address for a mistake.
        if !network.mac.is_empty() {
            interface["mac_address"] = json!(network.mac);
        }
        (network.name.clone(), json!({"interfaces": {network.interface.clone(): interface}}))
    };
    Value::Object(networks.iter().map(status).collect())
}

/// Characters of the ID that podman gives as an alias (`getExtraNetworkAliases`).
pub(super) const SHORT_ID: usize = 12;

fn write_options(networks: &[Network]) -> Value {
    let options = |network: &Network| {
        let mut options = json!({
            "static_ips": network.static_addresses,
            "aliases": network.aliases,
            "interface_name": network.interface,
            "options": network.options,
        });
        if !network.static_mac.is_empty() {
            options["static_mac"] = json!(network.static_mac);
        }
        (network.name.clone(), options)
    };
    Value::Object(networks.iter().map(options).collect())
}

/// Reads how a volume is mounted; the OCI configuration has the rest.
fn read_volume(volume: NamedVolume) -> VolumeMount {
    let NamedVolume { name, dest, options, is_anonymous } = volume;
    VolumeMount {
        volume: name,
        is_anonymous,
        destination: dest,
        options,
        mount_options: Vec::new(),
    }
}

/// Writes it. podman makes a volume that it does not know, and makes it an anonymous one if it is told so
/// (`setupContainer`, `libpod/runtime_ctr.go`).
fn write_volume(volume: &VolumeMount) -> Value {
    json!({
        "volumeName": volume.volume,
        "dest": volume.destination,
        "options": volume.options,
        "setAnonymous": volume.is_anonymous,
    })
}

fn write_port(port: &Port) -> Value {
    json!({
        "host_ip": port.host_address.map_or(String::new(), |ip| ip.to_string()),
        "container_port": port.container_port,
        "host_port": port.host_port,
        "range": port.range,
        "protocol": port.protocol,
    })
}

fn write_startup(startup: &StartupCheck) -> Value {
    let mut check = json!(startup.check);
    check["Successes"] = json!(startup.successes);
    check
}

fn address(subnet: &Subnet) -> Option<Address> {
    let (ip, prefix) = subnet.ipnet.split_once('/')?;
    Some(Address { ip: ip.parse().ok()?, prefix: prefix.parse().ok()?, gateway: subnet.gateway })
}

fn neutral((podmans, neutral): (&str, &str), word: String) -> String {
    if word == podmans { neutral.to_owned() } else { word }
}

fn podmans<'a>((podmans, neutral): (&'a str, &str), word: &'a str) -> &'a str {
    if word == neutral { podmans } else { word }
}
