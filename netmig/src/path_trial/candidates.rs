//! Which flows are tried: one for each kind of flows whose packets meet the same rules.

use std::collections::HashMap;
use std::net::IpAddr;

use super::{EXPIRES_AFTER, Error, MOST};
use crate::flow::{Conntrack, Direction, Flow, Protocol, TCP_BE_LIBERAL, TcpState, Tuple};
use crate::netlink::route;
use crate::netlink::rtnetlink;
use crate::netlink::{Connection, Protocol as Netlink};
use crate::peer_number::PeerNumber;
use crate::routing;
use crate::table::ForwardedPort;

/// Number of ports among which an unused one is looked for.
const PORTS: u16 = 64;
/// The first unprivileged port.
const FIRST_PORT: u16 = 1024;

/// A twin whose path stands for that of other flows.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The twin, with an unused port.
    pub flow: Flow,
    /// Index of the interface by which its packets come to this host.
    pub interface: u32,
    /// Name of that interface.
    pub name: String,
    /// Number of flows for which it stands; 0 if it is for new connections.
    pub stands_for: usize,
}

impl Candidate {
    /// Returns the twin of a new connection to a forwarded port, from the same far end. `None` if
    /// it is of another address family, if the container opened the flow, or if no port is unused.
    ///
    /// # Errors
    /// [`Error::Flows`] when conntrack cannot be read.
    pub fn opening(
        &self,
        port: &ForwardedPort,
        container: &[IpAddr],
        peer: PeerNumber,
    ) -> Result<Option<Self>, Error> {
        /// `TCP_CONNTRACK_SYN_SENT`.
        const SYN_SENT: u8 = 1;
        let Flow { original, .. } = self.flow;
        if self.flow.direction(container) != Some(Direction::Inbound)
            || original.source.is_ipv4() != port.to.is_ipv4()
        {
            return Ok(None);
        }
        let original = Tuple {
            destination: port.address.unwrap_or(original.destination),
            destination_port: port.port,
            ..original
        };
        let reply = Tuple {
            source: port.to.ip(),
            source_port: port.to.port(),
            destination: original.source,
            destination_port: original.source_port,
        };
        let flags = [TCP_BE_LIBERAL; 2];
        let tcp = TcpState { state: SYN_SENT, scales: [0; 2], flags };
        let flow = Flow {
            protocol: port.protocol,
            original,
            reply,
            status: 0,
            timeout: EXPIRES_AFTER,
            mark: 0,
            zone: self.flow.zone,
            tcp: (port.protocol == Protocol::Tcp).then_some(tcp),
        };
        let flow = on_unused_port(&flow, Direction::Inbound, peer, &mut Conntrack::open()?)?;
        let name = self.name.clone();
        Ok(flow.map(|flow| Self { flow, interface: self.interface, name, stands_for: 0 }))
    }
}

/// What flows have in common whose packets meet the same rules.
type Kind = (Protocol, Direction, bool, u32, Option<u16>);

/// Returns whether another host can send from this address. False for multicast and broadcast,
/// which no kernel accepts as a source, and for link-local addresses, which need an interface that
/// conntrack does not report.
#[must_use]
pub fn is_one_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_loopback()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_unspecified()
                || v4.is_link_local())
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback()
                || v6.is_multicast()
                || v6.is_unspecified()
                || v6.is_unicast_link_local())
        }
    }
}

/// Returns the twins to try for flows that this host will steer to `peer`: one for each protocol,
/// direction, address family, outer interface and published port. Skips flows with this host
/// itself.
///
/// # Errors
/// [`Error::Route`], [`Error::Interface`] or [`Error::Flows`] when routes, interfaces or conntrack
/// cannot be read.
pub async fn candidates(
    flows: &[Flow],
    container: &[IpAddr],
    peer: PeerNumber,
    left_out: &[IpAddr],
) -> Result<Vec<Candidate>, Error> {
    /// Most far ends whose routes are looked up.
    const MOST_FAR_ENDS: usize = 256;
    let own = routing::host_addresses().await?;
    let handle = rtnetlink::connect().map_err(Error::Interface)?;
    let links = Connection::open(Netlink::Route)
        .and_then(|mut connection| route::links(&mut connection))
        .map_err(|error| Error::Interface(error.into()))?;
    let mut routes: HashMap<IpAddr, Option<u32>> = HashMap::new();
    let mut kinds: HashMap<Kind, Candidate> = HashMap::new();
    let mut conntrack = Conntrack::open()?;
    for flow in flows.iter().filter(|flow| flow.is_alive()) {
        let (Some(direction), None) = (flow.direction(container), flow.anchor(container)) else {
            continue;
        };
        let far = match direction {
            Direction::Inbound => flow.original.source,
            Direction::Outbound => flow.original.destination,
        };
        let is_here =
            own.contains(&far) || flow.other_end(container).is_some_and(|end| own.contains(&end));
        if is_here || !is_one_host(far) || left_out.contains(&far) || container.contains(&far) {
            continue;
        }
        if !routes.contains_key(&far) && routes.len() < MOST_FAR_ENDS {
            let route = routing::route_to(&handle, far).await.ok();
            routes.insert(far, route.as_ref().and_then(routing::interface_of));
        }
        let Some(Some(interface)) = routes.get(&far).copied() else { continue };
        let Some(link) = links.iter().find(|link| link.index == interface) else { continue };
        // Packets of the container's own network come by its bridge, and are steered otherwise.
        if link.kind.as_deref() == Some("bridge")
            && flow.other_end(container) == Some(far)
            && !flow.is_translated()
        {
            continue;
        }
        let port = (direction == Direction::Inbound).then_some(flow.original.destination_port);
        let kind = (flow.protocol, direction, far.is_ipv4(), interface, port);
        if let Some(candidate) = kinds.get_mut(&kind) {
            candidate.stands_for += 1;
        } else if kinds.len() < MOST
            && let Some(flow) = on_unused_port(flow, direction, peer, &mut conntrack)?
        {
            let name = link.name.clone();
            kinds.insert(kind, Candidate { flow, interface, name, stands_for: 1 });
        }
    }
    let mut all: Vec<(Kind, Candidate)> = kinds.into_iter().collect();
    all.sort_by_key(|(kind, _)| (kind.0, kind.1 == Direction::Outbound, kind.2, kind.3, kind.4));
    Ok(all.into_iter().map(|(_, candidate)| candidate).collect())
}

/// Returns the flow as it will be marked, from another source port of its opener; `None` if none is
/// unused.
fn on_unused_port(
    flow: &Flow,
    direction: Direction,
    peer: PeerNumber,
    conntrack: &mut Conntrack,
) -> Result<Option<Flow>, Error> {
    let (value, mask) = Flow::mark_at_source(direction, peer);
    let first = flow.original.source_port;
    for step in 1..=PORTS {
        // Far from ports that the opener will use next.
        let port =
            FIRST_PORT + first.wrapping_add(step.wrapping_mul(509)) % (u16::MAX - FIRST_PORT);
        let mut other = flow.clone();
        other.mark = flow.mark & !mask | value;
        other.original.source_port = port;
        other.reply.destination_port = port;
        let tuples = [other.original, other.reply];
        let of = |protocol| tuples.map(|tuple| (protocol, tuple));
        let asked = [of(Protocol::Tcp), of(Protocol::Udp)].concat();
        if conntrack.find(&asked)?.iter().all(Option::is_none) {
            return Ok(Some(other));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_everybody_are_no_far_ends() {
        for address in ["224.0.0.251", "255.255.255.255", "ff02::16", "fe80::1", "::", "127.0.0.1"]
        {
            assert!(!is_one_host(address.parse().unwrap()), "{address}");
        }
        for address in ["192.0.2.1", "2001:db8::1", "fd00::1"] {
            assert!(is_one_host(address.parse().unwrap()), "{address}");
        }
    }
}
