//! What a copy is made of that waits for the source's decision.

use std::net::IpAddr;
use std::path::PathBuf;

use checkpoint::cgroup::Cgroup;
use checkpoint::lazy_pages::LazyPages;
use engine::stage::Staged;
use netmig::bridge_port::Port;
use netmig::container_network::ContainerNetwork;
use state::journal::Journal;

/// The staged container's network.
#[derive(Debug)]
pub struct Network {
    /// Its port of the host's bridge.
    pub port: Port,
    /// Its own side.
    pub sandbox: ContainerNetwork,
    /// Where its network namespace is.
    pub namespace: PathBuf,
    /// Other containers of its network that it left here and comes back to, with their Ethernet addresses.
    pub here: Vec<(IpAddr, [u8; 6])>,
}

/// What a prepared copy is made of.
#[derive(Debug)]
pub struct Whole {
    /// The restored container.
    pub staged: Box<dyn Staged>,
    /// Its network.
    pub network: Network,
    /// Its cgroup, frozen.
    pub cgroup: Cgroup,
    /// The journal.
    pub journal: Journal,
    /// The largest packet that it may send.
    pub mtu: u32,
    /// What puts memory in place that follows.
    pub lazy_pages: Option<LazyPages>,
}
