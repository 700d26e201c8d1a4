//! Cutting a container off from the network, in both directions and at once.
//!
//! The host's end of the container's veth pair is a port of a bridge, and a port that is not
//! *forwarding* neither takes frames in (`br_handle_frame`) nor sends any out (`should_deliver`).
//! Setting the port's state is one netlink message (`RTM_SETLINK` in family `AF_BRIDGE` with
//! `IFLA_PROTINFO`/`IFLA_BRPORT_STATE`; `net/bridge/br_netlink.c`, `br_set_port_state`). The link
//! stays up, and with it addresses, routes and the bridge's forwarding table. A packet filter would
//! do the same, but adding or removing a base chain drops every packet that waits in an NFQUEUE of
//! that namespace.
//!
//! Two of the kernel's port states block, and one event ends each of them:
//!
//! | state | ends when |
//! | --- | --- |
//! | listening | the port's forward-delay timer, started when it joined the bridge, fires twice (2 × 15 s): `br_forward_delay_timer_expired` |
//! | disabled | the flags of the host's end change, as by `ip link set … multicast off`: any `NETDEV_CHANGE`, `br_port_carrier_check` |
//!
//! So [`Port::block`] sets *listening*, or *disabled* if it finds that timer running. Calling it
//! again later switches over. Both states end when the link goes down and up again, at either end
//! of the pair (a frozen container cannot do so), when the bridge does, and when the port leaves
//! the bridge and comes back.
//!
//! When no port of a bridge forwards any more, the bridge loses its carrier, and with it the host's
//! neighbour entries on the bridge (`neigh_carrier_down`, `net/core/neighbour.c`). A neighbour
//! request that is sent while the port is blocked is lost, and repeated only after a second, so
//! [`Port::unblock`] restores the container's entries.

mod error;

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use crate::netlink::attribute::{find_u32, nest, put};
use crate::netlink::message::request;
use crate::netlink::route::{
    self, InterfaceAddress, LINK_HEADER, Link, addresses, link_request, links, port_number,
    reachable,
};
use crate::netlink::{Connection, Protocol, RefusedAt, SocketError};
use crate::netns::Namespace;
pub use error::Error;

/// `include/uapi/linux/net_namespace.h` and `if_link.h`.
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_FORWARD_DELAY_TIMER: u16 = 22;
/// Bridge port states, `include/uapi/linux/if_bridge.h`.
const STATE_DISABLED: u8 = 0;
const STATE_LISTENING: u8 = 1;
const STATE_FORWARDING: u8 = 3;

/// The bridge to which a container is attached.
#[derive(Clone, Debug)]
pub struct Bridge {
    /// Interface index on the host.
    pub index: u32,
    /// Interface name on the host.
    pub name: String,
    /// Ethernet address, to which the container sends frames for its gateway.
    pub mac: [u8; 6],
    /// Addresses, link-local ones included: the container's gateways.
    pub addresses: Vec<IpAddr>,
}

/// The bridge port by which a container is connected to its host.
#[derive(Debug)]
pub struct Port {
    socket: Mutex<Connection>,
    index: u32,
    name: String,
    mtu: u32,
    bridge: Bridge,
    /// Requests that make the bridge know the container's Ethernet address.
    introduction: Vec<u8>,
}

impl Port {
    /// Finds the host's end of `container_interface` in the network namespace `container`. Looks in
    /// the namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::NoInterface`], [`Error::NoHostEnd`] or [`Error::NoBridge`] when the container is
    /// not on a bridge; [`Error::Namespace`], [`Error::Read`].
    pub fn of_container(container: &Namespace, container_interface: &str) -> Result<Self, Error> {
        let read = |name: &str, error: SocketError| Error::Read {
            name: name.to_owned(),
            source: error.into(),
        };
        let host = Namespace::current()?;
        let mut visit = container.netlink(Protocol::Route)?;
        let in_container = |source| read(container.name(), source);
        let container_addresses = addresses(&mut visit).map_err(in_container)?;
        let inside = links(&mut visit)
            .map_err(in_container)?
            .into_iter()
            .find(|link| link.name == container_interface)
            .ok_or_else(|| Error::NoInterface {
                container: container.name().to_owned(),
                interface: container_interface.to_owned(),
            })?;

        let mut socket = host.netlink(Protocol::Route)?;
        let on_host = |source| read(host.name(), source);
        let outside = match (inside.peer, inside.kind.as_deref()) {
            (Some(peer), Some("veth")) => route::link(&mut socket, peer).map_err(on_host)?,
            _ => None,
        };
        let number = namespace_number(&mut socket, container).map_err(on_host)?;
        // Indexes repeat between namespaces, so the pair must point at each other.
        let outside = outside
            .filter(|link| link.peer == Some(inside.index) && link.peer_namespace == number)
            .ok_or_else(|| Error::NoHostEnd {
                container: container.name().to_owned(),
                interface: container_interface.to_owned(),
            })?;
        let bridge = bridge_of(&mut socket, &outside).map_err(on_host)?;
        let bridge = bridge.ok_or_else(|| Error::NoBridge { port: outside.name.clone() })?;
        Ok(Self {
            introduction: introduction(&bridge, &inside, &container_addresses),
            socket: Mutex::new(socket),
            index: outside.index,
            name: outside.name,
            mtu: outside.mtu,
            bridge,
        })
    }

    /// Returns the port's interface index on the host.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Returns the port's interface name on the host.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the port's MTU, in bytes, as it was when the port was found.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Returns the bridge to which the port belongs.
    #[must_use]
    pub fn bridge(&self) -> &Bridge {
        &self.bridge
    }

    /// Stops all frames from and to the container. Frames in flight still arrive within
    /// microseconds. Blocking a blocked port is not an error; it makes the block proof against
    /// interface events once the port is old enough (see the module).
    ///
    /// # Errors
    /// [`Error::State`] when the kernel refuses, [`Error::SpanningTree`].
    pub fn block(&self) -> Result<(), Error> {
        let mut batch = set_state(self.index, STATE_LISTENING);
        // Asking for the link also lets pending carrier events of the port happen now, rather than
        // after a change to *disabled*, which they would undo.
        batch.extend(link_request(self.index));
        let mut timer_runs = false;
        self.send("block", &mut batch, |link| timer_runs = timer_left(&link.port_data) > 0)?;
        if timer_runs {
            self.send("block", &mut set_state(self.index, STATE_DISABLED), |_| ())?;
        }
        Ok(())
    }

    /// Lets frames pass again. When this returns the bridge forwards them, and knows the
    /// container's Ethernet address.
    ///
    /// # Errors
    /// [`Error::State`] when the kernel refuses, [`Error::SpanningTree`].
    pub fn unblock(&self) -> Result<(), Error> {
        let mut batch = set_state(self.index, STATE_FORWARDING);
        self.send("unblock", &mut batch, |_| ())?;
        if let Err(refused) = self.introduce() {
            // Frames pass; the first may have to wait for an answer.
            tracing::debug!(port = self.name, error = %refused.source, "cannot restore neighbour entries of the container");
        }
        Ok(())
    }

    /// Makes the bridge know the container's Ethernet address.
    pub(crate) fn introduce(&self) -> Result<(), RefusedAt> {
        // A bridge whose only port was blocked has no carrier, and drops what is sent through it
        // until the kernel's link watch has run. When that runs after the port was blocked it takes
        // the neighbour entries along. Asking for the link makes it run now (rtnl_getlink,
        // net/core/rtnetlink.c).
        let mut batch = link_request(self.bridge.index);
        batch.extend(&self.introduction);
        self.socket().execute(&mut batch)
    }

    /// Checks that the port exists and stops frames. `podman network reload` and other tools that
    /// rebuild a container's network replace it by a port that forwards.
    ///
    /// # Errors
    /// [`Error::Rebuilt`] when the port is gone or forwards, [`Error::Read`].
    pub fn check_blocked(&self) -> Result<(), Error> {
        match self.state()? {
            Some(state) if state != u64::from(STATE_FORWARDING) => Ok(()),
            _ => Err(Error::Rebuilt { port: self.name.clone() }),
        }
    }

    /// Returns whether the port stops frames now; true for a port that is gone.
    ///
    /// # Errors
    /// [`Error::Read`] when the kernel refuses.
    pub fn is_blocked(&self) -> Result<bool, Error> {
        Ok(self.state()? != Some(u64::from(STATE_FORWARDING)))
    }

    /// Returns the port's current state; `None` when the port is gone.
    fn state(&self) -> Result<Option<u64>, Error> {
        let link = route::link(&mut self.socket(), self.index)
            .map_err(|error| Error::Read { name: self.name.clone(), source: error.into() })?;
        Ok(link.and_then(|link| port_number(&link.port_data, IFLA_BRPORT_STATE)))
    }

    fn send(
        &self,
        action: &'static str,
        batch: &mut [u8],
        mut each: impl FnMut(Link),
    ) -> Result<(), Error> {
        let answered = self.socket().answer(batch, |payload| {
            if let Some(link) = Link::parse(payload) {
                each(link);
            }
        });
        answered.map_err(|refused| match refused.refusal() {
            Some(Errno::EBUSY) => Error::SpanningTree { port: self.name.clone() },
            _ => Error::State { action, port: self.name.clone(), source: refused.source.into() },
        })
    }

    /// Returns the socket on the host. A panic elsewhere cannot have left it half-used.
    fn socket(&self) -> MutexGuard<'_, Connection> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set_state(port: u32, state: u8) -> Vec<u8> {
    let mut fixed = [0; LINK_HEADER];
    fixed[0] = libc::AF_BRIDGE.to_le_bytes()[0];
    fixed[4..8].copy_from_slice(&port.to_ne_bytes());
    request(libc::RTM_SETLINK, 0, &fixed, |body| {
        nest(body, libc::IFLA_PROTINFO, |port| {
            put(port, IFLA_BRPORT_STATE, &[state]);
        });
    })
}

/// Returns what is left of the forward-delay timer, in hundredths of a second; 0 when it does not
/// run.
fn timer_left(port_data: &[u8]) -> u64 {
    port_number(port_data, IFLA_BRPORT_FORWARD_DELAY_TIMER).unwrap_or(0)
}

/// Returns the neighbour entries for the container's addresses, of the families that the bridge
/// has.
fn introduction(bridge: &Bridge, inside: &Link, addresses: &[InterfaceAddress]) -> Vec<u8> {
    let own = addresses.iter().filter(|own| own.interface == inside.index);
    own.filter(|own| bridge.addresses.iter().any(|host| host.is_ipv4() == own.address.is_ipv4()))
        .filter_map(|own| Some(reachable(bridge.index, own.address, inside.mac?)))
        .flatten()
        .collect()
}

fn bridge_of(socket: &mut Connection, port: &Link) -> Result<Option<Bridge>, SocketError> {
    let Some(master) = port.master.filter(|_| port.port_kind.as_deref() == Some("bridge")) else {
        return Ok(None);
    };
    let Some(link) = route::link(socket, master)? else { return Ok(None) };
    let Some(mac) = link.mac else { return Ok(None) };
    let addresses = addresses(socket)?
        .into_iter()
        .filter(|address| address.interface == master)
        .map(|address| address.address)
        .collect();
    Ok(Some(Bridge { index: master, name: link.name, mac, addresses }))
}

/// Returns the number that the socket's namespace has for `other`; `None` when it has none.
fn namespace_number(
    socket: &mut Connection,
    other: &Namespace,
) -> Result<Option<u32>, SocketError> {
    let mut asked = request(libc::RTM_GETNSID, 0, &[0; 4], |body| {
        put(body, NETNSA_FD, &other.as_fd().as_raw_fd().to_ne_bytes());
    });
    let mut number = None;
    socket
        .answer(&mut asked, |payload| {
            number = payload.get(4..).and_then(|rest| find_u32(rest, NETNSA_NSID));
        })
        .map_err(|refused| refused.source)?;
    // NETNSA_NSID_NOT_ASSIGNED is -1.
    Ok(number.filter(|number| *number != u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute::find;
    use crate::netlink::message::HEADER;

    #[test]
    fn a_state_is_nested_in_the_bridge_family() {
        let bytes = set_state(7, STATE_LISTENING);
        assert_eq!(bytes[4..6], libc::RTM_SETLINK.to_ne_bytes());
        let payload = &bytes[HEADER..];
        assert_eq!(payload[0], 7, "AF_BRIDGE");
        assert_eq!(payload[4], 7, "index");
        let nested = find(&payload[LINK_HEADER..], libc::IFLA_PROTINFO).unwrap();
        assert_eq!(find(nested, IFLA_BRPORT_STATE), Some(&[STATE_LISTENING][..]));
    }

    #[test]
    fn a_running_timer_is_seen() {
        let mut data = Vec::new();
        put(&mut data, IFLA_BRPORT_STATE, &[STATE_FORWARDING]);
        put(&mut data, IFLA_BRPORT_FORWARD_DELAY_TIMER, &1499_u64.to_ne_bytes());
        assert_eq!(timer_left(&data), 1499);
        assert_eq!(timer_left(&[]), 0);
    }

    #[test]
    fn a_namespace_without_such_an_interface_is_refused() {
        let error = Port::of_container(&Namespace::current().unwrap(), "nosuch0");
        // Entering a namespace takes root; either way nothing is found.
        assert!(matches!(error, Err(Error::NoInterface { .. } | Error::Namespace(_))));
    }
}
