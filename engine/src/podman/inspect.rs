//! The description of one container (podman-container-inspect(1)).

pub(super) mod raw;

use std::net::IpAddr;
use std::path::PathBuf;

use super::command::Overdue;
use super::{Error, Info, Podman, inspect_from_database, state_files};
use crate::Kind;
use crate::inspect::{
    Container, Image, Mount, MountKind, Network, PublishedPort, RestartPolicy, Runtime, State,
    is_name,
};
use checkpoint::cgroup::Cgroup;
use checkpoint::oci_bundle::Bundle;
use raw::{RawContainer, RawNetwork, RawNetworkInspect};

/// podman's exit status for most errors, "no such container" among them.
const FAILED: i32 = 125;

impl Podman {
    /// Does the same as [`inspect`](Self::inspect), by podman's records alone where these suffice.
    ///
    /// # Errors
    /// As [`inspect`](Self::inspect).
    pub(super) async fn describe(&self, name_or_id: &str) -> Result<Container, crate::Error> {
        let (podman, name) = (self.clone(), name_or_id.to_owned());
        match tokio::task::spawn_blocking(move || podman.recorded(&name)).await {
            Ok(Some(described)) => Ok(described),
            _ => self.inspect(name_or_id).await,
        }
    }

    /// Returns a running container, given by its exact ID or name, without running podman, of which every run costs
    /// a tenth of a second: `None` where podman's configuration is not cached, and for any container that has more
    /// than an image, networks, published ports and a log.
    #[must_use]
    pub(super) fn recorded(&self, id_or_name: &str) -> Option<Container> {
        let info = self.read_cache()?;
        let raw = inspect_from_database::plain(&info, id_or_name)?;
        let bundle = Bundle::read(&raw.bundle()?).ok()?;
        let mut container = raw.into_container(Some(bundle), &info);
        let names = container.networks.iter().map(|network| network.name.as_str());
        let networks = names.map(state_files::network).collect::<Option<_>>()?;
        finish(&mut container, networks);
        Some(container)
    }

    /// Describes a container, given by name, ID, or the start of an ID, and the engine; podman itself looks
    /// at what the container does.
    ///
    /// One run of podman is enough where its configuration is cached and its networks are described by
    /// files.
    ///
    /// # Errors
    /// [`crate::Error::BadName`] and [`crate::Error::NoSuchContainer`]; [`Error`] when podman fails or the
    /// container's bundle cannot be read.
    pub(super) async fn inspect(&self, name_or_id: &str) -> Result<Container, crate::Error> {
        if !is_name(name_or_id) {
            return Err(crate::Error::bad_name(name_or_id));
        }
        let info = async { Ok(self.info().await?) };
        let (info, raw) = tokio::try_join!(info, self.inspect_raw(name_or_id))?;
        let bundle = raw.bundle().map(|dir| Bundle::read(&dir)).transpose();
        let bundle = match bundle {
            // A container that never ran has no bundle; the blockers say so.
            Err(_) if raw.state.pid == 0 => None,
            other => {
                other.map_err(|source| Error::Bundle { name: name_or_id.to_owned(), source })?
            }
        };
        let mut container = raw.into_container(bundle, &info);
        let names = container.networks.iter().map(|network| network.name.as_str());
        let networks = match names.map(state_files::network).collect() {
            Some(networks) => networks,
            None => self.networks().await?,
        };
        finish(&mut container, networks);
        Ok(container)
    }

    /// Returns the full ID and the cgroup of a container, given by its ID or exact name, without running
    /// podman: `None` where they cannot be told so.
    #[must_use]
    pub(super) fn cgroup(&self, id_or_name: &str) -> Option<(String, Cgroup)> {
        let (id, pid) = state_files::process(&self.read_cache()?, id_or_name)?;
        let cgroup = Cgroup::of_pid(pid, &id).ok()?;
        Some((id, cgroup))
    }

    async fn inspect_raw(&self, name_or_id: &str) -> Result<RawContainer, crate::Error> {
        let args = ["container", "inspect", "--", name_or_id];
        let output = self.output(&args, self.deadlines.query, Overdue::Kill).await?;
        if output.status == 0 {
            return Ok(parse(&output.stdout)?);
        }
        // podman's message for an absent container is not meant for programs.
        if output.status == FAILED && !self.exists(name_or_id).await? {
            return Err(crate::Error::NoSuchContainer {
                engine: Kind::Podman,
                name: name_or_id.to_owned(),
            });
        }
        Err(self.failure(&args, output.status, &output.stderr).into())
    }

    /// Returns all networks, as they describe themselves.
    async fn networks(&self) -> Result<Vec<RawNetworkInspect>, Error> {
        let args = ["network", "ls", "--format", "json"];
        let text = self.run(&args, self.deadlines.query, Overdue::Kill).await?;
        parse_networks(&text)
    }
}

pub(super) fn parse(text: &[u8]) -> Result<RawContainer, Error> {
    let fail = |source| Error::Parse { what: "podman's description of a container".into(), source };
    let list: Vec<RawContainer> = serde_json::from_slice(text).map_err(fail)?;
    let none = || fail(serde::de::Error::custom("the list is empty"));
    list.into_iter().next().ok_or_else(none)
}

pub(super) fn parse_networks(text: &[u8]) -> Result<Vec<RawNetworkInspect>, Error> {
    serde_json::from_slice(text)
        .map_err(|source| Error::Parse { what: "podman's description of networks".into(), source })
}

/// Returns what podman says of a container, without the files that it points to.
pub(super) fn describe(text: &[u8], info: &Info) -> Result<Container, Error> {
    Ok(parse(text)?.into_container(None, info))
}

/// Adds what is told elsewhere: the drivers of its networks, and the memory that it uses now.
fn finish(container: &mut Container, described: Vec<RawNetworkInspect>) {
    for description in described {
        let Some(network) = container.networks.iter_mut().find(|n| n.name == description.name)
        else {
            continue;
        };
        network.driver = description.driver;
    }
    container.memory_in_use = memory_in_use(container);
}

/// Returns the memory in use: from the cgroup where the kernel counts it, otherwise the processes' resident pages.
fn memory_in_use(container: &Container) -> u64 {
    let Ok(cgroup) = Cgroup::of_pid(container.pid, &container.id) else { return 0 };
    cgroup.memory_current().unwrap_or(0)
}

impl RawContainer {
    fn bundle(&self) -> Option<PathBuf> {
        self.oci_config_path.parent().map(PathBuf::from).filter(|dir| dir.is_absolute())
    }

    pub(super) fn into_container(self, bundle: Option<Bundle>, info: &Info) -> Container {
        let host = self.host_config;
        let config = self.config;
        let settings = self.network_settings.unwrap_or_default();
        let layers = self.graph_driver.unwrap_or_default();
        let data = layers.data.unwrap_or_default();
        // podman tells those of the bundle, too; a container that was never started has none.
        let annotations = config
            .annotations
            .or_else(|| bundle.as_ref().map(|bundle| bundle.annotations.clone()))
            .unwrap_or_default();
        let named = |name: &str| annotations.get(name).is_some_and(|v| v == "TRUE");
        let runtime = Runtime {
            path: (self.oci_runtime == info.runtime).then(|| info.runtime_path.clone()),
            name: self.oci_runtime,
        };
        Container {
            state: match self.state.status.as_str() {
                "running" => State::Running,
                "paused" => State::Paused,
                "" => State::Unknown,
                other => State::Other(other.to_owned()),
            },
            pid: self.state.pid,
            monitor_pid: self.state.conmon_pid,
            runtime,
            image: Image { name: self.image_name, id: self.image },
            storage_driver: layers.name,
            upper: data.get("UpperDir").map(PathBuf::from),
            merged: data.get("MergedDir").map(PathBuf::from),
            external_rootfs: non_empty(self.rootfs).map(PathBuf::from),
            log: non_empty(host.log_config.path).map(PathBuf::from),
            log_driver: host.log_config.kind,
            shared_namespaces: [
                ("pid", &host.pid_mode),
                ("ipc", &host.ipc_mode),
                ("uts", &host.uts_mode),
            ]
            .into_iter()
            .filter(|(_, mode)| !matches!(mode.as_str(), "" | "private" | "shareable" | "none"))
            .map(|(kind, mode)| format!("{kind} {mode}"))
            .collect(),
            network_mode: host.network_mode,
            networks: settings
                .networks
                .unwrap_or_default()
                .into_iter()
                .map(|(name, network)| network.into_network(name))
                .collect(),
            netns: settings
                .sandbox_key
                .and_then(non_empty)
                .map(PathBuf::from)
                .or_else(|| bundle.as_ref()?.netns.clone()),
            ports: settings
                .ports
                .unwrap_or_default()
                .iter()
                .flat_map(|(port, bindings)| published(port, bindings.as_deref()))
                .collect(),
            mounts: self.mounts.unwrap_or_default().into_iter().map(Mount::from).collect(),
            tmpfs: host.tmpfs.unwrap_or_default().into_keys().map(PathBuf::from).collect(),
            devices: host
                .devices
                .unwrap_or_default()
                .into_iter()
                .map(|device| PathBuf::from(device.path_on_host))
                .collect(),
            privileged: host.privileged || named("io.podman.annotations.privileged"),
            restart: RestartPolicy {
                name: host.restart_policy.name,
                maximum_retries: host.restart_policy.maximum_retry_count,
            },
            pod: non_empty(self.pod),
            dependencies: self.dependencies.unwrap_or_default(),
            memory_limit: u64::try_from(host.memory).ok().filter(|limit| *limit > 0),
            memory_in_use: 0,
            tty: config.tty,
            stdin: config.open_stdin,
            init: host.init || named("io.podman.annotations.init"),
            systemd: config.systemd_mode,
            health_check: config
                .healthcheck
                .and_then(|check| check.test)
                .and_then(|test| test.into_iter().next())
                .is_some_and(|first| first != "NONE"),
            auto_remove: host.auto_remove || named("io.podman.annotations.autoremove"),
            user_namespace: host.id_mappings.is_some()
                || bundle.as_ref().is_some_and(|b| b.user_namespace),
            rootless: info.rootless,
            cgroups: host.cgroups,
            labels: config.labels.unwrap_or_default(),
            annotations,
            shm: bundle.as_ref().and_then(|b| b.shm.clone()),
            hooks: bundle.as_ref().map(|b| b.hooks.clone()).unwrap_or_default(),
            bundle: bundle.map_or(self.static_dir, |b| b.dir),
            id: self.id,
            name: self.name,
        }
    }
}

impl RawNetwork {
    fn into_network(self, name: String) -> Network {
        let mut addresses = Vec::new();
        for (ip, prefix) in [
            (self.ip_address, self.ip_prefix_len),
            (self.global_ipv6_address, self.global_ipv6_prefix_len),
        ] {
            addresses.extend(ip.parse::<IpAddr>().ok().map(|ip| (ip, prefix)));
        }
        for more in [self.secondary_ip_addresses, self.secondary_ipv6_addresses] {
            for address in more.unwrap_or_default() {
                let ip = address.addr.parse::<IpAddr>().ok();
                addresses.extend(ip.map(|ip| (ip, address.prefix_length)));
            }
        }
        Network {
            name,
            addresses,
            mac: non_empty(self.mac_address),
            gateways: [self.gateway, self.ipv6_gateway]
                .iter()
                .filter_map(|ip| ip.parse().ok())
                .collect(),
            ..Network::default()
        }
    }
}

impl From<raw::RawMount> for Mount {
    fn from(raw: raw::RawMount) -> Self {
        Self {
            kind: match raw.kind.as_str() {
                "bind" => MountKind::Bind,
                "volume" => MountKind::Volume,
                other => MountKind::Other(other.to_owned()),
            },
            name: non_empty(raw.name),
            source: raw.source,
            destination: raw.destination,
            writable: raw.rw,
        }
    }
}

/// Returns the published ports of a container's port, such as `80/tcp`.
fn published(port: &str, bindings: Option<&[raw::RawBinding]>) -> Vec<PublishedPort> {
    let Some((number, protocol)) = port.split_once('/') else { return Vec::new() };
    let Ok(container_port) = number.parse() else { return Vec::new() };
    let ports = bindings.unwrap_or_default().iter().filter_map(|binding| {
        Some(PublishedPort {
            protocol: protocol.to_owned(),
            host_ip: binding.host_ip.parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified()),
            host_port: binding.host_port.parse().ok()?,
            container_port,
        })
    });
    ports.collect()
}

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests;
