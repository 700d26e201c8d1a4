//! The container's published ports: at the destination, and those of this host that go on leading to it.

use std::net::{IpAddr, SocketAddr};

use engine::inspect::{Container, PublishedPort};
use netmig::flow::{Aliases, NoAlias, Protocol};
use netmig::table::ForwardedPort;
use steering::port_forward::{self, Away};

use crate::connect::Introduced;
use crate::offer::Port;

/// Returns `None` for protocols that are not moved.
fn protocol(port: &PublishedPort) -> Option<Protocol> {
    match port.protocol.as_str() {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        _ => None,
    }
}

/// Returns the ports that are offered.
pub fn offered(ports: &[PublishedPort]) -> Vec<Port> {
    let offered = ports.iter().filter_map(|port| {
        Some(Port {
            protocol: protocol(port)?,
            host_address: port.host_ip,
            host_port: port.host_port,
            container_port: port.container_port,
        })
    });
    offered.collect()
}

/// Returns how this host's ports are to lead to a container that has moved; `None` if it has none.
pub fn away(
    container: &Container,
    link: &Introduced,
    aliases: &Aliases,
) -> Result<Option<Away>, NoAlias> {
    let addresses = || container.networks.iter().flat_map(|network| &network.addresses);
    let ports: Vec<ForwardedPort> = container
        .ports
        .iter()
        .flat_map(|port| {
            // The first address of each family, as podman publishes them.
            let of = |four: bool| addresses().map(|(ip, _)| *ip).find(|ip| ip.is_ipv4() == four);
            let fits = |to: &IpAddr| port.host_ip.is_none_or(|ip| ip.is_ipv4() == to.is_ipv4());
            let targets = [of(true), of(false)].into_iter().flatten().filter(fits);
            targets.filter_map(|to| {
                Some(ForwardedPort {
                    protocol: protocol(port)?,
                    address: port.host_ip,
                    to: SocketAddr::new(to, port.container_port),
                    port: port.host_port,
                })
            })
        })
        .collect();
    let mut hidden: Vec<(IpAddr, u8)> = addresses().copied().collect();
    hidden.push(port_forward::host_alone(link.connection.peer().ip().to_canonical()));
    let destination = link.destination.clone();
    if ports.is_empty() {
        return Ok(None);
    }
    let stand_ins = port_forward::stand_ins(link.connection.local().ip().to_canonical(), aliases)?;
    Ok(Some(Away { destination, ports, hidden, stand_ins, in_force: false }))
}
