//! Looking up routes, and the kernel settings that affect them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::{Error, PROTOCOL, list_routes};
use crate::netlink::rtnetlink as rtnl;
use crate::peer_number::PeerNumber;

/// Whether this host forwards packets between its interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarding {
    /// `net.ipv4.ip_forward`.
    pub v4: bool,
    /// `net.ipv6.conf.all.forwarding`; false when there is no IPv6.
    pub v6: bool,
}

/// Returns whether this host forwards packets, as it must to serve moved containers.
///
/// # Errors
/// [`Error::Setting`] when a setting cannot be read.
pub fn forwarding() -> Result<Forwarding, Error> {
    let v6 = Path::new("/proc/sys/net/ipv6/conf/all/forwarding");
    Ok(Forwarding {
        v4: is_set(Path::new("/proc/sys/net/ipv4/ip_forward"))?,
        v6: v6.exists() && is_set(v6)?,
    })
}

/// Returns the MTU, in bytes, of the interface by which packets to `destination` leave this host,
/// or that of the route if a smaller one is configured.
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

/// Returns the route that this host's packets to `destination` take.
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

/// Returns whether this host will drop packets that come from an IPv4 address by the tunnel to
/// `peer`, once the bridge that leads to this address has gone with its last container. The kernel
/// looks for a route back, even loosely, and there is no other one (ip-sysctl.rst, `rp_filter`).
///
/// # Errors
/// [`Error::Setting`], [`Error::Socket`] or [`Error::Refused`] when settings or routes cannot be
/// read.
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

/// Returns the interface of a looked-up route.
pub(crate) fn interface_of(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

/// Returns the interface of a looked-up route to a neighbour; `None` if a router is in between, or
/// the route does not lead to another host.
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

/// Returns the MTU metric of a looked-up route. One with an expiry was learnt from ICMP, not
/// configured.
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

/// Returns whether the interface has IPv6: false where the kernel lacks it or it is disabled.
pub(crate) fn ipv6_enabled(interface: &str) -> bool {
    let disabled = Path::new("/proc/sys/net/ipv6/conf").join(interface).join("disable_ipv6");
    disabled.exists() && is_set(&disabled).is_ok_and(|disabled| !disabled)
}

fn is_set(path: &Path) -> Result<bool, Error> {
    std::fs::read_to_string(path)
        .map(|value| value.trim() != "0")
        .map_err(|source| Error::Setting { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::route::RouteCacheInfo;

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
