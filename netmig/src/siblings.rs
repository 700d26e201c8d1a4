//! Containers beside the one that moves: on the same bridge, so that their connections with it cross
//! the bridge as frames and pass neither translation nor routing of the host.
//!
//! While the one is away, frames of the others for it have to come to their host, and its own for them
//! to its new host. Both is a matter of an Ethernet address: each end gets a neighbour entry that says
//! the other one is reached by the bridge itself, a [`Detour`]. From there conntrack's entries lead the
//! packets, as those of any flow. Nothing of a bridge or of its ports is changed.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::container_network::{self, ContainerNetwork};
use crate::flow::{BridgedFlows, Flow};
use crate::isolation::Port;
use crate::netlink::route::{permanent, remove_permanent};
use crate::netlink::{Connection, Protocol};
use crate::netns::{self, Namespace};
use crate::sockets::{self, Connections, UdpSockets};

/// Where network namespaces have names, after podman's and `ip netns`' habit.
const NAMESPACES: &str = "/run/netns";

/// Why the way between two containers could not be found or changed.
#[derive(Debug, Error)]
pub enum Error {
    /// The namespace cannot be used.
    #[error("cannot look into the network of a container")]
    Namespace(#[from] netns::Error),
    /// Interfaces could not be listed.
    #[error(transparent)]
    ContainerNetwork(#[from] container_network::Error),
    /// Sockets could not be listed.
    #[error(transparent)]
    Sockets(#[from] sockets::Error),
    /// The kernel refused.
    #[error("cannot change how {container} reaches {address} on its network")]
    Neighbour {
        /// The namespace.
        container: String,
        /// Whom it is to reach.
        address: IpAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// A neighbour entry in a container that leads what it sends to another container to its host instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detour {
    /// Name of the container's network namespace.
    pub namespace: PathBuf,
    /// Its interface, by the index that it has there.
    pub interface: u32,
    /// That interface's Ethernet address.
    pub mac: [u8; 6],
    /// Whom it reaches by its host.
    pub towards: IpAddr,
    /// The end that does not move, of the flows for which this is needed.
    #[serde(rename = "beside")]
    pub sibling: IpAddr,
}

impl Detour {
    /// Takes the entry away, so that the container asks for the address when it needs it. One that is
    /// not there, and a container that is gone, are no errors.
    ///
    /// # Errors
    /// [`Error::Namespace`], [`Error::Neighbour`].
    pub fn remove(&self) -> Result<(), Error> {
        let namespace = match Namespace::at_path(&self.namespace) {
            Err(_) if !self.namespace.exists() => return Ok(()),
            other => other?,
        };
        let mut socket = match namespace.netlink(Protocol::Route) {
            // The name of a namespace that has gone is for a moment that of a plain file.
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
    /// A socket inside, once something is to be changed there: not one for each container of a host.
    route: Option<Connection>,
}

impl Sibling {
    /// Own end and far end of its connected UDP sockets.
    fn udp(&self) -> Result<Connections, Error> {
        Ok(UdpSockets::open(&Namespace::at_path(&self.namespace)?)?.list()?)
    }
}

/// The containers on a bridge beside one that is about to move, ready to be asked and changed.
pub struct Siblings {
    container: Vec<IpAddr>,
    own: UdpSockets,
    bridge: [u8; 6],
    others: Vec<Sibling>,
}

impl Siblings {
    /// Finds them: namespaces with an interface whose other end is a port of the same bridge. `own` is
    /// that of the container which moves.
    ///
    /// # Errors
    /// When the container itself cannot be looked at. SiblingAddresses that cannot are left out.
    pub fn find(port: &Port, own: &Namespace, container: &[IpAddr]) -> Result<Self, Error> {
        let mut others = Vec::new();
        for entry in fs::read_dir(NAMESPACES).into_iter().flatten().flatten() {
            match attached(&entry.path(), port) {
                Ok(Some(other)) if !other.addresses.iter().any(|ip| container.contains(ip)) => {
                    others.push(other);
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(namespace = %entry.path().display(), %error, "left out");
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

    /// The addresses of the others.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.others.iter().flat_map(|other| other.addresses.iter().copied()).collect()
    }

    /// Entries for the connections between the container and the others that `known`, all that
    /// conntrack has of the container, lacks. `tcp` are the container's own TCP sockets.
    ///
    /// # Errors
    /// [`Error::Sockets`] if the container's cannot be listed.
    pub fn flows(&mut self, tcp: &Connections, known: &[Flow]) -> Result<Vec<Flow>, Error> {
        if self.others.is_empty() {
            return Ok(Vec::new());
        }
        let udp = self.own.list()?;
        let mut inward = Vec::new();
        for other in &self.others {
            // One that has ended meanwhile has no connections.
            let seen = other.udp().unwrap_or_default();
            let own = |(end, _): &(std::net::SocketAddr, _)| other.addresses.contains(&end.ip());
            inward.extend(seen.open.into_iter().filter(own));
        }
        let (container, others) = (&self.container[..], &self.addresses()[..]);
        Ok(BridgedFlows { container, others, tcp, udp: &udp, inward: &inward }.entries(known))
    }

    /// The detours of the others that these flows need, to be noted before they are laid; makes ready for
    /// that.
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

    /// Has the others send to their host what is for the container.
    ///
    /// # Errors
    /// [`Error::Neighbour`], the first; the others are laid.
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

/// What is in a namespace, if that is attached to the bridge of `port`.
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
