//! What only this host can tell of a container, and the offer that is made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::criu::{self, Version};
use checkpoint::runtime::Runtime;
use checkpoint::{cgroup::Cgroup, mountinfo, procfs, tree};
use engine::description::Description;
use engine::inspect::{Container, PublishedPort};
use netmig::bridge_port;
use netmig::container_network::ContainerNetwork;
use netmig::flow::{Alias, Aliases, Conntrack, Flow, TunnelNat};
use netmig::netns::Namespace;
use netmig::peer_number::PeerNumber;
use protocol::message::{ImageRef, MigrationId, Network};
use state::blocker::Blocker;
use state::cause::Cause;
use state::host;
use state::journal::Process;
use steering::moved_containers;
use steering::peer_numbers::{self, HostId};
use steering::port_forward::{self, Forwarder};
use steering::tunnel_aliases::OfOthers;

use crate::context::Context;
use crate::offer::Offer;
use crate::source::network_namespace::OwnNetwork;
use crate::source::{bridged_flows, lost_settings, ports, service};

/// A container that is connected to nothing.
#[derive(Debug, thiserror::Error)]
#[error("the container has no network interface; connect it to a network of the engine")]
struct NoInterface;

/// What only this host can tell of the container.
pub(super) struct Local {
    pub(super) description: Description,
    /// Settings that it would lose.
    pub(super) lost: Vec<Blocker>,
    pub(super) runtime: Runtime,
    pub(super) criu: PathBuf,
    pub(super) shim: PathBuf,
    pub(super) criu_version: Version,
    pub(super) namespace: Arc<Namespace>,
    pub(super) network: Arc<OwnNetwork>,
    pub(super) port: bridge_port::Port,
    pub(super) cgroup: Arc<Cgroup>,
    pub(super) process: Process,
    pub(super) anchors: BTreeMap<PeerNumber, HostId>,
    pub(super) forwarders: Vec<Forwarder>,
    /// What this host will exchange for flows of third hosts, as far as it is known.
    pub(super) passing: TunnelNat,
    /// What it exchanges for other containers.
    pub(super) others: OfOthers,
}

/// Looks at the container on this host. A unit of systemd gives it a setting back that goes, if it `has_service`.
pub(super) async fn look(
    context: &Context,
    container: &Container,
    criu_version: Version,
    has_service: bool,
) -> Result<Local, Cause> {
    let mut described = context.engine.description(&container.id).await?;
    if has_service {
        described.lost.retain(|setting| !service::SETTINGS.contains(&setting.as_str()));
    }
    let lost = lost_settings::blockers(context.engine.kind(), &container.name, &described);
    let path = match &container.runtime.path {
        Some(path) => path.clone(),
        None => host::find_program(&container.runtime.name)?,
    };
    let runtime = Runtime::new(&path, None)?;
    let criu = host::find_program("criu")?;
    let shim = host::find_shim()?;
    criu::check_kernel(criu_version, &host::kernel_release()?)?;
    let namespace = match &container.netns {
        Some(path) => Namespace::at_path(path)?,
        None => Namespace::of_pid(container.pid)?,
    };
    let namespace = Arc::new(namespace);
    let sandbox = ContainerNetwork::open(&namespace)?;
    let interface = sandbox.interfaces().first().ok_or(NoInterface)?;
    let port = bridge_port::Port::of_container(&namespace, &interface.name)?;
    let readonly_paths = &described.description.confinement.readonly_paths;
    let network = tokio::task::block_in_place(|| {
        OwnNetwork::read(container, &namespace, (&interface.name, &port), readonly_paths)
    })?;
    let network = Arc::new(network);
    let cgroup = Arc::new(Cgroup::of_pid(container.pid, &container.id)?);
    let process = Process {
        pid: container.pid,
        namespace: match &container.netns {
            Some(path) => path.clone(),
            None => format!("/proc/{}/ns/net", container.pid).into(),
        },
        interface: interface.name.clone(),
        started: procfs::start_time(container.pid).unwrap_or(0),
        monitor: container.monitor_pid,
    };
    let state = &context.directories.state;
    let mut flows = Conntrack::open()?.dump(&addresses(container))?;
    let others = moved_containers::others(&context.directories, &container.id)?;
    bridged_flows::settle(&mut flows, &addresses(container), &others);
    let passing = Alias::of_anchors(&flows, &addresses(container));
    let mut anchors = anchors(state, &addresses(container), &flows)?;
    // They have to lead new connections on, as they have to do with those that exist.
    let forwarders = port_forward::leading_here(&context.directories, &container.id)?;
    for Forwarder { host, .. } in &forwarders {
        anchors.insert(peer_numbers::number(state, *host)?, *host);
    }
    Ok(Local {
        description: described.description,
        lost,
        runtime,
        criu,
        shim,
        criu_version,
        namespace,
        network,
        port,
        cgroup,
        process,
        anchors,
        forwarders,
        passing: TunnelNat { passing, ..TunnelNat::default() },
        others: OfOthers::read(&context.directories, &container.id)?,
    })
}

/// Returns what is offered to the destination.
pub(super) fn offer(
    migration: MigrationId,
    container: &Container,
    local: &Local,
    published: &[PublishedPort],
    aliases: &Aliases,
) -> Result<Offer, Cause> {
    let network = |network: &engine::inspect::Network| Network {
        name: network.name.clone(),
        addresses: network.addresses.iter().map(|(address, _)| *address).collect(),
    };
    let Version { major, minor, patch } = local.criu_version;
    Ok(Offer {
        migration,
        id: container.id.clone(),
        name: container.name.clone(),
        image: ImageRef { id: container.image.id.clone(), name: container.image.name.clone() },
        image_shipped: false,
        runtime: local.runtime.kind.name().to_owned(),
        networks: container.networks.iter().map(network).collect(),
        ports: ports::offered(published),
        forwarders: local.forwarders.clone(),
        anchors: local.anchors.values().copied().collect(),
        any_address: false,
        aliases: addresses(container)
            .iter()
            .chain(&local.port.bridge().addresses)
            .map(|address| aliases.of(*address))
            .collect::<Result<_, _>>()?,
        direct: None,
        memory: container.memory_in_use,
        disk: container
            .upper
            .as_deref()
            .map_or(Ok(0), tree::size)?
            .saturating_add(log_size(container)),
        description: local.description.clone(),
        criu: (major, minor, patch),
        architecture: std::env::consts::ARCH.to_owned(),
        cpu_flags: host::cpu_flags(&fs::read_to_string(Path::new("/proc/cpuinfo"))?),
        without_symlinks: mountinfo::without_symlinks(container.pid)?,
    })
}

/// Bytes of the container's log, which goes with its files.
fn log_size(container: &Container) -> u64 {
    container.log.as_deref().and_then(|log| fs::metadata(log).ok()).map_or(0, |log| log.len())
}

/// Returns the hosts by which the container's flows come here, other than this one.
fn anchors(
    state: &Path,
    addresses: &[IpAddr],
    flows: &[Flow],
) -> Result<BTreeMap<PeerNumber, HostId>, Cause> {
    let numbers: BTreeSet<_> = flows.iter().filter_map(|flow| flow.anchor(addresses)).collect();
    let mut anchors = BTreeMap::new();
    for number in numbers {
        // An unknown one is met on the way by this host, as it is now.
        if let Some(host) = peer_numbers::peer_with_number(state, number)? {
            anchors.insert(number, host);
        }
    }
    Ok(anchors)
}

/// Returns all addresses of a container.
pub(super) fn addresses(container: &Container) -> Vec<IpAddr> {
    container.networks.iter().flat_map(|n| &n.addresses).map(|(address, _)| *address).collect()
}
