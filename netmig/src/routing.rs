//! Policy routing towards peers: a packet with a peer's mark goes into the tunnel to the peer, or
//! nowhere.
//!
//! For peer *P*, over IPv4 and IPv6 (see [`crate::peer_number`] for the numbers):
//!
//! ```text
//! rule  pref 3000+P  fwmark P<<16/0x00ff0000  lookup 3000+P   (or other bits, see crate::fwmark)
//! table 3000+P       default dev netmigP metric 1
//!                    blackhole default metric 4294967295
//! ```
//!
//! For a peer on the same Ethernet segment ([`direct`]) the route is `default via 169.254.78.P dev
//! netmigP onlink`, and `via fe80::4e4d:P` for IPv6: addresses that no host has, with permanent
//! neighbour entries that resolve them to the peer's hardware address.
//!
//! When the tunnel's interface goes away, its route goes with it. The blackhole remains: without it
//! packets would fall through to the main table, and far ends would get resets.

mod host_addresses;
mod lookup;
mod mark_rules;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion};
use thiserror::Error;

use crate::fwmark::MarkBits;
pub use crate::netlink::route::PROTOCOL;
use crate::netlink::rtnetlink as rtnl;
use crate::peer_number::PeerNumber;
use crate::tunnel::direct::{self, Remote};
pub use host_addresses::{addresses_of, host_addresses};
pub use lookup::{Forwarding, forwarding, needs_bridge, route_mtu};
pub(crate) use lookup::{interface_of, ipv6_enabled, neighbour_interface, route_to};
pub use mark_rules::{MarkRule, mark_rules};

/// Metric of the route into the tunnel.
const TUNNEL_METRIC: u32 = 1;
/// Metric of the blackhole: the highest, so that any other route is preferred.
const BLACKHOLE_METRIC: u32 = u32::MAX;

/// All hosts of a link. To a peer on the segment it goes in a frame for that host only.
pub(crate) const EVERYBODY: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);

/// Why policy routing could not be set up, read or removed.
#[derive(Debug, Error)]
pub enum Error {
    /// A netlink socket could not be opened.
    #[error("cannot open a netlink socket for routes")]
    Socket(#[source] io::Error),
    /// The kernel refused a policy rule or a route.
    #[error("cannot {action} the {object} of peer {peer}")]
    Refused {
        /// `add`, `remove` or `list`.
        action: &'static str,
        /// What was to be changed.
        object: &'static str,
        /// The peer.
        peer: PeerNumber,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The addresses of this host, or of its neighbours, could not be listed.
    #[error("cannot list the addresses of this host and its neighbours")]
    Addresses(#[source] io::Error),
    /// The policy rules of this host could not be listed.
    #[error("cannot list this host's policy routing rules")]
    Rules(#[source] io::Error),
    /// There is no tunnel to the peer.
    #[error("peer {peer} has no tunnel interface {interface}; connect to the peer first")]
    NoTunnel {
        /// Which peer.
        peer: PeerNumber,
        /// The missing interface.
        interface: String,
    },
    /// There is no route to an address.
    #[error("no route to {destination}; check this host's routes")]
    NoRoute {
        /// The address.
        destination: IpAddr,
        /// The kernel's answer, if it was an error.
        #[source]
        source: Option<io::Error>,
    },
    /// A kernel setting could not be read.
    #[error("cannot read {}", path.display())]
    Setting {
        /// The file under `/proc/sys`.
        path: PathBuf,
        /// The file system's answer.
        #[source]
        source: io::Error,
    },
}

/// Routes packets that carry the peer's mark into the tunnel to it. Repeating it changes nothing.
///
/// A host or interface without IPv6 gets IPv4 only.
///
/// # Errors
/// [`Error::NoTunnel`] when the peer has no tunnel, [`Error::Refused`], [`Error::Socket`].
pub async fn install(peer: PeerNumber) -> Result<(), Error> {
    let handle = rtnl::connect().map_err(Error::Socket)?;
    let interface = peer.interface();
    let link = rtnl::link_by_name(&handle, &interface)
        .await
        .map_err(|source| refused("list", "interface", peer)(source))?
        .ok_or_else(|| Error::NoTunnel { peer, interface: interface.clone() })?;
    let index = link.header.index;
    let way = match (direct::is_direct(&link), direct::remote_of(&link)) {
        (false, _) => Some(PeerRoute { index, gateway: false }),
        (true, Some(remote)) => {
            know_neighbour(&handle, peer, index, &remote).await?;
            Some(PeerRoute { index, gateway: true })
        }
        // Where its packets go is not known yet.
        (true, None) => None,
    };
    install_family(&handle, peer, IpVersion::V4, way).await?;
    if ipv6_enabled(&interface) {
        install_family(&handle, peer, IpVersion::V6, way).await?;
    } else {
        tracing::debug!(%peer, interface, "IPv6 is off here, no IPv6 routes to the peer");
    }
    Ok(())
}

/// Where the peer's packets go.
#[derive(Clone, Copy, Debug)]
struct PeerRoute {
    index: u32,
    /// Whether the route has a [`gateway`], not just an interface.
    gateway: bool,
}

/// Returns the address that stands for a peer on the same segment.
fn gateway(peer: PeerNumber, version: &IpVersion) -> IpAddr {
    match version {
        IpVersion::V4 => Ipv4Addr::new(169, 254, 78, peer.get()).into(),
        IpVersion::V6 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x4e4d, u16::from(peer.get())).into(),
    }
}

/// Adds permanent neighbour entries with the peer's hardware address. They go with the interface.
async fn know_neighbour(
    handle: &Handle,
    peer: PeerNumber,
    index: u32,
    remote: &Remote,
) -> Result<(), Error> {
    let mut addresses = vec![gateway(peer, &IpVersion::V4), EVERYBODY.into()];
    if ipv6_enabled(&peer.interface()) {
        addresses.push(gateway(peer, &IpVersion::V6));
    }
    for address in addresses {
        let entry = handle.neighbours().add(index, address);
        let entry = entry.link_layer_address(&remote.hardware_address.0).replace();
        let added = entry.execute().await;
        added.map_err(rtnl::answer).map_err(refused("add", "neighbour entry", peer))?;
    }
    Ok(())
}

/// Removes the peer's policy rules and routes, also if there are several of a kind. Absent ones are
/// not an error; what others added to the same table stays.
///
/// # Errors
/// [`Error::Refused`], the first one; everything else is removed. [`Error::Socket`].
pub async fn remove(peer: PeerNumber) -> Result<(), Error> {
    let handle = rtnl::connect().map_err(Error::Socket)?;
    let mut outcome = Ok(());
    for version in [IpVersion::V4, IpVersion::V6] {
        let rules = remove_rules(&handle, peer, version.clone()).await;
        let routes = remove_routes(&handle, peer, version).await;
        outcome = outcome.and(rules).and(routes);
    }
    outcome
}

fn refused(
    action: &'static str,
    object: &'static str,
    peer: PeerNumber,
) -> impl Fn(io::Error) -> Error {
    move |source| Error::Refused { action, object, peer, source }
}

async fn install_family(
    handle: &Handle,
    peer: PeerNumber,
    version: IpVersion,
    way: Option<PeerRoute>,
) -> Result<(), Error> {
    let blackhole = ("blackhole route", default_route(peer, &version, None));
    let tunnel = way.map(|way| ("tunnel route", default_route(peer, &version, Some(way))));
    for (object, route) in [blackhole].into_iter().chain(tunnel) {
        // Replacing an equal route changes nothing; one through an interface that has gone is
        // corrected.
        let added = handle.route().add(route).replace().execute().await;
        added.map_err(rtnl::answer).map_err(refused("add", object, peer))?;
    }
    let mut request = handle.rule().add();
    *request.message_mut() = rule(peer, &version);
    rtnl::unless(request.execute().await, libc::EEXIST)
        .map(drop)
        .map_err(refused("add", "rule", peer))
}

fn address_family(version: &IpVersion) -> AddressFamily {
    match version {
        IpVersion::V4 => AddressFamily::Inet,
        IpVersion::V6 => AddressFamily::Inet6,
    }
}

fn rule(peer: PeerNumber, version: &IpVersion) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = address_family(version);
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(peer.table()),
        RuleAttribute::FwMark(MarkBits::in_use().mark(peer)),
        RuleAttribute::FwMask(MarkBits::in_use().mask()),
        RuleAttribute::Table(peer.table()),
        RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
    ];
    rule
}

/// Returns the peer's default route: through an interface, or the blackhole.
fn default_route(peer: PeerNumber, version: &IpVersion, way: Option<PeerRoute>) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = address_family(version);
    route.header.table = RouteHeader::RT_TABLE_UNSPEC;
    route.header.protocol = RouteProtocol::from(PROTOCOL);
    route.attributes = vec![RouteAttribute::Table(peer.table())];
    if let Some(PeerRoute { index, gateway: by }) = way {
        route.header.kind = RouteType::Unicast;
        route.attributes.push(RouteAttribute::Priority(TUNNEL_METRIC));
        route.attributes.push(RouteAttribute::Oif(index));
        if by {
            route.header.flags |= RouteFlags::Onlink;
            let address = RouteAddress::from(gateway(peer, version));
            route.attributes.push(RouteAttribute::Gateway(address));
        }
    } else {
        route.header.kind = RouteType::BlackHole;
        route.attributes.push(RouteAttribute::Priority(BLACKHOLE_METRIC));
    }
    route
}

/// Returns whether a listed rule is one that [`rule`] returns.
fn is_rule_of(peer: PeerNumber, listed: &RuleMessage) -> bool {
    listed.header.action == RuleAction::ToTable
        && rule(peer, &IpVersion::V4)
            .attributes
            .iter()
            .all(|attribute| listed.attributes.contains(attribute))
}

/// Returns whether a listed route is one that [`default_route`] returns.
fn is_route_of(peer: PeerNumber, listed: &RouteMessage) -> bool {
    listed.header.protocol == RouteProtocol::from(PROTOCOL)
        && listed.header.destination_prefix_length == 0
        && listed.attributes.contains(&RouteAttribute::Table(peer.table()))
}

async fn remove_rules(handle: &Handle, peer: PeerNumber, version: IpVersion) -> Result<(), Error> {
    let family = address_family(&version);
    let listed = handle.rule().get(version).execute().try_collect().await;
    let listed: Vec<RuleMessage> = match listed.map_err(rtnl::answer) {
        // A kernel without this family has no rules of it.
        Err(error) if rtnl::is_no_family(&error) => return Ok(()),
        other => other.map_err(refused("list", "rules", peer))?,
    };
    for rule in listed {
        if rule.header.family == family && is_rule_of(peer, &rule) {
            rtnl::unless(handle.rule().del(rule).execute().await, libc::ENOENT)
                .map_err(refused("remove", "rule", peer))?;
        }
    }
    Ok(())
}

async fn remove_routes(handle: &Handle, peer: PeerNumber, version: IpVersion) -> Result<(), Error> {
    for route in list_routes(handle, peer, address_family(&version)).await? {
        if !is_route_of(peer, &route) {
            continue;
        }
        // Only what identifies the route: state that a dump adds is not wanted in a request.
        let mut identity = default_route(peer, &version, None);
        identity.header.kind = route.header.kind;
        identity.attributes.retain(|own| matches!(own, RouteAttribute::Table(_)));
        identity.attributes.extend(route.attributes.into_iter().filter(|attribute| {
            matches!(attribute, RouteAttribute::Priority(_) | RouteAttribute::Oif(_))
        }));
        rtnl::unless(handle.route().del(identity).execute().await, libc::ESRCH)
            .map_err(refused("remove", "route", peer))?;
    }
    Ok(())
}

/// Lists all routes of a family, of all tables.
async fn list_routes(
    handle: &Handle,
    peer: PeerNumber,
    family: AddressFamily,
) -> Result<Vec<RouteMessage>, Error> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    let listed = handle.route().get(request).execute().try_collect::<Vec<_>>().await;
    match listed.map_err(rtnl::answer) {
        Err(error) if rtnl::is_no_family(&error) => Ok(Vec::new()),
        // A kernel without the family answers with the routes of all families.
        Ok(mut routes) => {
            routes.retain(|route| route.header.address_family == family);
            Ok(routes)
        }
        Err(error) => Err(refused("list", "routes", peer)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8) -> PeerNumber {
        PeerNumber::new(number).unwrap()
    }

    #[test]
    fn a_peers_rule_is_recognised_among_others() {
        let mut listed = rule(peer(3), &IpVersion::V6);
        listed.attributes.push(RuleAttribute::SuppressPrefixLen(u32::MAX));
        assert!(is_rule_of(peer(3), &listed));
        assert!(!is_rule_of(peer(4), &listed));
        for index in 0..5 {
            let mut foreign = listed.clone();
            foreign.attributes.remove(index);
            assert!(!is_rule_of(peer(3), &foreign), "without {:?}", listed.attributes[index]);
        }
        listed.header.action = RuleAction::Goto;
        assert!(!is_rule_of(peer(3), &listed));
    }

    #[test]
    fn a_peers_routes_are_recognised_among_others() {
        let ways = [false, true].map(|gateway| Some(PeerRoute { index: 7, gateway }));
        for way in [None].into_iter().chain(ways) {
            let route = default_route(peer(3), &IpVersion::V4, way);
            assert!(is_route_of(peer(3), &route));
            assert!(!is_route_of(peer(30), &route));
            let mut foreign = route.clone();
            foreign.header.protocol = RouteProtocol::Static;
            assert!(!is_route_of(peer(3), &foreign), "somebody else's in the same table");
        }
    }
}
