//! The preflight: both hosts look for everything that a migration would fail on, and all of it is named at once.

mod local;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use checkpoint::cgroup::Cgroup;
use checkpoint::criu::{self};
use checkpoint::runtime::Runtime;
use engine::inspect::Container;
use engine::{Holder, blockers};
use netmig::bridge_port;
use netmig::flow::{Aliases, Readdressed};
use netmig::netns::Namespace;
use netmig::peer_number::PeerNumber;
use netmig::tunnel;
use protocol::expect;
use protocol::message::{LEAN_MEMORY, Message, MigrationId, VOLUMES};
use state::blocker::Blocker;
use state::cause::{Cause, chain};
use state::container_lock::ContainerLock;
use state::journal::Process;
use state::{deadline, host};
use steering::peer_numbers::{self, HostId};
use steering::port_forward::{Away, Forwarder};
use steering::tunnel_aliases::{self};
use steering::{fwmark_setting, tunnels};

use super::destination_rpc::Peer;
use super::failure::Failure;
use super::forecast::ExpectedInterruption;
use super::local_far_ends::FarEnds;
use super::memory::{self, MemoryPlan};
use super::network_namespace::OwnNetwork;
use super::past_moves::PastMoves;
use super::receive_buffers::Room;
use super::service::{self, PlannedService};
use super::volumes::{self, Looked, PlannedVolume};
use super::{dns_names, landlock, link_rate, multicast, original_ports, ports};
use crate::connect::{Introduced, Link};
use crate::context::Context;
use crate::convert::Wire;
use crate::offer::{Offer, Verdict};
use local::{Local, addresses, look, offer};

use crate::request::{AddressPolicy, ImagePolicy, Request, TunnelChoice};

/// A migration that both hosts agree to. Nothing has been changed.
#[derive(Debug)]
pub struct Plan {
    /// The conversation with the destination.
    pub link: Link,
    /// The container.
    pub container: Container,
    /// Whether the engine's records alone describe the container.
    pub is_plain: bool,
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
    pub port: bridge_port::Port,
    /// Its cgroup.
    pub cgroup: Arc<Cgroup>,
    /// The process and the interface by which recovery finds it after a crash.
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
    /// Volumes that go with it.
    pub volumes: Vec<PlannedVolume>,
    /// The systemd unit that goes with it.
    pub service: Option<PlannedService>,
    /// When its memory goes over.
    pub memory: MemoryPlan,
    /// The interruption that is expected.
    pub expected: ExpectedInterruption,
    /// Larger buffers, until the migration has ended.
    pub _room: Room,
    /// Nobody else works on the container meanwhile. Given back last.
    pub _lock: ContainerLock,
}

impl Plan {
    /// Returns the far end, to be found again.
    pub fn far_end(&self) -> Peer {
        let Link { host, destination, .. } = &self.link;
        Peer { destination: destination.clone(), host: *host, migration: self.offer.migration }
    }

    /// Connects the container again, should its port have been replaced meanwhile, too. One that was disconnected from
    /// its network by an order stays so.
    pub fn reconnect(&self) -> Result<(), bridge_port::Error> {
        if self.port.unblock().is_ok() {
            return Ok(());
        }
        match self.present_port() {
            Err(bridge_port::Error::NoInterface { .. }) => Ok(()),
            port => port?.unblock(),
        }
    }

    /// Returns its end of the host's bridge as it is now.
    pub fn present_port(&self) -> Result<bridge_port::Port, bridge_port::Error> {
        bridge_port::Port::of_container(&self.namespace, &self.process.interface)
    }
}

/// Inspects the container and offers it to the destination. Returns the plan, or a refusal with all blockers.
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
    memory::await_whole(&context.directories.run, &container).await?;
    let mut findings = tokio::task::block_in_place(|| blockers::look(&*context.engine, &container));
    let (mut service, mut blocked_service) = (None, None);
    if let Some(unit) = context.engine.service_unit(&container) {
        findings.blockers.retain(|finding| finding.code != service::CODE);
        let policy = request.options.unit;
        match service::look(&container, &unit, policy, &link.connection).await.map_err(refused)? {
            Ok(planned) => service = Some(planned),
            Err(blocker) => blocked_service = Some(blocker),
        }
    }
    let own = findings.blockers.into_iter().map(|f| Blocker::new(f.code, f.message));
    let mut own: Vec<_> = own.chain(blocked_service).collect();
    let direct = way(context, &link, request.options.tunnel, &mut own).await.map_err(refused)?;
    if !own.is_empty() {
        return Err(Failure::blocked(own));
    }
    let mut warnings: Vec<String> = findings.warnings.into_iter().map(|f| f.message).collect();
    if multicast::is_used(container.pid) {
        warnings.push(multicast::NOT_KEPT.to_owned());
    }
    let criu_version = criu_version.map_err(refused)?;
    let looked = look(context, &container, criu_version, service.is_some()).await;
    let mut local = looked.map_err(refused)?;
    let networks = &local.description.connectivity.networks;
    let networks: Vec<&str> = networks.iter().map(|network| network.name.as_str()).collect();
    let others = context.engine.resolvable_names(&networks, &container.id);
    warnings.extend(dns_names::warning(&container.name, &others));
    let this = context.trust.identity.fingerprint().host();
    let aliases = tunnel_aliases::known(&context.directories, this).map_err(refused)?;
    let comes_home = local.anchors.values().any(|host| *host == link.host);
    let mut own =
        fwmark_setting::blockers(&context.directories.state, comes_home).await.map_err(refused)?;
    if let Err(e) = local.others.check(&local.passing) {
        own.push(tunnel_aliases::blocker(&host::name(), &e));
    }
    own.append(&mut local.lost);
    if let Some(service) = &service {
        warnings.extend(service.warnings.iter().cloned());
    }
    let policies = &request.options.volumes;
    let looked = volumes::look(&*context.engine, &mut local.description, policies).await;
    let Looked { volumes, blockers, warnings: of_volumes } = looked.map_err(refused)?;
    own.extend(blockers);
    warnings.extend(of_volumes);
    if !volumes.is_empty() && !link.connection.has(VOLUMES) {
        own.push(Blocker::new(
            "volume",
            format!(
                "{} has volumes, which the agent of {} does not take, as it is of an earlier version; update it",
                container.name, request.destination.host
            ),
        ));
    }
    own.extend(local.network.blockers(&container.name));
    let limit = request.options.max_interruption;
    let interruption = tokio::task::block_in_place(|| {
        let past = (link.host, PastMoves::read(&context.directories.state));
        ExpectedInterruption::estimate(
            &container.name,
            &local.namespace,
            &local.cgroup,
            limit,
            past,
        )
    });
    let mut interruption = interruption.map_err(refused)?;
    let (options, cgroup) = (&request.options, &local.cgroup);
    let memory = MemoryPlan::choose(options, &link.connection, cgroup, &mut interruption)?;
    own.extend(interruption.blockers());
    let subject = checkpoint::landlock::Subject {
        shim: &local.shim,
        first: container.pid,
        may_administer: landlock::may_administer(&local.description),
    };
    let restricted = tokio::task::block_in_place(|| {
        landlock::blocker(&request.options, &subject, &container.name, &local.cgroup)
    });
    own.extend(restricted.map_err(|e| refused(e.into()))?);
    if !own.is_empty() {
        return Err(Failure::blocked(own));
    }
    let options = &request.options;
    let (published, own_again) =
        original_ports::publish(&container, &mut local.description, &options.publish);
    warnings.extend(own_again);
    let away = match options.forward {
        true => ports::away(&container, &link, &aliases).map_err(|e| refused(e.into()))?,
        false => None,
    };
    if options.forward && away.is_none() {
        warnings
            .push("the container publishes no TCP or UDP port; nothing is forwarded".to_owned());
    }
    let mut offer = offer(migration, &container, &local, &published, &aliases).map_err(refused)?;
    let disk = volumes.iter().map(|volume| volume.offered.disk);
    offer.disk = disk.fold(offer.disk, u64::saturating_add);
    offer.image_shipped = options.image == ImagePolicy::Send;
    // An older destination asks for twice the memory, and knows no other way to count.
    if link.connection.has(LEAN_MEMORY) && interruption.offered_memory() > 0 {
        offer.memory = interruption.offered_memory();
    }
    offer.any_address = options.address == AddressPolicy::Any;
    offer.direct = direct;
    if away.is_some() {
        offer.forwarders.push(Forwarder { host: this, readdressed: Vec::new() });
    }

    let exchange = async {
        if !volumes.is_empty() {
            let offered = volumes.iter().map(|volume| volume.offered.clone()).collect::<Vec<_>>();
            link.connection.send(&Message::Volumes(offered.into_wire())).await?;
        }
        if let Some(service) = &service {
            link.connection.send(&Message::Service(service.offered.clone().into_wire())).await?;
        }
        link.connection.send(&Message::Offer(Box::new(offer.clone().into_wire()))).await?;
        let verdict = expect!(link.connection, deadline::ANSWER, Verdict)?;
        Ok::<_, Cause>(Verdict::from_wire(verdict)?)
    };
    let verdict = exchange.await.map_err(refused)?;
    if !verdict.blockers.is_empty() {
        return Err(Failure::blocked(verdict.blockers));
    }
    if interruption.depends_on_link() {
        let rate = link_rate::measure(&mut link.connection).await.map_err(|e| refused(e.into()))?;
        if let Some(blocker) = interruption.over_link(rate) {
            return Err(Failure::blocked(vec![blocker]));
        }
    }
    let known = peer_numbers::find_number(&context.directories.state, link.host);
    let known = known.map_err(|e| refused(e.into()))?;
    let mut far_ends = FarEnds::new(&verdict.addresses, known).await.map_err(refused)?;
    far_ends.names = local.anchors.keys().map(|peer| (*peer, context.peer_name(*peer))).collect();
    let names = (container.name.as_str(), request.destination.host.as_str());
    let by_third_hosts = local.anchors.values().any(|host| *host != link.host);
    if by_third_hosts
        && let Some(blocker) = far_ends.look(&addresses(&container), names).map_err(refused)?
    {
        return Err(Failure::blocked(vec![blocker]));
    }
    let link = link.agreed(context).await.map_err(refused)?;
    let Local { runtime, criu, shim, namespace, network, port, cgroup, process, anchors, .. } =
        local;
    let networks: Vec<&str> = container.networks.iter().map(|n| n.name.as_str()).collect();
    let siblings = context.engine.members(&networks, &container.id).await;
    Ok(Plan {
        is_plain: context.engine.recorded(&container.id).is_some(),
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
        volumes,
        service,
        memory,
        expected: interruption,
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
        Some(blocker) => Failure::blocked(vec![blocker]),
        None => Failure::Refused(e.into()),
    })
}

/// Returns whether packets can get to the destination as they are to; for a direct way the largest packet of the
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
