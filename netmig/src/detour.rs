//! Siblings: other containers on the bridge of the one that moves. Their connections with it cross
//! the bridge as frames, without NAT or routing by the host.
//!
//! While the container is away, the siblings' frames for it have to reach their host, and its
//! frames for them its new host. Both take a neighbour entry, a [`Detour`]: it resolves the other
//! container's address to the bridge itself. From there conntrack entries steer the packets, as
//! those of any flow. The bridge and its ports are not changed.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bridge_port::Port;
use crate::container_network::{self, ContainerNetwork};
use crate::flow::{BridgedFlows, Flow};
use crate::netlink::route::{permanent, remove_permanent};
use crate::netlink::{Connection, Protocol};
use crate::netns::{self, Namespace};
use crate::sockets::{self, Connections, UdpSockets};

/// Where podman and `ip netns` mount network namespaces by name.
const NAMESPACES: &str = "/run/netns";

/// Why the path between two containers could not be found or changed.
#[derive(Debug, Error)]
pub enum Error {
    /// The network namespace cannot be used.
    #[error("cannot read the network of a container")]
    Namespace(#[from] netns::Error),
    /// Interfaces could not be listed.
    #[error(transparent)]
    ContainerNetwork(#[from] container_network::Error),
    /// Sockets could not be listed.
    #[error(transparent)]
    Sockets(#[from] sockets::Error),
    /// The kernel refused a neighbour entry.
    #[error("cannot set the neighbour entry for {address} in {container}")]
    Neighbour {
        /// The network namespace.
        container: String,
        /// The address that the entry resolves.
        address: IpAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// A neighbour entry in a container that sends its frames for another container to the host
/// instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detour {
    /// Path of the container's network namespace.
    pub namespace: PathBuf,
    /// Index of the container's interface in its namespace.
    pub interface: u32,
    /// Ethernet address of that interface.
    pub mac: [u8; 6],
    /// The address that the entry resolves to the bridge.
    pub towards: IpAddr,
    /// The end that does not move, of the flows for which this entry is needed.
    #[serde(rename = "beside")]
    pub sibling: IpAddr,
}

impl Detour {
    /// Removes the entry, so that the container resolves the address itself. An absent entry and an
    /// absent container are not errors.
    ///
    /// # Errors
    /// [`Error::Namespace`], [`Error::Neighbour`].
    pub fn remove(&self) -> Result<(), Error> {
        let namespace = match Namespace::at_path(&self.namespace) {
            Err(_) if !self.namespace.exists() => return Ok(()),
            other => other?,
        };
        let mut socket = match namespace.netlink(Protocol::Route) {
            // While a namespace goes, its path is for a moment a plain file.
            Err(netns::Error::Enter { source, .. })
                if source.raw_os_error() == Some(libc::EINVAL) =>
            {
                return Ok(());
            }
            other => other?,
        };
        let removed = remove_permanent(&mut socket, self.interface, self.towards);
        removed.map(drop).map_err(|error| Error::Neighbour {
            container: self.namespace.display().to_string(),
            address: self.towards,
            source: error.into(),
        })
    }
}

/// Another container on the bridge.
struct Sibling {
    namespace: PathBuf,
    interface: u32,
    mac: [u8; 6],
    addresses: Vec<IpAddr>,
    /// A socket in its namespace, opened once an entry is needed there.
    route: Option<Connection>,
}

impl Sibling {
    /// Returns the connected UDP sockets of the sibling.
    fn udp(&self) -> Result<Connections, Error> {
        Ok(UdpSockets::open(&Namespace::at_path(&self.namespace)?)?.list()?)
    }
}

/// The containers on the bridge of one that is about to move.
pub struct Siblings {
    container: Vec<IpAddr>,
    own: UdpSockets,
    bridge: [u8; 6],
    others: Vec<Sibling>,
}

impl Siblings {
    /// Finds them: namespaces with an interface whose other end is a port of the same bridge. `own`
    /// is the namespace of the container that moves. Siblings that cannot be read are skipped.
    ///
    /// # Errors
    /// [`Error::Sockets`] when the container's own sockets cannot be listed.
    pub fn find(port: &Port, own: &Namespace, container: &[IpAddr]) -> Result<Self, Error> {
        let mut others = Vec::new();
        for entry in fs::read_dir(NAMESPACES).into_iter().flatten().flatten() {
            match attached(&entry.path(), port) {
                Ok(Some(other)) if !other.addresses.iter().any(|ip| container.contains(ip)) => {
                    others.push(other);
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(namespace = %entry.path().display(), %error, "not counted as a sibling");
                }
            }
        }
        Ok(Self {
            container: container.to_vec(),
            own: UdpSockets::open(own)?,
            bridge: port.bridge().mac,
            others,
        })
    }

    /// Returns the addresses of the siblings.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.others.iter().flat_map(|other| other.addresses.iter().copied()).collect()
    }

    /// Returns entries for the connections between the container and its siblings that `known`, all
    /// of the container's conntrack entries, lacks. `tcp` are the container's own TCP sockets.
    ///
    /// # Errors
    /// [`Error::Sockets`] if the container's UDP sockets cannot be listed.
    pub fn flows(&mut self, tcp: &Connections, known: &[Flow]) -> Result<Vec<Flow>, Error> {
        if self.others.is_empty() {
            return Ok(Vec::new());
        }
        let udp = self.own.list()?;
        let mut inward = Vec::new();
        for other in &self.others {
            // A sibling that has ended meanwhile has no connections.
            let seen = other.udp().unwrap_or_default();
            let own = |(end, _): &(std::net::SocketAddr, _)| other.addresses.contains(&end.ip());
            inward.extend(seen.open.into_iter().filter(own));
        }
        let (container, others) = (&self.container[..], &self.addresses()[..]);
        Ok(BridgedFlows { container, others, tcp, udp: &udp, inward: &inward }.entries(known))
    }

    /// Returns the siblings' detours that these flows need, and opens the sockets to install them.
    /// Record them before installing them.
    ///
    /// # Errors
    /// [`Error::Namespace`].
    pub fn detours(&mut self, flows: &[Flow]) -> Result<Vec<Detour>, Error> {
        // The other ends of flows whose anchor is another host are there.
        let own = flows.iter().filter(|flow| flow.anchor(&self.container).is_none());
        let ends: Vec<IpAddr> = own.filter_map(|flow| flow.other_end(&self.container)).collect();
        let mut detours = Vec::new();
        for other in &mut self.others {
            let before = detours.len();
            for sibling in other.addresses.iter().filter(|address| ends.contains(address)) {
                let family = |ip: &&IpAddr| ip.is_ipv4() == sibling.is_ipv4();
                for towards in self.container.iter().filter(family) {
                    detours.push(Detour {
                        namespace: other.namespace.clone(),
                        interface: other.interface,
                        mac: other.mac,
                        towards: *towards,
                        sibling: *sibling,
                    });
                }
            }
            if detours.len() > before && other.route.is_none() {
                let namespace = Namespace::at_path(&other.namespace)?;
                other.route = Some(namespace.netlink(Protocol::Route)?);
            }
        }
        Ok(detours)
    }

    /// Makes the siblings send frames for the container to their host.
    ///
    /// # Errors
    /// [`Error::Neighbour`] for the first entry that the kernel refused; the others are installed.
    pub fn install_detours(&mut self, detours: &[Detour]) -> Result<(), Error> {
        let mut outcome = Ok(());
        for detour in detours {
            let mut others = self.others.iter_mut();
            let other = others.find(|other| other.namespace == detour.namespace);
            let Some(route) = other.and_then(|other| other.route.as_mut()) else { continue };
            let mut request = permanent(detour.interface, detour.towards, self.bridge);
            let laid = route.execute(&mut request).map_err(|refused| Error::Neighbour {
                container: detour.namespace.display().to_string(),
                address: detour.towards,
                source: refused.source.into(),
            });
            outcome = outcome.and(laid);
        }
        outcome
    }
}

/// Returns the sibling in a namespace, if it is attached to the bridge of `port`.
fn attached(path: &Path, port: &Port) -> Result<Option<Sibling>, Error> {
    let namespace = Namespace::at_path(path)?;
    let sandbox = ContainerNetwork::open(&namespace)?;
    for interface in sandbox.interfaces() {
        let Some(mac) = interface.mac else { continue };
        // Most namespaces are not on this bridge, or on none.
        let Ok(other) = Port::of_container(&namespace, &interface.name) else { continue };
        if other.bridge().index == port.bridge().index {
            return Ok(Some(Sibling {
                namespace: path.to_owned(),
                interface: interface.index,
                mac,
                addresses: interface.addresses.iter().map(|(address, _)| *address).collect(),
                route: None,
            }));
        }
    }
    Ok(None)
}
