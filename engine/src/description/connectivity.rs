//! A container's networks, names and ports.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::inspect::PublishedPort;

/// A container's networks, names and ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connectivity {
    /// Its networks.
    pub networks: Vec<Network>,
    /// Ports that are published.
    pub ports: Vec<Port>,
    /// Ports that are named and not published, with their protocols.
    pub exposed: BTreeMap<u16, Vec<String>>,
    /// Servers that it asks for names.
    pub dns_servers: Vec<IpAddr>,
    /// Domains in which it searches.
    pub dns_search: Vec<String>,
    /// Options of resolv.conf(5).
    pub dns_options: Vec<String>,
    /// More lines of its hosts(5): each a name, a colon and an address.
    pub extra_hosts: Vec<String>,
    /// What its hosts(5) begins with: `none`, `image`, or empty for the engine's default.
    pub hosts_file: String,
    /// Whether it has the image's resolv.conf(5).
    pub image_resolver: bool,
    /// Whether it has the image's hosts(5).
    pub image_hosts: bool,
    /// Whether it has the image's hostname(5).
    pub image_hostname: bool,
}

impl Connectivity {
    /// Gives the container other addresses, each first one of a pair replaced by the second. What its creator
    /// chose stays.
    pub fn readdress(&mut self, pairs: &[(IpAddr, IpAddr)]) {
        for address in self.networks.iter_mut().flat_map(|network| &mut network.addresses) {
            if let Some((_, new)) = pairs.iter().find(|(old, _)| *old == address.ip) {
                address.ip = *new;
            }
        }
    }

    /// Has the container publish these ports, in place of those that it publishes.
    pub fn publish(&mut self, ports: &[PublishedPort]) {
        let port = |port: &PublishedPort| Port {
            protocol: port.protocol.clone(),
            host_address: port.host_ip,
            host_port: port.host_port,
            container_port: port.container_port,
            range: 1,
        };
        self.ports = ports.iter().map(port).collect();
    }
}

/// A network of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// The engine's name for it.
    pub name: String,
    /// The interface in the container.
    pub interface: String,
    /// Names that the container's creator gave it there.
    pub aliases: Vec<String>,
    /// Addresses that the creator chose.
    pub static_addresses: Vec<IpAddr>,
    /// The hardware address that the creator chose; empty for none.
    pub static_mac: String,
    /// Options: `mtu`, `metric`, `no_default_route`.
    pub options: BTreeMap<String, String>,
    /// Addresses that it has.
    pub addresses: Vec<Address>,
    /// Its hardware address.
    pub mac: String,
}

/// An address of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Bits of its network.
    pub prefix: u8,
    /// The network's router.
    pub gateway: Option<IpAddr>,
}

/// A range of published ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// `tcp`, `udp` or `sctp`, or several of these with commas.
    pub protocol: String,
    /// Address of the host that it is published on; `None` for all.
    pub host_address: Option<IpAddr>,
    /// First port of the host.
    pub host_port: u16,
    /// First port of the container.
    pub container_port: u16,
    /// How many ports.
    pub range: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_replaced_once_and_nothing_else() {
        let address = |ip: &str| Address { ip: ip.parse().unwrap(), prefix: 16, gateway: None };
        let network = |first: &str| Network {
            addresses: vec![address(first), address("fd77::2")],
            static_addresses: vec!["10.88.0.2".parse().unwrap()],
            ..Network::default()
        };
        let mut connectivity =
            Connectivity { networks: vec![network("10.88.0.2")], ..Connectivity::default() };
        let pairs = [("10.88.0.2", "10.88.0.9"), ("10.88.0.9", "10.88.0.7")]
            .map(|(old, new)| (old.parse().unwrap(), new.parse().unwrap()));
        connectivity.readdress(&pairs);
        assert_eq!(connectivity.networks, [network("10.88.0.9")]);
    }

    #[test]
    fn published_ports_are_replaced() {
        let mut connectivity =
            Connectivity { ports: vec![Port::default()], ..Connectivity::default() };
        let host_ip = Some("192.0.2.1".parse().unwrap());
        let port =
            PublishedPort { protocol: "udp".into(), host_ip, host_port: 5353, container_port: 53 };
        connectivity.publish(&[port]);
        let published = &connectivity.ports[0];
        assert_eq!(
            (published.host_port, published.range, published.host_address),
            (5353, 1, host_ip)
        );
        assert_eq!(connectivity.ports.len(), 1);
    }
}
