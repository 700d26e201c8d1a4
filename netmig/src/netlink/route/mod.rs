//! Interfaces, addresses and neighbour entries by a blocking socket, rtnetlink(7).
//!
//! Numbers that libc lacks are those of `include/uapi/linux/rtnetlink.h`, `if_addr.h` and
//! `fib_rules.h`; several files of this crate use them.

mod link;
mod neighbour;

use std::net::IpAddr;

use nix::errno::Errno;

pub(crate) use link::{Link, link, link_request, links, port_number};
pub(crate) use neighbour::{permanent, reachable, remove_permanent};

use super::attribute::{find, ip_address, u32_at};
use super::message::{DUMP, request};
use super::{Connection, SocketError};

/// Protocol number of netmig's policy rules, routes and neighbour entries (`RTA_PROTOCOL`,
/// `FRA_PROTOCOL`, `NDA_PROTOCOL`). It distinguishes them from those of others:
/// `ip route show proto 78` lists them.
pub const PROTOCOL: u8 = 78;

/// Bytes of the fixed parts: `struct ifinfomsg`, `ifaddrmsg`, `ndmsg`, `rtmsg`.
pub(crate) const LINK_HEADER: usize = 16;
pub(crate) const ADDRESS_HEADER: usize = 8;
pub(crate) const NEIGHBOUR_HEADER: usize = 12;
pub(crate) const ROUTE_HEADER: usize = 12;
/// In `struct ifaddrmsg`: prefix length and scope.
const ADDRESS_PREFIX: usize = 1;
const ADDRESS_SCOPE: usize = 3;

pub(crate) const NDA_PROTOCOL: u16 = 12;
pub(crate) const RTA_NH_ID: u16 = 30;
pub(crate) const RTAX_LOCK: u16 = 1;
pub(crate) const RTAX_MTU: u16 = 2;
/// Flags of a route's next hop that are configuration (`RTNH_F_PERVASIVE`, `RTNH_F_ONLINK`). The
/// others are state, and refused in a request.
pub(crate) const NEXT_HOP_CONFIGURATION: u32 = 0x02 | 0x04;

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InterfaceAddress {
    pub(crate) interface: u32,
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
    /// `RT_SCOPE_*`: 0 is global, 253 the link, 254 the host.
    pub(crate) scope: u8,
}

impl InterfaceAddress {
    /// Reads the payload of an `RTM_NEWADDR`.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let rest = payload.get(ADDRESS_HEADER..)?;
        // On a point-to-point interface IFA_ADDRESS is the other end's.
        let value = find(rest, libc::IFA_LOCAL).or_else(|| find(rest, libc::IFA_ADDRESS))?;
        Some(Self {
            interface: u32_at(payload, 4)?,
            address: ip_address(value)?,
            prefix: payload[ADDRESS_PREFIX],
            scope: payload[ADDRESS_SCOPE],
        })
    }
}

/// Lists all addresses of the connection's namespace.
pub(crate) fn addresses(connection: &mut Connection) -> Result<Vec<InterfaceAddress>, SocketError> {
    let mut asked = request(libc::RTM_GETADDR, DUMP, &[0; ADDRESS_HEADER], |_| ());
    connection.dump_consistent(&mut asked, |payload| Ok(InterfaceAddress::parse(payload)))
}

/// Lists objects by a request of this type and fixed part; none of a family that the kernel lacks.
pub(crate) fn list(
    connection: &mut Connection,
    kind: u16,
    fixed: &[u8],
) -> Result<Vec<Vec<u8>>, SocketError> {
    match connection.dump_payloads(&mut request(kind, DUMP, fixed, |_| ())) {
        Err(error) if matches!(error.refusal(), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP)) => {
            Ok(Vec::new())
        }
        other => other,
    }
}
