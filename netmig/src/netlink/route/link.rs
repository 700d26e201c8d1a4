//! Interfaces.

use nix::errno::Errno;

use super::LINK_HEADER;
use crate::netlink::attribute::{find, find_text, find_u32, u32_at};
use crate::netlink::message::{DUMP, request};
use crate::netlink::{Connection, SocketError};

/// What this crate needs to know of an interface.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) flags: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    /// Ethernet address, where the interface has one.
    pub(crate) mac: Option<[u8; 6]>,
    /// Index of the other end of a veth pair, in the namespace numbered by `peer_namespace`.
    pub(crate) peer: Option<u32>,
    /// Number of the peer's namespace in this one; `None` when it is the same namespace.
    pub(crate) peer_namespace: Option<u32>,
    /// Index of the bridge or bond of which the interface is a port.
    pub(crate) master: Option<u32>,
    pub(crate) kind: Option<String>,
    /// Kind of the master.
    pub(crate) port_kind: Option<String>,
    /// The master's attributes for this port (`IFLA_BRPORT_*`).
    pub(crate) port_data: Vec<u8>,
}

impl Link {
    /// Reads the payload of an `RTM_NEWLINK`.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let rest = payload.get(LINK_HEADER..)?;
        let info = find(rest, libc::IFLA_LINKINFO).unwrap_or_default();
        Some(Self {
            index: u32_at(payload, 4)?,
            flags: u32_at(payload, 8)?,
            name: find_text(rest, libc::IFLA_IFNAME)?,
            mtu: find_u32(rest, libc::IFLA_MTU).unwrap_or(0),
            mac: find(rest, libc::IFLA_ADDRESS).and_then(|value| value.try_into().ok()),
            peer: find_u32(rest, libc::IFLA_LINK),
            peer_namespace: find_u32(rest, libc::IFLA_LINK_NETNSID),
            master: find_u32(rest, libc::IFLA_MASTER),
            kind: find_text(info, libc::IFLA_INFO_KIND),
            port_kind: find_text(info, libc::IFLA_INFO_SLAVE_KIND),
            port_data: find(info, libc::IFLA_INFO_SLAVE_DATA).unwrap_or_default().to_vec(),
        })
    }
}

/// Lists all interfaces of the connection's namespace.
pub(crate) fn links(connection: &mut Connection) -> Result<Vec<Link>, SocketError> {
    let mut asked = request(libc::RTM_GETLINK, DUMP, &[0; LINK_HEADER], |_| ());
    connection.dump_consistent(&mut asked, |payload| Ok(Link::parse(payload)))
}

/// Returns the request for one interface.
pub(crate) fn link_request(index: u32) -> Vec<u8> {
    let mut fixed = [0; LINK_HEADER];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    request(libc::RTM_GETLINK, 0, &fixed, |_| ())
}

/// Looks up an interface by index; `None` when there is none.
pub(crate) fn link(connection: &mut Connection, index: u32) -> Result<Option<Link>, SocketError> {
    let mut found = None;
    match connection.answer(&mut link_request(index), |payload| found = Link::parse(payload)) {
        Err(refused) if refused.refusal() == Some(Errno::ENODEV) => Ok(None),
        Err(refused) => Err(refused.source),
        Ok(()) => Ok(found),
    }
}

/// Returns a number of any width among a port's attributes (`IFLA_BRPORT_*`).
pub(crate) fn port_number(port_data: &[u8], kind: u16) -> Option<u64> {
    let value = find(port_data, kind)?;
    match value.len() {
        1 => Some(u64::from(value[0])),
        4 => u32_at(value, 0).map(u64::from),
        8 => value.try_into().ok().map(u64::from_ne_bytes),
        _ => None,
    }
}
