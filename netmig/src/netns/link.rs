//! Interfaces and addresses, read with a blocking socket.
//!
//! Attribute numbers are those of `include/uapi/linux/if_link.h` and `if_addr.h`.

use std::io;
use std::net::IpAddr;

use super::message::{Message, attribute, attributes, text_attribute, u32_at, u32_attribute};
use super::socket::KernelSocket;

pub(crate) const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
pub(crate) const NLM_F_DUMP: u16 = 0x300;

const IFLA_ADDRESS: u16 = 1;
pub(crate) const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

pub(super) const RTM_NEWNEIGH: u16 = 28;
pub(super) const NLM_F_REPLACE: u16 = 0x100;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NDA_DST: u16 = 1;
pub(super) const NDA_LLADDR: u16 = 2;
const NUD_REACHABLE: u16 = 0x02;

/// Bytes of `struct ifinfomsg` and `struct ifaddrmsg`.
pub(crate) const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;

/// What is needed of an interface.
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
    /// Number that this namespace has for the peer's; `None` when it is in the same one.
    pub(crate) peer_namespace: Option<u32>,
    /// Index of the bridge, bond or the like that it is a port of.
    pub(crate) master: Option<u32>,
    pub(crate) kind: Option<String>,
    /// Kind of the master.
    pub(crate) port_kind: Option<String>,
    /// The master's attributes for this port, as `IFLA_BRPORT_*`.
    pub(crate) port_data: Vec<u8>,
}

impl Link {
    /// Reads the payload of an `RTM_NEWLINK`.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let rest = payload.get(LINK_HEADER..)?;
        let info = attribute(rest, IFLA_LINKINFO).unwrap_or_default();
        Some(Self {
            index: u32_at(payload, 4)?,
            flags: u32_at(payload, 8)?,
            name: text_attribute(rest, IFLA_IFNAME)?,
            mtu: u32_attribute(rest, IFLA_MTU).unwrap_or(0),
            mac: attribute(rest, IFLA_ADDRESS).and_then(|value| value.try_into().ok()),
            peer: u32_attribute(rest, IFLA_LINK),
            peer_namespace: u32_attribute(rest, IFLA_LINK_NETNSID),
            master: u32_attribute(rest, IFLA_MASTER),
            kind: text_attribute(info, IFLA_INFO_KIND),
            port_kind: text_attribute(info, IFLA_INFO_SLAVE_KIND),
            port_data: attribute(info, IFLA_INFO_SLAVE_DATA).unwrap_or_default().to_vec(),
        })
    }
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InterfaceAddress {
    pub(crate) interface: u32,
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
    /// `RT_SCOPE_*`: 0 is global, 253 the link, 254 the host.
    pub(crate) scope: u8,
}

fn parse_address(payload: &[u8]) -> Option<InterfaceAddress> {
    let rest = payload.get(ADDRESS_HEADER..)?;
    // On a point-to-point interface IFA_ADDRESS is the other end's.
    let bytes = attribute(rest, IFA_LOCAL).or_else(|| attribute(rest, IFA_ADDRESS))?;
    Some(InterfaceAddress {
        interface: u32_at(payload, 4)?,
        address: ip_address(bytes)?,
        prefix: payload[1],
        scope: payload[3],
    })
}

/// An address from the bytes of an attribute, by their number.
pub(crate) fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The bytes of an address, as an attribute holds them.
pub(super) fn ip_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The address family's number.
pub(super) fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).unwrap_or(0)
}

/// All interfaces of the socket's namespace.
pub(crate) fn links(socket: &mut KernelSocket) -> io::Result<Vec<Link>> {
    let mut request = Message::new(RTM_GETLINK, NLM_F_DUMP, &[0; LINK_HEADER]).finish();
    Ok(socket.dump(&mut request)?.iter().filter_map(|payload| Link::parse(payload)).collect())
}

/// The request for one interface.
pub(crate) fn link_request(index: u32) -> Vec<u8> {
    let mut payload = [0; LINK_HEADER];
    payload[4..8].copy_from_slice(&index.to_ne_bytes());
    Message::new(RTM_GETLINK, 0, &payload).finish()
}

/// One interface, `None` when there is none with that index.
pub(crate) fn link(socket: &mut KernelSocket, index: u32) -> io::Result<Option<Link>> {
    let mut found = None;
    match socket.answer(&mut link_request(index), |answer| found = Link::parse(answer.payload)) {
        Err(refused) if refused.source.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(refused) => Err(refused.source),
        Ok(()) => Ok(found),
    }
}

/// All addresses of the socket's namespace.
pub(crate) fn addresses(socket: &mut KernelSocket) -> io::Result<Vec<InterfaceAddress>> {
    let mut request = Message::new(RTM_GETADDR, NLM_F_DUMP, &[0; ADDRESS_HEADER]).finish();
    Ok(socket.dump(&mut request)?.iter().filter_map(|payload| parse_address(payload)).collect())
}

/// A number of any width among `IFLA_BRPORT_*`.
pub(crate) fn port_number(port_data: &[u8], kind: u16) -> Option<u64> {
    let value =
        attributes(port_data).find_map(|(found, value)| (found == kind).then_some(value))?;
    match value.len() {
        1 => Some(u64::from(value[0])),
        4 => u32_at(value, 0).map(u64::from),
        8 => value.try_into().ok().map(u64::from_ne_bytes),
        _ => None,
    }
}

/// The request for a neighbour entry as if just confirmed: it needs no question for some 15 to 45
/// seconds, and then ages like any other.
pub(crate) fn reachable(interface: u32, address: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    let mut payload = [0; 12];
    payload[0] = family(address);
    payload[4..8].copy_from_slice(&interface.to_ne_bytes());
    payload[8..10].copy_from_slice(&NUD_REACHABLE.to_ne_bytes());
    let mut message = Message::new(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &payload);
    message.attribute(NDA_DST, &ip_bytes(address));
    message.attribute(NDA_LLADDR, &mac);
    message.finish()
}
