//! The container's own network namespace: interfaces, gateways, route MTU, neighbour entries.
//!
//! A [`ContainerNetwork`] is opened in advance and holds what is needed around the restore: a
//! socket inside the namespace and the messages that set the MTU of its routes.

mod route_mtu;

use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use thiserror::Error;

use self::route_mtu::Routes;
use crate::bridge_port::Port;
use crate::flow::contains;
use crate::netlink::route::{InterfaceAddress, addresses, links, permanent, reachable};
use crate::netlink::{Connection, Protocol, RefusedAt, SocketError};
use crate::netns::{self, Namespace};

/// `RT_SCOPE_UNIVERSE`: an address that is valid everywhere.
const SCOPE_GLOBAL: u8 = 0;

/// Why a container's network namespace could not be read or changed.
#[derive(Debug, Error)]
pub enum Error {
    /// The network namespace cannot be used.
    #[error("cannot read the network of a container")]
    Namespace(#[from] netns::Error),
    /// Interfaces, addresses or routes could not be listed.
    #[error("cannot read the network of {container}")]
    Read {
        /// What the network namespace belongs to.
        container: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the MTU of a route. The route may have changed since the network was
    /// opened; opening it again reads it anew.
    #[error("cannot set the MTU of route {route} of {container}")]
    RouteMtu {
        /// Destination and device of the route.
        route: String,
        /// What the network namespace belongs to.
        container: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// No interface of the container ends at this bridge port.
    #[error("{container} is not connected to port {port}; was its network changed?")]
    NotConnected {
        /// What the network namespace belongs to.
        container: String,
        /// Name of the port.
        port: String,
    },
    /// The kernel refused a neighbour entry.
    #[error("cannot set the neighbour entries of {place}")]
    Neighbour {
        /// The container or the bridge.
        place: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// An interface of the container, other than loopback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name inside the container.
    pub name: String,
    /// Index inside the container.
    pub index: u32,
    /// Ethernet address, where the interface has one.
    pub mac: Option<[u8; 6]>,
    /// Index of the veth pair's other end, in its namespace.
    pub peer_index: Option<u32>,
    /// MTU, in bytes.
    pub mtu: u32,
    /// Global addresses with their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Addresses that are valid on the link only.
    pub link_addresses: Vec<IpAddr>,
}

/// A default gateway of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its address.
    pub address: IpAddr,
    /// Index of the container's interface that leads to it.
    pub interface: u32,
}

impl Interface {
    /// Returns whether the container reaches an address by this interface without a gateway. False
    /// for its own address.
    #[must_use]
    pub fn is_on_link(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| contains(*own, address))
            && !self.addresses.iter().any(|(own, _)| *own == address)
    }
}

/// Other containers of the container's network, by their addresses there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SiblingAddresses {
    /// Those that it has left on another host, with flows that go on.
    pub left: Vec<IpAddr>,
    /// Those on this host, with their Ethernet addresses.
    pub here: Vec<(IpAddr, [u8; 6])>,
}

/// A container's network namespace, prepared for quick changes.
#[derive(Debug)]
pub struct ContainerNetwork {
    name: String,
    interfaces: Vec<Interface>,
    gateways: Vec<Gateway>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    socket: Connection,
    routes: Routes,
}

impl ContainerNetwork {
    /// Reads the interfaces, addresses and routes in `namespace`.
    ///
    /// # Errors
    /// [`Error::Namespace`], [`Error::Read`].
    pub fn open(namespace: &Namespace) -> Result<Self, Error> {
        let name = namespace.name().to_owned();
        let mut socket = namespace.netlink(Protocol::Route)?;
        let read =
            |error: SocketError| Error::Read { container: name.clone(), source: error.into() };
        let interfaces = read_interfaces(&mut socket).map_err(read)?;
        let routes = Routes::read(&mut socket, &interfaces).map_err(read)?;
        let gateways = routes.gateways().to_vec();
        Ok(Self { name, interfaces, gateways, inner: Mutex::new(Inner { socket, routes }) })
    }

    /// Returns the container's interfaces as they were when the network was opened, without
    /// loopback.
    #[must_use]
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Returns the container's default gateways as they were when the network was opened.
    #[must_use]
    pub fn gateways(&self) -> &[Gateway] {
        &self.gateways
    }

    /// Sets the `mtu` metric, in bytes, of every unicast route that leaves through an interface of
    /// the container, and changes nothing else of the routes. 0 removes the metric.
    ///
    /// A socket restored with `TCP_REPAIR` keeps a segment size of 524 bytes until the MTU of its
    /// route *changes*, so a restore needs two calls with different values: one before and one
    /// after.
    ///
    /// # Errors
    /// [`Error::RouteMtu`] for the first route that the kernel refused; the others are set.
    pub fn set_route_mtu(&self, mtu: u32) -> Result<(), Error> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { socket, routes } = &mut *inner;
        socket.execute(routes.with_mtu(mtu)).map_err(|RefusedAt { index, source }| {
            Error::RouteMtu {
                route: routes.name(index).to_owned(),
                container: self.name.clone(),
                source: source.into(),
            }
        })
    }

    /// Returns the interface of the container that ends at this bridge port.
    ///
    /// # Errors
    /// [`Error::NotConnected`] when there is none.
    pub fn interface_at(&self, port: &Port) -> Result<&Interface, Error> {
        let ends_here = |interface: &&Interface| interface.peer_index == Some(port.index());
        self.interfaces.iter().find(ends_here).ok_or_else(|| Error::NotConnected {
            container: self.name.clone(),
            port: port.name().to_owned(),
        })
    }

    /// Gives the container the Ethernet addresses of its gateways on the bridge, and the bridge
    /// that of the container, so that no address needs to be resolved in the first moments: a lost
    /// request costs a second. The entries age like learnt ones.
    ///
    /// In a new namespace, what the container sends until then waits in its kernel, up to some
    /// hundred packets for each gateway (`neigh/…/unres_qlen_bytes`), and this call sends it in
    /// order. So a restored copy that is cut off loses none of it, if its port is unblocked before
    /// this call.
    ///
    /// Gateways other than the bridge itself are skipped: their Ethernet addresses are not known
    /// here.
    ///
    /// The container also gets entries for its siblings. Those with which it had flows on the host
    /// it came from resolve to the bridge, until [`Detour::remove`]; those on this host resolve to
    /// their own Ethernet addresses.
    ///
    /// # Errors
    /// [`Error::NotConnected`]; [`Error::Neighbour`] for the first entry that the kernel refused.
    ///
    /// [`Detour::remove`]: crate::detour::Detour::remove
    pub fn seed_neighbours(&self, port: &Port, others: &SiblingAddresses) -> Result<(), Error> {
        let interface = self.interface_at(port)?;
        let bridge = port.bridge();
        let neighbour = |place: &str, refused: RefusedAt| Error::Neighbour {
            place: place.to_owned(),
            source: refused.source.into(),
        };

        let mut inside = Vec::new();
        for gateway in self.gateways.iter().filter(|gateway| gateway.interface == interface.index) {
            if bridge.addresses.contains(&gateway.address) {
                inside.extend(reachable(interface.index, gateway.address, bridge.mac));
            }
        }
        for address in &others.left {
            inside.extend(permanent(interface.index, *address, bridge.mac));
        }
        for (address, mac) in &others.here {
            inside.extend(reachable(interface.index, *address, *mac));
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.socket.execute(&mut inside).map_err(|refused| neighbour(&self.name, refused))?;

        port.introduce().map_err(|refused| neighbour(&bridge.name, refused))
    }
}

fn read_interfaces(socket: &mut Connection) -> Result<Vec<Interface>, SocketError> {
    let addresses = addresses(socket)?;
    let loopback = u32::try_from(libc::IFF_LOOPBACK).unwrap_or(0);
    let links = links(socket)?.into_iter().filter(|link| link.flags & loopback == 0);
    Ok(links
        .map(|link| {
            let own = |global| {
                addresses.iter().filter(move |address: &&InterfaceAddress| {
                    address.interface == link.index && (address.scope == SCOPE_GLOBAL) == global
                })
            };
            Interface {
                addresses: own(true).map(|own| (own.address, own.prefix)).collect(),
                link_addresses: own(false).map(|own| own.address).collect(),
                name: link.name,
                index: link.index,
                mac: link.mac,
                peer_index: link.peer,
                mtu: link.mtu,
            }
        })
        .collect())
}
