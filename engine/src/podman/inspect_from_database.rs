//! The description of a plain container, from podman's own records and without running podman.
//!
//! A plain container has an image, networks, published ports, a log, and nothing else. Few fields of podman's description
//! of such a container differ from their defaults. These fields are read as podman reads them
//! (`libpod/container_inspect.go`, `libpod/container_inspect_linux.go`). A container with a setting that is not known
//! here, perhaps of another version of podman, is not plain: the answer is `None`, and podman is asked.

mod raw;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use rusqlite::Connection;
use serde_json::{Map, Value};

use super::inspect::raw::{
    RawAddress, RawBinding, RawConfig, RawContainer, RawGraphDriver, RawHostConfig, RawLogConfig,
    RawNetwork, RawNetworkSettings, RawRestartPolicy, RawState,
};
use super::records::is_zero;
use super::{Info, state_files};
use crate::inspect::is_full_id;
use checkpoint::cgroup::Cgroup;
use raw::{Config, NetworkStatus, Ports, Spec, State, Subnet};

/// Settings that a plain container may have, with whatever value: those that are read below, and those that
/// have no part in podman's description as far as it is used. Any other must be absent or empty.
const SETTINGS: &[&str] = &[
    "id",
    "name",
    "spec",
    "lockID",
    "CreateCommand",
    "RawImageName",
    "idMappingsOptions",
    "rootfsImageID",
    "rootfsImageName",
    "ShmDir",
    "shmSize",
    "staticDir",
    "mounts",
    "createWorkingDir",
    "secretsPath",
    "passwd",
    "labelopts",
    "MountLabel",
    "ProcessLabel",
    "createNetNS",
    "newPortMappings",
    "exposedPorts",
    "newNetworks",
    "networkMode",
    "dnsServer",
    "dnsSearch",
    "dnsOption",
    "hostsAdd",
    "command",
    "entrypoint",
    "user",
    "umask",
    "timezone",
    "labels",
    "stopSignal",
    "stopTimeout",
    "createdTime",
    "cgroupManager",
    "cgroupsMode",
    "cgroupParent",
    "logPath",
    "logTag",
    "logSize",
    "logDriver",
    "conmonPidFile",
    "pid_file",
    "runtime",
    "restart_policy",
    "restart_retries",
    "sdnotifyMode",
    "healthLogDestination",
    "healthMaxLogCount",
    "healthMaxLogSize",
];

/// The same for podman's record of what it is doing.
const STATES: &[&str] = &[
    "state",
    "configPath",
    "runDir",
    "mounted",
    "mountPoint",
    "startedTime",
    "finishedTime",
    "checkpointedTime",
    "restoredTime",
    "pid",
    "conmonPid",
    "netns",
    "networkStatus",
    "bindMounts",
    "restored",
];

/// What podman mounts into every container, by destination and type.
const MOUNTS: [(&str, &str); 6] = [
    ("/proc", "proc"),
    ("/dev", "tmpfs"),
    ("/dev/pts", "devpts"),
    ("/dev/mqueue", "mqueue"),
    ("/sys", "sysfs"),
    ("/sys/fs/cgroup", "cgroup"),
];
/// What podman writes beside every container, and keeps where a container came by a checkpoint.
const ANNOTATIONS: [&str; 4] = [
    "io.container.manager",
    "org.opencontainers.image.stopSignal",
    "org.systemd.property.KillSignal",
    "org.systemd.property.TimeoutStopUSec",
];
/// Namespaces that it has for itself.
const NAMESPACES: [&str; 6] = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
/// `ContainerStateRunning` (`libpod/define/containerstate.go`).
const RUNNING: u64 = 3;

/// Returns what podman would say of a running container, given by its exact ID or name, if that is plain.
pub(super) fn plain(info: &Info, id_or_name: &str) -> Option<RawContainer> {
    let (config, state) =
        state_files::databases(info).into_iter().find_map(|d| read(&d?, id_or_name))?;
    let raw = describe(info, &config, &state)?;
    // podman would notice that its process has ended.
    Cgroup::of_pid(raw.state.pid, &raw.id).ok()?;
    Some(raw)
}

/// Returns a container's configuration and state, if nothing else of podman's records speaks of it.
fn read(database: &Connection, id_or_name: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let query = "SELECT CAST(c.JSON AS BLOB), CAST(s.JSON AS BLOB) FROM ContainerConfig c \
                 JOIN ContainerState s ON s.ID = c.ID WHERE (c.ID = ?1 OR c.Name = ?1) \
                 AND NOT EXISTS (SELECT 1 FROM ContainerDependency d WHERE d.ID = c.ID) \
                 AND NOT EXISTS (SELECT 1 FROM ContainerExecSession e WHERE e.ContainerID = c.ID) \
                 AND NOT EXISTS (SELECT 1 FROM ContainerVolume v WHERE v.ContainerID = c.ID)";
    let mut query = database.prepare(query).ok()?;
    let mut found = query.query_map([id_or_name], |row| Ok((row.get(0)?, row.get(1)?))).ok()?;
    let one = found.next()?.ok()?;
    // A name may be another one's ID.
    found.next().is_none().then_some(one)
}

fn describe(info: &Info, config: &[u8], state: &[u8]) -> Option<RawContainer> {
    only(config, SETTINGS)?;
    only(state, STATES)?;
    let config: Config = serde_json::from_slice(config).ok()?;
    let state: State = serde_json::from_slice(state).ok()?;
    let is_plain = is_full_id(&config.id)
        && config.own_network
        && config.network_mode == "bridge"
        && config.cgroups == "enabled"
        && config.mounts.iter().all(|mount| *mount == config.shm)
        && is_without_mapping(&config.id_mappings)
        && is_usual(&config.spec)
        && state.state == RUNNING
        && state.mounted
        && state.pid > 1
        && state.conmon_pid > 1
        && config.networks.keys().eq(state.network_status.keys());
    if !is_plain {
        return None;
    }
    let networks = state.network_status.into_iter();
    Some(RawContainer {
        graph_driver: Some(layer(info, &state.mount_point)?),
        network_settings: Some(RawNetworkSettings {
            sandbox_key: Some(state.netns),
            ports: Some(bindings(config.ports.unwrap_or_default())?),
            networks: Some(
                networks
                    .map(|(name, status)| Some((name, network(status)?)))
                    .collect::<Option<_>>()?,
            ),
        }),
        state: RawState {
            status: "running".to_owned(),
            pid: state.pid,
            conmon_pid: state.conmon_pid,
        },
        oci_config_path: state.config_path,
        config: RawConfig { labels: config.labels, ..RawConfig::default() },
        host_config: RawHostConfig {
            log_config: RawLogConfig { kind: config.log_driver, path: config.log },
            network_mode: config.network_mode,
            restart_policy: RawRestartPolicy {
                name: Some(config.restart_policy).filter(|p| !p.is_empty()).unwrap_or("no".into()),
                maximum_retry_count: config.restart_retries,
            },
            cgroups: "default".to_owned(),
            ..RawHostConfig::default()
        },
        id: config.id,
        name: config.name,
        image: config.image_id,
        image_name: config.image_name,
        static_dir: config.static_dir,
        oci_runtime: config.runtime,
        ..RawContainer::default()
    })
}

/// Returns whether a JSON object has something in these fields alone.
fn only(text: &[u8], fields: &[&str]) -> Option<()> {
    let object: Map<String, Value> = serde_json::from_slice(text).ok()?;
    object
        .iter()
        .all(|(field, value)| is_zero(value) || fields.contains(&field.as_str()))
        .then_some(())
}

/// Returns whether users have the same numbers inside and outside.
fn is_without_mapping(options: &Value) -> bool {
    let Some(options) = options.as_object() else { return false };
    options.iter().all(|(field, value)| match field.as_str() {
        "HostUIDMapping" | "HostGIDMapping" => value == &Value::Bool(true),
        _ => is_zero(value),
    })
}

/// Returns whether the OCI configuration has nothing that podman does not give to every container, but
/// limits.
fn is_usual(spec: &Spec) -> bool {
    let absent = |value: &Option<Value>| value.as_ref().is_none_or(is_zero);
    let resources = spec.linux.resources.as_ref();
    let namespaces: BTreeSet<_> = spec.linux.namespaces.iter().map(|n| n.kind.as_str()).collect();
    !spec.process.terminal
        && spec.annotations.iter().flatten().all(|(name, _)| ANNOTATIONS.contains(&name.as_str()))
        && absent(&spec.hooks)
        && absent(&spec.linux.devices)
        && resources.is_none_or(|resources| {
            absent(&resources.memory)
                && resources.devices.iter().flatten().all(|device| !device.allow)
        })
        && namespaces == BTreeSet::from(NAMESPACES)
        && spec.linux.namespaces.iter().all(|namespace| namespace.path.is_none())
        && spec.mounts.iter().all(|m| MOUNTS.contains(&(m.destination.as_str(), m.kind.as_str())))
}

/// Returns the writable layer, by where it is mounted (`containers/storage`, `drivers/overlay`).
fn layer(info: &Info, mounted: &Path) -> Option<RawGraphDriver> {
    let layer = mounted.parent()?;
    let is_ours = info.storage_driver == "overlay"
        && mounted.file_name()? == "merged"
        && layer.parent()? == info.graph_root.join("overlay");
    let directory = |name: &str| layer.join(name).to_str().map(str::to_owned);
    let data = [
        ("UpperDir".to_owned(), directory("diff")?),
        ("MergedDir".to_owned(), directory("merged")?),
    ];
    is_ours.then(|| RawGraphDriver { name: "overlay".to_owned(), data: Some(BTreeMap::from(data)) })
}

/// Returns a network of the container as podman tells it (`resultToBasicNetworkConfig`).
fn network(status: NetworkStatus) -> Option<RawNetwork> {
    let mut interfaces = status.interfaces.into_values();
    let (Some(interface), None) = (interfaces.next(), interfaces.next()) else { return None };
    let mut network = RawNetwork { mac_address: interface.mac_address, ..RawNetwork::default() };
    for Subnet { ipnet, gateway } in interface.subnets {
        let (ip, prefix) = ipnet.split_once('/')?;
        let prefix_length: u8 = prefix.parse().ok()?;
        let (first, length, first_gateway, more) = match ip.parse::<IpAddr>().ok()? {
            IpAddr::V4(_) => (
                &mut network.ip_address,
                &mut network.ip_prefix_len,
                &mut network.gateway,
                &mut network.secondary_ip_addresses,
            ),
            IpAddr::V6(_) => (
                &mut network.global_ipv6_address,
                &mut network.global_ipv6_prefix_len,
                &mut network.ipv6_gateway,
                &mut network.secondary_ipv6_addresses,
            ),
        };
        if first.is_empty() {
            *first = ip.to_owned();
            *length = prefix_length;
            *first_gateway = gateway.unwrap_or_default();
        } else {
            let address = RawAddress { addr: ip.to_owned(), prefix_length };
            more.get_or_insert_default().push(address);
        }
    }
    Some(network)
}

/// Returns published ports as podman tells them (`makeInspectPortBindings`).
fn bindings(mappings: Vec<Ports>) -> Option<BTreeMap<String, Option<Vec<RawBinding>>>> {
    let mut bindings: BTreeMap<String, Option<Vec<RawBinding>>> = BTreeMap::new();
    for ports in mappings {
        // Unlike a list of ports, podman's description has none of no ports.
        if ports.range == 0 {
            return None;
        }
        for protocol in ports.protocol.split(',') {
            for offset in 0..ports.range {
                let port = format!("{}/{protocol}", ports.container_port.checked_add(offset)?);
                let binding = RawBinding {
                    host_ip: ports.host_ip.clone(),
                    host_port: ports.host_port.checked_add(offset)?.to_string(),
                };
                bindings.entry(port).or_default().get_or_insert_default().push(binding);
            }
        }
    }
    Some(bindings)
}

#[cfg(test)]
mod tests;
