//! A container's networks, names and ports.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A container's networks, names and ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connectivity {
    /// Networks.
    pub networks: Vec<NetworkSettings>,
    /// Published ports.
    pub ports: Vec<PortRange>,
    /// Ports that are exposed and not published, with their protocols.
    pub exposed: BTreeMap<u16, Vec<String>>,
    /// DNS servers.
    pub dns_servers: Vec<IpAddr>,
    /// DNS search domains.
    pub dns_search: Vec<String>,
    /// Options of resolv.conf(5).
    pub dns_options: Vec<String>,
    /// Additional lines of hosts(5): each a name, a colon and an address.
    pub extra_hosts: Vec<String>,
    /// What hosts(5) begins with: `none`, `image`, or empty for the engine's default.
    pub hosts_file: String,
    /// Whether it has the image's resolv.conf(5).
    pub image_resolver: bool,
    /// Whether it has the image's hosts(5).
    pub image_hosts: bool,
    /// Whether it has the image's hostname(5).
    pub image_hostname: bool,
}

/// A network of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSettings {
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
    /// The hardware address.
    pub mac: String,
}

/// An address of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// The length of the network's prefix in bits.
    pub prefix: u8,
    /// The network's gateway.
    pub gateway: Option<IpAddr>,
}

/// A range of published ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    /// `tcp`, `udp` or `sctp`, or several of these separated by commas.
    pub protocol: String,
    /// The address of the host on which they are published; `None` for all.
    pub host_address: Option<IpAddr>,
    /// The first port of the host.
    pub host_port: u16,
    /// The first port of the container.
    pub container_port: u16,
    /// The number of ports.
    pub range: u16,
}
