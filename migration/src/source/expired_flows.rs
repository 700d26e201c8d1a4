//! Connections that this host's connection tracking has forgotten while they were idle.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use engine::inspect::Container;
use netmig::flow::{Conntrack, ExpiredFlows, Flow, Published};
use netmig::sockets::Connections;
use state::cause::Cause;

/// Makes their entries anew, from the container's own sockets; gives those that were made. `flows` are
/// all that the container has.
pub fn remember(
    conntrack: &mut Conntrack,
    connections: &Connections,
    container: &Container,
    flows: &[Flow],
) -> Result<Vec<Flow>, Cause> {
    let networks: Vec<(IpAddr, u8)> =
        container.networks.iter().flat_map(|network| network.addresses.clone()).collect();
    let addresses: Vec<IpAddr> = networks.iter().map(|(address, _)| *address).collect();
    let tcp = container.ports.iter().filter(|port| port.protocol == "tcp");
    let published: Vec<Published> = tcp
        .map(|port| Published {
            address: port.host_ip,
            host: port.host_port,
            container: port.container_port,
        })
        .collect();
    let forgotten = ExpiredFlows {
        connections,
        container: &addresses,
        networks: &networks,
        published: &published,
    };
    let mut made = forgotten.entries(flows, own_address);
    if !made.is_empty() {
        let outcome = conntrack.create(&made)?;
        let mut index = 0..;
        // Another flow has the ends of such a one by now: its far end is lost.
        made.retain(|_| index.next().is_some_and(|index| !outcome.existing.contains(&index)));
    }
    Ok(made)
}

/// Returns the address by which this host talks to a far end. Connecting a datagram socket sends nothing.
fn own_address(far: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match far {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    /// Any port: discard (RFC 863).
    const DISCARD: u16 = 9;
    socket.connect((far, DISCARD)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
