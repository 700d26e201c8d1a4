//! Step 2: everything that could be in the way is looked at on both hosts, and named at once.

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
use engine::{Holder, blockers};
use netmig::container_network::ContainerNetwork;
use netmig::flow::{Alias, Aliases, Conntrack, Flow, Readdressed, TunnelNat};
use netmig::isolation;
use netmig::netns::Namespace;
use netmig::peer_number::PeerNumber;
use netmig::tunnel;
use protocol::expect;
use protocol::message::{ImageRef, Message, MigrationId, Network};
use state::blocker::Blocker;
use state::cause::{Cause, chain};
use state::container_lock::ContainerLock;
use state::journal::Process;
use state::{deadline, host};
use steering::moved_containers;
use steering::peer_numbers::{self, HostId};
use steering::port_forward::{self, Away, Forwarder};
use steering::tunnel_aliases::{self, OfOthers};
use steering::{fwmark, tunnels};

use super::destination_rpc::Peer;
use super::failure::Failure;
use super::far_ends::FarEnds;
use super::forecast::ExpectedInterruption;
use super::network_namespace::OwnNetwork;
use super::receive_buffers::Room;
use super::{container_names, landlock, link_rate, lost_settings, multicast, ports, siblings};
use crate::connect::{Introduced, Link};
use crate::context::Context;
use crate::convert::Wire;
use crate::offer::{Offer, Verdict};
use crate::request::{AddressPolicy, ImagePolicy, Loss, Request, TunnelChoice};

/// A migration that both hosts agree to. Nothing has been changed.
#[derive(Debug)]
pub struct Plan {
    /// The conversation with the destination.
    pub link: Link,
    /// The container.
    pub container: Container,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What was offered.
    pub offer: Offer,
    /// Whether the destination lacks the image.
    pub image_missing: bool,
    /// The OCI runtime.
    pub runtime: Runtime,
    /// The `criu` program.
    pub criu: PathBuf,
    /// What stands in for it before the interruption.
    pub shim: PathBuf,
    /// Its network namespace.
    pub namespace: Arc<Namespace>,
    /// What that is like.
    pub network: Arc<OwnNetwork>,
    /// Its end of the host's bridge.
    pub port: isolation::Port,
    /// Its cgroup.
    pub cgroup: Arc<Cgroup>,
    /// By what it is found after a crash.
    pub process: Process,
    /// Hosts that are the anchors of its flows, other than this one, by their numbers here.
    pub anchors: BTreeMap<PeerNumber, HostId>,
    /// Which far ends are the destination's own.
    pub far_ends: FarEnds,
    /// Its addresses that are others at the destination; none before it is staged.
    pub readdressed: Vec<Readdressed>,
    /// How new connections to this host's ports are to be led there, if they are.
    pub away: Option<Away>,
    /// Whether chains of others that drop its packets are to be opened.
    pub open_firewall: bool,
    /// What stands for this host's addresses in the tunnel.
    pub aliases: Arc<Aliases>,
    /// What will differ afterwards, for people.
    pub warnings: Vec<String>,
    /// Other containers of its networks on this host.
    pub siblings: Vec<Holder>,
    /// Paths in the container that are watched.
    pub watched: Vec<PathBuf>,
    /// Larger buffers, until the migration has ended.
    pub _room: Room,
    /// Nobody else works on the container meanwhile. Given back last.
    pub _lock: ContainerLock,
}

impl Plan {
    /// The far end, to be found again.
    pub fn far_end(&self) -> Peer {
        let Link { host, destination, .. } = &self.link;
        Peer { destination: destination.clone(), host: *host, migration: self.offer.migration }
    }

    /// Connects the container again, should its port have been replaced meanwhile, too.
    pub fn reconnect(&self) -> Result<(), isolation::Error> {
        match self.port.unblock() {
            Ok(()) => Ok(()),
            Err(_) => self.present_port()?.unblock(),
        }
    }

    /// Its end of the host's bridge as it is now.
    pub fn present_port(&self) -> Result<isolation::Port, isolation::Error> {
        isolation::Port::of_container(&self.namespace, &self.process.interface)
    }
}

/// A container that is connected to nothing.
#[derive(Debug, thiserror::Error)]
#[error("the container has no network interface; connect it to a network of the engine")]
struct NoInterface;

/// Looks at the container, offers it to the destination, and comes back with all that is in the way.
pub async fn agree(
    context: &Context,
    request: &Request,
    mut link: Introduced,
) -> Result<Plan, Failure> {
    let refused = Failure::Refused;
    let migration = MigrationId::random().map_err(|e| refused(e.into()))?;
    // Before the processors have anything of this migration to do.
    let early = match context.engine.cgroup(&request.container) {
        Some((id, cgroup)) => {
            let lock = lock(context, &id, &request.container)?;
            Some((id, lock, Room::make(Some(cgroup))))
        }
        None => None,
    };
    // The engine over there can start while the one here looks at the container.
    let sent = link.connection.send(&Message::Expect(migration)).await;
    sent.map_err(|e| refused(e.into()))?;
    let criu = async { criu::version(&host::find_program("criu")?).await.map_err(Cause::from) };
    // Each may take its time.
    let (inspected, criu_version) = tokio::join!(context.engine.describe(&request.container), criu);
    let mut container = inspected.map_err(|e| refused(e.into()))?;
    let (lock, room) = match early {
        Some((id, lock, room)) if id == container.id => (lock, room),
        // Another container has the name by now, or the engine's records do not tell.
        _ => {
            let lock = lock(context, &container.id, &container.name)?;
            (lock, Room::make(Cgroup::of_pid(container.pid, &container.id).ok()))
        }
    };
    if Cgroup::of_pid(container.pid, &container.id).is_err() {
        // It has ended, or has been moved elsewhere, since it was looked at.
        let id = container.id.clone();
        let again = context.engine.describe(&request.container).await;
        container = again.map_err(|e| refused(e.into()))?;
        if container.id != id {
            return Err(refused(Replaced(container.name).into()));
        }
    }
    let mut findings = tokio::task::block_in_place(|| blockers::look(&*context.engine, &container));
    let accepted: Vec<_> = request.options.accepted_losses.iter().map(|loss| loss.code()).collect();
    findings.blockers.retain(|finding| !accepted.contains(&finding.code));
    let own = findings.blockers.into_iter().map(|f| Blocker::new(f.code, f.message));
    let mut own: Vec<_> = own.collect();
    let direct = way(context, &link, request.options.tunnel, &mut own).await.map_err(refused)?;
    if !own.is_empty() {
        return Err(Failure::Blocked(own));
    }
    let mut warnings: Vec<String> = findings.warnings.into_iter().map(|f| f.message).collect();
    if multicast::is_used(container.pid) {
        warnings.push(multicast::NOT_KEPT.to_owned());
    }
    let criu_version = criu_version.map_err(refused)?;
    let mut local = look(context, &container, criu_version).await.map_err(refused)?;
    if !request.options.accepted_losses.contains(&Loss::Landlock) {
        warnings.extend(landlock::warning(&local.description));
    }
    let networks = &local.description.connectivity.networks;
    let networks: Vec<&str> = networks.iter().map(|network| network.name.as_str()).collect();
    let others = context.engine.resolvable_names(&networks, &container.id);
    warnings.extend(container_names::warning(&container.name, &others));
    let this = context.trust.identity.fingerprint().host();
    let aliases = tunnel_aliases::known(&context.directories, this).map_err(refused)?;
    let comes_home = local.anchors.values().any(|host| *host == link.host);
    let mut own =
        fwmark::blockers(&context.directories.state, comes_home).await.map_err(refused)?;
    if let Err(e) = local.others.check(&local.passing) {
        own.push(tunnel_aliases::blocker(&host::name(), &e));
    }
    own.append(&mut local.lost);
    own.extend(local.network.blockers(&container.name));
    let limit = request.options.max_interruption;
    let interruption = tokio::task::block_in_place(|| {
        ExpectedInterruption::estimate(&container.name, &local.namespace, &local.cgroup, limit)
    });
    let mut interruption = interruption.map_err(refused)?;
    own.extend(interruption.blockers());
    if !own.is_empty() {
        return Err(Failure::Blocked(own));
    }
    let options = &request.options;
    let published: Vec<PublishedPort> = if options.publish.is_empty() {
        container.ports.clone()
    } else {
        let ports: Vec<_> =
            options.publish.iter().flat_map(|publish| publish.ports.clone()).collect();
        local.description.connectivity.publish(&ports);
        ports
    };
    let away = match options.forward {
        true => ports::away(&container, &link, &aliases).map_err(|e| refused(e.into()))?,
        false => None,
    };
    if options.forward && away.is_none() {
        warnings
            .push("the container publishes no TCP or UDP port; nothing is forwarded".to_owned());
    }
    let mut offer = offer(migration, &container, &local, &published, &aliases).map_err(refused)?;
    offer.image_shipped = options.image == ImagePolicy::Send;
    offer.any_address = options.address == AddressPolicy::Any;
    offer.direct = direct;
    if away.is_some() {
        offer.forwarders.push(Forwarder { host: this, readdressed: Vec::new() });
    }

    let exchange = async {
        link.connection.send(&Message::Offer(Box::new(offer.clone().into_wire()))).await?;
        let verdict = expect!(link.connection, deadline::ANSWER, Verdict)?;
        Ok::<_, Cause>(Verdict::from_wire(verdict)?)
    };
    let verdict = exchange.await.map_err(refused)?;
    if !verdict.blockers.is_empty() {
        return Err(Failure::Blocked(verdict.blockers));
    }
    if interruption.depends_on_link() {
        let rate = link_rate::measure(&mut link.connection).await.map_err(|e| refused(e.into()))?;
        if let Some(blocker) = interruption.over_link(rate) {
            return Err(Failure::Blocked(vec![blocker]));
        }
    }
    let known = peer_numbers::find_number(&context.directories.state, link.host);
    let known = known.map_err(|e| refused(e.into()))?;
    let far_ends = FarEnds::new(&verdict.addresses, known).await.map_err(refused)?;
    let names = (container.name.as_str(), request.destination.host.as_str());
    let by_third_hosts = local.anchors.values().any(|host| *host != link.host);
    if by_third_hosts
        && let Some(blocker) = far_ends.look(&addresses(&container), names).map_err(refused)?
    {
        return Err(Failure::Blocked(vec![blocker]));
    }
    let link = link.agreed(context).await.map_err(refused)?;
    let Local { runtime, criu, shim, namespace, network, port, cgroup, process, anchors, .. } =
        local;
    let networks: Vec<&str> = container.networks.iter().map(|n| n.name.as_str()).collect();
    let siblings = context.engine.members(&networks, &container.id).await;
    Ok(Plan {
        addresses: addresses(&container),
        image_missing: verdict.image_missing,
        link,
        container,
        offer,
        runtime,
        criu,
        shim,
        namespace,
        network,
        port,
        cgroup,
        process,
        anchors,
        far_ends,
        readdressed: Vec::new(),
        away,
        open_firewall: options.open_firewall,
        aliases: Arc::new(aliases),
        warnings,
        siblings,
        watched: findings.watched,
        _room: room,
        _lock: lock,
    })
}

/// Another container has the name now.
#[derive(Debug, thiserror::Error)]
#[error("container {0} was replaced by another one of that name at this moment; try again")]
struct Replaced(String);

/// Takes the container for this migration.
fn lock(context: &Context, id: &str, name: &str) -> Result<ContainerLock, Failure> {
    ContainerLock::begin(&context.directories, id, name).map_err(|e| match e.blocker() {
        Some(blocker) => Failure::Blocked(vec![blocker]),
        None => Failure::Refused(e.into()),
    })
}

/// Whether packets can get to the destination as they are to; for a direct way the largest packet of the
/// segment.
async fn way(
    context: &Context,
    link: &Introduced,
    choice: TunnelChoice,
    blockers: &mut Vec<Blocker>,
) -> Result<Option<u32>, Cause> {
    let direct = choice == TunnelChoice::Direct;
    if let Some(peer) = peer_numbers::find_number(&context.directories.state, link.host)?
        && let Some(e) = tunnels::other_way(peer, direct).await?
    {
        blockers.push(Blocker::new("other-tunnel", e.to_string()));
    }
    if !direct {
        return Ok(None);
    }
    match tunnel::direct::segment(link.connection.peer().ip()).await {
        Ok(segment) => Ok(Some(segment.mtu)),
        Err(e) => {
            blockers.push(Blocker::new("not-on-link", chain(&e)));
            Ok(None)
        }
    }
}

/// What only this host can tell of the container.
struct Local {
    description: Description,
    /// Settings that it would lose.
    lost: Vec<Blocker>,
    runtime: Runtime,
    criu: PathBuf,
    shim: PathBuf,
    criu_version: Version,
    namespace: Arc<Namespace>,
    network: Arc<OwnNetwork>,
    port: isolation::Port,
    cgroup: Arc<Cgroup>,
    process: Process,
    anchors: BTreeMap<PeerNumber, HostId>,
    forwarders: Vec<Forwarder>,
    /// What this host will exchange for flows of third hosts, as far as it is known.
    passing: TunnelNat,
    /// What it exchanges for other containers.
    others: OfOthers,
}

async fn look(
    context: &Context,
    container: &Container,
    criu_version: Version,
) -> Result<Local, Cause> {
    let described = context.engine.description(&container.id).await?;
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
    let port = isolation::Port::of_container(&namespace, &interface.name)?;
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
    siblings::settle(&mut flows, &addresses(container), &others);
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

fn offer(
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

/// The hosts by which the container's flows come here, other than this one.
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

/// All addresses of a container.
fn addresses(container: &Container) -> Vec<IpAddr> {
    container.networks.iter().flat_map(|n| &n.addresses).map(|(address, _)| *address).collect()
}
