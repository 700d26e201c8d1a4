//! Judges whether an offered container can come. Changes nothing.

mod machine;
mod published_port;
mod service;
mod volumes;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use checkpoint::lazy_pages;
use engine::inspect::{is_full_id, is_name};
use engine::needs::Needs;
use netmig::flow::{Conntrack, Flow};
use netmig::{routing, tunnel};
use protocol::permissions::Permissions;
use state::blocker::Blocker;
use state::cause::{Cause, chain};
use state::container_lock::ContainerLock;
use state::host;
use steering::fwmark_setting;
use steering::moved_containers;
use steering::peer_numbers::{self, HostId};
use steering::port_forward;
use steering::tunnel_aliases::{self, OfOthers};
use steering::tunnels;

use self::machine::{check_criu, missing_cpu_flags};
use self::published_port::{forwarded, try_port, unpublishable};
use super::addresses::{addresses, pairs};
use super::available_memory::{available_memory, needed_memory};
use super::permission_check::{Asked, Denied, denied};
use crate::destination::server_context::ServerContext;
use crate::offer::{Offer, Verdict};
use crate::offered_service::OfferedService;
use crate::offered_volume::OfferedVolume;

/// More than any container has; an offer may not hold more.
const LIMIT: usize = 4096;
/// As many as a host knows peers.
const ANCHORS: usize = 255;
/// Longest name in an offer.
const NAME_LIMIT: usize = 255;

/// An offer that no source makes.
#[derive(Debug, thiserror::Error)]
#[error("the offer is not well-formed: {0}")]
struct Malformed(&'static str);

/// Which addresses an offered container is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// Those that it has.
    Own,
    /// Those by which this host knows it, the anchor of some of its flows: each after the one that it
    /// replaces.
    Former(Vec<(IpAddr, IpAddr)>),
    /// Others, which podman chooses: its own are taken.
    Fresh,
}

/// What was seen of an offer.
#[derive(Debug)]
pub struct Looked {
    /// What the source is told.
    pub verdict: Verdict,
    /// Which addresses the container is to have.
    pub chosen: Addresses,
    /// The container's lock on this host; none where it is busy, or may not come.
    pub lock: Option<ContainerLock>,
}

/// Looks at everything and names all that is in the way. `is_lean` says that the offer counts shared memory twice.
pub async fn look(
    host: &ServerContext,
    permissions: &Permissions,
    (source, address): (HostId, IpAddr),
    (offer, volumes, service): (&Offer, &[OfferedVolume], Option<&OfferedService>),
    is_lean: bool,
) -> Result<Looked, Cause> {
    well_formed(offer)?;
    let denied = outside(host, permissions, offer)?;
    if !denied.is_empty() {
        // More is not told to whom may not come.
        let verdict = Verdict { blockers: denied, image_missing: false, addresses: Vec::new() };
        return Ok(Looked { verdict, chosen: Addresses::Own, lock: None });
    }
    let mut blockers = Vec::new();
    let mut block = |code: &str, message: String| {
        blockers.push(Blocker::new(code, message));
    };
    let here = &host.name;
    let lock = match ContainerLock::begin(&host.directories, &offer.id, &offer.name) {
        Ok(lock) => Some(lock),
        Err(e) => {
            let blocker = e.blocker().ok_or(e)?;
            block(&blocker.code, format!("{here}: {}", blocker.message));
            None
        }
    };
    if offer.architecture != std::env::consts::ARCH {
        block(
            "architecture",
            format!("{here} is {}, the source is {}", std::env::consts::ARCH, offer.architecture),
        );
    }
    let missing = missing_cpu_flags(&offer.cpu_flags)?;
    if !missing.is_empty() {
        block("cpu", format!("the processor of {here} lacks {}", missing.join(", ")));
    }
    if let Err(e) = host::find_program(&offer.runtime) {
        block("runtime-missing", format!("{here}: {e}"));
    }
    if offer.description.life.init
        && let Some(init) = host.engine.missing_init()
    {
        block(
            "init-missing",
            format!(
                "{here} has no {init}, which is process 1 of {} (--init); install it there",
                offer.name
            ),
        );
    }
    check_criu(here, offer, &mut block).await?;
    let needed = needed_memory(offer.memory, is_lean && lazy_pages::is_supported());
    if let Some(free) = available_memory(&fs::read_to_string("/proc/meminfo")?)
        && free < needed
    {
        let mib = |bytes: u64| bytes.div_ceil(1024 * 1024);
        block(
            "memory",
            format!(
                "{here} has {} MiB of memory available; the container and its images need {} MiB",
                mib(free),
                mib(needed)
            ),
        );
    }
    let (name_taken, has_image) =
        tokio::try_join!(host.engine.exists(&offer.name), host.engine.has_image(&offer.image.id))?;
    if name_taken {
        block("name-taken", format!("{here} has a container named {} already", offer.name));
    }
    let image_missing = !has_image;
    if image_missing && !offer.image_shipped {
        block(
            "image-missing",
            format!("{here} has no image {} with the ID {}", offer.image.name, offer.image.id),
        );
    }
    let (mut chosen, addresses) = before(host, offer)?;
    let holders = host.engine.holders(&addresses, &offer.id).await;
    if offer.any_address && chosen == Addresses::Own && !holders.is_empty() {
        chosen = Addresses::Fresh;
    } else {
        for holder in holders {
            block(
                "address-taken",
                format!(
                    "the address {} of {name} belongs to container {} on {here}, in network {}; \
                     remove that one, run it there with another --ip, or move {name} with \
                     --address any",
                    holder.address,
                    holder.container,
                    holder.network,
                    name = offer.name
                ),
            );
        }
    }
    let engine = host.engine.kind();
    for network in &offer.networks {
        if !host.engine.has_network(&network.name).await? {
            block(
                "network-missing",
                format!(
                    "{here} has no network {} of {engine}'s, on which {} is; create it there ({engine} network \
                     create), with the same subnet",
                    network.name, offer.name
                ),
            );
        }
    }
    volumes::check(host, permissions, offer, volumes, &mut block).await?;
    service::check(host, permissions, (&offer.name, service), &mut block).await;
    check_way(host, (source, address), offer.direct, &mut block).await?;
    let detour = on_a_detour(host, offer, &addresses)?;
    if detour > 0 {
        block(
            "returning",
            format!(
                "{here} leads {detour} connections of {} to a host that sends them on to another \
                 one, so they cannot come back here; they can once they have ended",
                offer.name
            ),
        );
    }
    for port in &offer.ports {
        if let Err(e) = try_port(port) {
            let (code, message) = unpublishable(here, port, &e);
            block(code, message);
        }
    }
    for (port, note) in forwarded(&port_forward::all(&host.directories)?, offer) {
        block(
            "port-taken",
            format!(
                "{} port {} of {here} leads to container {} on another host (--forward); end that on {here} \
                 (agent-client forward remove {})",
                port.protocol, port.port, note.name, note.name
            ),
        );
    }
    let others = OfOthers::read(&host.directories, &offer.id)?;
    if let Err(e) = others.check_far(&offer.aliases) {
        blockers.push(tunnel_aliases::blocker(here, e.as_ref()));
    }
    let comes_home = offer.anchors.contains(&host.id);
    blockers.extend(fwmark_setting::blockers(&host.directories.state, comes_home).await?);
    let addresses = own_addresses(offer).await?;
    Ok(Looked { verdict: Verdict { blockers, image_missing, addresses }, chosen, lock })
}

/// Returns this host's addresses, except for those that the source has in the same place: its gateways.
async fn own_addresses(offer: &Offer) -> Result<Vec<IpAddr>, Cause> {
    let own = routing::host_addresses().await?.into_iter();
    let of_source = |address: &IpAddr| offer.aliases.iter().any(|alias| alias.here == *address);
    Ok(own.filter(|address| !of_source(address)).take(LIMIT).collect())
}

/// Returns whether packets can come from the source as they are to; `direct` is the largest packet of its segment if
/// they are to come without a tunnel.
async fn check_way(
    host: &ServerContext,
    (source, address): (HostId, IpAddr),
    direct: Option<u32>,
    block: &mut impl FnMut(&str, String),
) -> Result<(), Cause> {
    let here = &host.name;
    if let Some(peer) = peer_numbers::find_number(&host.directories.state, source)?
        && let Some(e) = tunnels::other_way(peer, direct.is_some()).await?
    {
        block("other-tunnel", format!("{here}: {e}"));
    }
    let Some(theirs) = direct else { return Ok(()) };
    match tunnel::direct::segment(address).await {
        Ok(segment) if segment.mtu != theirs => block(
            "segment-mtu",
            format!(
                "packets on {} of {here} have at most {} bytes, on the source's interface {theirs}; \
                 give both the same MTU, or move with --tunnel wireguard",
                segment.interface, segment.mtu
            ),
        ),
        Ok(_) => {}
        Err(e) => block("not-on-link", format!("{here}: {}", chain(&e))),
    }
    Ok(())
}

/// Returns the addresses that the container had here, if this host has flows for them, or else its own. The
/// translation of these flows cannot be changed.
fn before(host: &ServerContext, offer: &Offer) -> Result<(Addresses, Vec<IpAddr>), Cause> {
    let own = addresses(offer);
    if !offer.anchors.contains(&host.id) {
        return Ok((Addresses::Own, own));
    }
    let former = moved_containers::known_as(&host.directories, &offer.id, &own)?;
    let pairs: Vec<_> = pairs(&own, &former).filter(|(old, new)| old != new).collect();
    let chosen = if pairs.is_empty() { Addresses::Own } else { Addresses::Former(pairs) };
    Ok((chosen, former))
}

fn well_formed(offer: &Offer) -> Result<(), Malformed> {
    let short = |text: &str| text.len() <= NAME_LIMIT && !text.contains(char::is_control);
    let rules = [
        (is_full_id(&offer.id), "the container's ID"),
        (is_name(&offer.name) && short(&offer.name), "the container's name"),
        (is_full_id(&offer.image.id), "the image's ID"),
        (short(&offer.image.name) && !offer.image.name.starts_with('-'), "the image's name"),
        (matches!(offer.runtime.as_str(), "crun" | "runc"), "the runtime"),
        (short(&offer.architecture), "the architecture"),
        (offer.ports.len() <= LIMIT, "the number of ports"),
        (offer.networks.len() <= LIMIT, "the number of networks"),
        (offer.networks.iter().all(|one| is_name(&one.name)), "the name of a network"),
        (offer.anchors.len() <= ANCHORS, "the number of anchors"),
        (offer.forwarders.len() <= ANCHORS, "the number of forwarding hosts"),
        (offer.aliases.len() <= LIMIT, "the number of addresses in the tunnel"),
        (offer.cpu_flags.len() <= host::CPU_FLAGS_LIMIT, "the number of processor flags"),
        (offer.cpu_flags.iter().all(|flag| short(flag)), "the processor flags"),
        (offer.without_symlinks.len() <= LIMIT, "the number of mounts without symbolic links"),
        (offer.memory < 1 << 50, "the memory"),
    ];
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, what)) => Err(Malformed(what)),
        None => Ok(()),
    }
}

/// Returns what the peer may not move here, judged by what the engine's records will be written from.
fn outside(
    host: &ServerContext,
    permissions: &Permissions,
    offer: &Offer,
) -> Result<Vec<Blocker>, Cause> {
    let description = &offer.description;
    if let Err(invalid) = description.validate() {
        let message = format!("{} does not take {}: {invalid}", host.name, offer.name);
        return Ok(vec![Blocker::new("setting", message)]);
    }
    let image = &description.image;
    let same = (&description.id, &description.name, &description.runtime)
        == (&offer.id, &offer.name, &offer.runtime)
        && (&image.id, &image.name) == (&offer.image.id, &offer.image.name);
    if !same {
        return Err(Malformed("its description is that of another container").into());
    }
    let needs = Needs::of(description);
    let asked = Asked {
        name: &offer.name,
        image: &offer.image.name,
        image_id: &offer.image.id,
        memory: offer.memory,
        disk: offer.disk,
        direct: offer.direct.is_some(),
        needs: &needs,
    };
    let denied = denied(permissions, &asked);
    Ok(denied.iter().map(|denied| refusal(&host.name, &offer.name, denied)).collect())
}

fn refusal(here: &str, container: &str, denied: &Denied) -> Blocker {
    let mut message = format!("{here} does not take {container} from this host: {denied}");
    if let Some(option) = denied.remedy() {
        message += &format!("; `agent-server peers allow` on {here} can permit it ({option})");
    }
    Blocker::new(denied.code(), message)
}

/// Returns how many living flows this host leads to another host than the source which the source names as
/// the anchor: flows that took the way over both, since the last move could not shorten it.
fn on_a_detour(host: &ServerContext, offer: &Offer, container: &[IpAddr]) -> Result<usize, Cause> {
    let state = &host.directories.state;
    let mut between = BTreeSet::new();
    for anchor in offer.anchors.iter().filter(|anchor| **anchor != host.id) {
        between.extend(peer_numbers::find_number(state, *anchor)?);
    }
    if between.is_empty() {
        return Ok(0);
    }
    let flows = Conntrack::open()?.dump(container)?;
    let led = |flow: &&Flow| flow.leads_to(container).is_some_and(|peer| between.contains(&peer));
    Ok(flows.iter().filter(led).filter(|flow| flow.is_alive()).count())
}
