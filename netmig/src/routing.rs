//! Policy routing towards peers: what carries a peer's mark goes into its tunnel, or nowhere.
//!
//! For peer *P*, over IPv4 and IPv6 (see [`crate::peer`] for the numbers):
//!
//! ```text
//! rule  pref 3000+P  fwmark P<<16/0x00ff0000  lookup 3000+P   (or other bits, see crate::marks)
//! table 3000+P       default dev netmigP metric 1
//!                    blackhole default metric 4294967295
//! ```
//!
//! To a peer that is a neighbour on an Ethernet segment ([`direct`]) the route is `default via 169.254.78.P
//! dev netmigP onlink`, and `via fe80::4e4d:P` for IPv6: addresses that nobody has, with permanent
//! neighbour entries that give them the peer's hardware address.
//!
//! The blackhole holds the place when the tunnel's interface goes away, as its route does then.
//! Without it packets would fall through to the main table, and far ends would get resets.

mod foreign;
mod neighbours;
mod own;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};
use thiserror::Error;

use crate::marks::MarkBits;
pub use crate::netlink::route::PROTOCOL;
use crate::netlink::rtnetlink as rtnl;
use crate::peer::PeerNumber;
use crate::tunnel::direct::{self, Remote};
pub use foreign::{MarkRule, mark_rules};
pub use neighbours::addresses_of;
pub use own::own_addresses;

/// Metric of the route into the tunnel.
const TUNNEL_METRIC: u32 = 1;
/// Metric of the blackhole: the highest, so any other route comes first.
const BLACKHOLE_METRIC: u32 = u32::MAX;

/// All hosts of a link. To a neighbour on a segment it goes in a frame for that one alone.
pub(crate) const EVERYBODY: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);

/// Why policy routing could not be set up, read or removed.
#[derive(Debug, Error)]
pub enum Error {
    /// A netlink socket could not be opened.
    #[error("cannot open a netlink socket for routes")]
    Socket(#[source] io::Error),
    /// A rule or route was refused.
    #[error("cannot {action} the {object} of peer {peer}")]
    Refused {
        /// `add`, `remove` or `list`.
        action: &'static str,
        /// What was to be changed.
        object: &'static str,
        /// Whose.
        peer: PeerNumber,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The addresses of this host, or of its neighbours, could not be listed.
    #[error("cannot list the addresses of this host and its neighbours")]
    Addresses(#[source] io::Error),
    /// The rules of this host could not be listed.
    #[error("cannot list this host's routing rules")]
    Rules(#[source] io::Error),
    /// The tunnel to the peer does not exist.
    #[error("peer {peer} has no tunnel interface {interface}; connect to the peer first")]
    NoTunnel {
        /// Which peer.
        peer: PeerNumber,
        /// The interface that is missing.
        interface: String,
    },
    /// There is no way to that address.
    #[error("no route to {destination}; check this host's routes")]
    NoRoute {
        /// The address.
        destination: IpAddr,
        /// The kernel's answer, if it was an error.
        #[source]
        source: Option<io::Error>,
    },
    /// A setting of the kernel could not be read.
    #[error("cannot read {}", path.display())]
    Setting {
        /// The file under `/proc/sys`.
        path: PathBuf,
        /// The file system's answer.
        #[source]
        source: io::Error,
    },
}

/// Whether this host forwards packets between its interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarding {
    /// `net.ipv4.ip_forward`.
    pub v4: bool,
    /// `net.ipv6.conf.all.forwarding`; false too when there is no IPv6.
    pub v6: bool,
}

/// Leads packets that carry the peer's mark into the tunnel to it. Doing it twice changes nothing.
///
/// A host (or interface) without IPv6 gets IPv4 alone.
///
/// # Errors
/// [`Error::NoTunnel`], [`Error::Refused`].
pub async fn install(peer: PeerNumber) -> Result<(), Error> {
    let handle = rtnl::connect().map_err(Error::Socket)?;
    let interface = peer.interface();
    let link = rtnl::link_by_name(&handle, &interface)
        .await
        .map_err(|source| refused("list", "interface", peer)(source))?
        .ok_or_else(|| Error::NoTunnel { peer, interface: interface.clone() })?;
    let index = link.header.index;
    let way = match (direct::is_direct(&link), direct::remote_of(&link)) {
        (false, _) => Some(Way { index, gateway: false }),
        (true, Some(remote)) => {
            know_neighbour(&handle, peer, index, &remote).await?;
            Some(Way { index, gateway: true })
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
struct Way {
    index: u32,
    /// Whether to the address of a [`gateway`], not just into the interface.
    gateway: bool,
}

/// The address that stands for a peer which is a neighbour.
fn gateway(peer: PeerNumber, version: &IpVersion) -> IpAddr {
    match version {
        IpVersion::V4 => Ipv4Addr::new(169, 254, 78, peer.get()).into(),
        IpVersion::V6 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x4e4d, u16::from(peer.get())).into(),
    }
}

/// Makes permanent entries of the peer's hardware address. They go with the interface.
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

/// Takes the peer's rules and routes away, also if there are several of a kind. What is not there
/// is no error; what others put into the same table stays.
///
/// # Errors
/// [`Error::Refused`], the first; everything else is removed nevertheless.
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

/// Whether this host forwards packets, as it must to serve moved containers.
///
/// # Errors
/// [`Error::Setting`].
pub fn forwarding() -> Result<Forwarding, Error> {
    let v6 = Path::new("/proc/sys/net/ipv6/conf/all/forwarding");
    Ok(Forwarding {
        v4: is_set(Path::new("/proc/sys/net/ipv4/ip_forward"))?,
        v6: v6.exists() && is_set(v6)?,
    })
}

/// The MTU, in bytes, of the interface by which packets to `destination` leave this host, or that
/// of the route if somebody configured a smaller one.
///
/// # Errors
/// [`Error::NoRoute`], [`Error::Socket`].
pub async fn route_mtu(destination: IpAddr) -> Result<u32, Error> {
    let handle = rtnl::connect().map_err(Error::Socket)?;
    let no_route = |source| Error::NoRoute { destination, source };
    let answer = route_to(&handle, destination).await?;
    let link = rtnl::link_by_index(&handle, interface_of(&answer).ok_or_else(|| no_route(None))?)
        .await
        .map_err(|source| no_route(Some(source)))?;
    let device = link.and_then(|link| {
        link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        })
    });
    let device = device.ok_or_else(|| no_route(None))?;
    Ok(configured_mtu(&answer).map_or(device, |mtu| mtu.min(device)))
}

/// The route that this host's packets to `destination` take.
pub(crate) async fn route_to(handle: &Handle, destination: IpAddr) -> Result<RouteMessage, Error> {
    let no_route = |source| Error::NoRoute { destination, source };
    let request = match destination {
        IpAddr::V4(address) => {
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build()
        }
        IpAddr::V6(address) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build()
        }
    };
    let answer: Option<RouteMessage> = handle
        .route()
        .get(request)
        .execute()
        .try_next()
        .await
        .map_err(|source| no_route(Some(rtnl::answer(source))))?;
    answer.ok_or_else(|| no_route(None))
}

/// Whether this host drops what comes by the way to `peer` from an IPv4 address once the bridge that leads to
/// this address has gone with its last container: the kernel looks for a route back, even loosely, and there is
/// no other one (ip-sysctl.rst, `rp_filter`).
///
/// # Errors
/// When routes or settings cannot be read.
pub async fn needs_bridge(peer: PeerNumber, address: IpAddr, bridge: u32) -> Result<bool, Error> {
    let path = Path::new("/proc/sys/net/ipv4/conf");
    let interface = peer.interface();
    if !address.is_ipv4()
        || !is_set(&path.join("all/rp_filter"))?
            && !is_set(&path.join(interface).join("rp_filter"))?
    {
        return Ok(false);
    }
    let handle = rtnl::connect().map_err(Error::Socket)?;
    let routes = list_routes(&handle, peer, AddressFamily::Inet).await?;
    let leads_back = |route: &RouteMessage| {
        let destination = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
            _ => None,
        });
        let length = route.header.destination_prefix_length;
        let covers = length == 0
            || destination.is_some_and(|network| crate::flow::contains((network, length), address));
        route.header.kind == RouteType::Unicast
            && route.header.protocol != RouteProtocol::from(PROTOCOL)
            && interface_of(route) != Some(bridge)
            && covers
    };
    Ok(!routes.iter().any(leads_back))
}

/// The interface of a looked-up route.
pub(crate) fn interface_of(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

/// The interface of a looked-up route to a neighbour; `None` if a router is in between, or it is no route
/// to another host.
pub(crate) fn neighbour_interface(route: &RouteMessage) -> Option<u32> {
    let routed = route.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            RouteAttribute::Gateway(_)
                | RouteAttribute::Via(_)
                | RouteAttribute::Encap(_)
                | RouteAttribute::MultiPath(_)
        )
    });
    let remote = route.header.kind == RouteType::Unicast;
    (remote && !routed).then(|| interface_of(route)).flatten()
}

/// The MTU metric of a looked-up route. One with an expiry was learnt from ICMP, not configured.
fn configured_mtu(route: &RouteMessage) -> Option<u32> {
    let learnt = route
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, RouteAttribute::CacheInfo(info) if info.expires != 0));
    let metrics = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) if !learnt => Some(metrics),
        _ => None,
    })?;
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
        _ => None,
    })
}

/// False where the kernel has no IPv6 or it is switched off for the interface.
pub(crate) fn ipv6_enabled(interface: &str) -> bool {
    let disabled = Path::new("/proc/sys/net/ipv6/conf").join(interface).join("disable_ipv6");
    disabled.exists() && is_set(&disabled).is_ok_and(|disabled| !disabled)
}

fn is_set(path: &Path) -> Result<bool, Error> {
    std::fs::read_to_string(path)
        .map(|value| value.trim() != "0")
        .map_err(|source| Error::Setting { path: path.to_owned(), source })
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
    way: Option<Way>,
) -> Result<(), Error> {
    let blackhole = ("blackhole route", default_route(peer, &version, None));
    let tunnel = way.map(|way| ("tunnel route", default_route(peer, &version, Some(way))));
    for (object, route) in [blackhole].into_iter().chain(tunnel) {
        // Replacing one that is equal changes nothing; one that leads to an interface of the past
        // is corrected.
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

/// The peer's default route: by a `way`, or the blackhole.
fn default_route(peer: PeerNumber, version: &IpVersion, way: Option<Way>) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = address_family(version);
    route.header.table = RouteHeader::RT_TABLE_UNSPEC;
    route.header.protocol = RouteProtocol::from(PROTOCOL);
    route.attributes = vec![RouteAttribute::Table(peer.table())];
    if let Some(Way { index, gateway: by }) = way {
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

/// Whether a listed rule is the one that [`rule`] makes.
fn is_rule_of(peer: PeerNumber, listed: &RuleMessage) -> bool {
    listed.header.action == RuleAction::ToTable
        && rule(peer, &IpVersion::V4)
            .attributes
            .iter()
            .all(|attribute| listed.attributes.contains(attribute))
}

/// Whether a listed route is one that [`default_route`] makes.
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

/// All routes of a family, of all tables.
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
    use rtnetlink::packet_route::route::RouteCacheInfo;

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
        let ways = [false, true].map(|gateway| Some(Way { index: 7, gateway }));
        for way in [None].into_iter().chain(ways) {
            let route = default_route(peer(3), &IpVersion::V4, way);
            assert!(is_route_of(peer(3), &route));
            assert!(!is_route_of(peer(30), &route));
            let mut foreign = route.clone();
            foreign.header.protocol = RouteProtocol::Static;
            assert!(!is_route_of(peer(3), &foreign), "somebody else's in the same table");
        }
    }

    #[test]
    fn a_learnt_mtu_is_not_a_configured_one() {
        let mut route = RouteMessage::default();
        assert_eq!(configured_mtu(&route), None);
        route.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)]));
        assert_eq!(configured_mtu(&route), Some(1400));
        let mut info = RouteCacheInfo::parse(&[0; 32]).unwrap();
        info.expires = 500;
        route.attributes.push(RouteAttribute::CacheInfo(info));
        assert_eq!(configured_mtu(&route), None);
    }
}
