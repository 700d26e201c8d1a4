//! Addresses, and neighbour entries that were added by hand.
//!
//! Attribute numbers are those of `include/uapi/linux/if_addr.h` and `neighbour.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libc::{NDA_DST, NTF_PROXY, NUD_PERMANENT};

use super::{Configuration, Kind, Known, Links, name};
use crate::netlink::attribute::{find, ip_address, u16_at, u32_at};
use crate::netlink::route::{
    ADDRESS_HEADER, InterfaceAddress, NDA_PROTOCOL, NEIGHBOUR_HEADER, PROTOCOL, list,
};
use crate::netlink::{Connection, SocketError};

const IFA_FLAGS: u16 = 8;
const IFA_PROTO: u16 = 11;
/// Origins of an address that are the kernel's (`IFAPROT_*`): the loopback interface, a router's
/// advertisement, a link.
const BY_THE_KERNEL: [u8; 3] = [1, 2, 3];
const SCOPE_LINK: u8 = 253;
/// An address that follows one of a router's advertisement, or is a stable private one.
const FLAGS_OF_THE_KERNEL: u32 = 0x01 | 0x800;

/// Reads addresses that are neither in the engine's record nor the kernel's, and reports those of
/// the record that are missing.
pub(super) fn read(
    socket: &mut Connection,
    known: &Known,
    links: &Links,
    into: &mut Configuration,
) -> Result<(), SocketError> {
    let mut found = Vec::new();
    for payload in list(socket, libc::RTM_GETADDR, &[0; ADDRESS_HEADER])? {
        let Some(own) = InterfaceAddress::parse(&payload) else { continue };
        let InterfaceAddress { address, prefix, .. } = own;
        let interface = name(links, own.interface);
        if known.addresses.contains(&address) && interface == known.interface {
            found.push(address);
            continue;
        }
        if !is_kernels(&own, payload.get(ADDRESS_HEADER..).unwrap_or_default()) {
            into.add_own(Kind::Address, format!("address {address}/{prefix} of {interface}"));
        }
    }
    for missing in known.addresses.iter().filter(|address| !found.contains(address)) {
        let interface = &known.interface;
        into.add_own(Kind::Address, format!("no address {missing} of {interface} any more"));
    }
    Ok(())
}

/// Returns whether the kernel has added the address.
fn is_kernels(own: &InterfaceAddress, rest: &[u8]) -> bool {
    let by = find(rest, IFA_PROTO).and_then(|value| value.first().copied());
    let flags = find(rest, IFA_FLAGS).and_then(|value| u32_at(value, 0)).unwrap_or(0);
    match own.address {
        // Kernels before 5.18 do not report the origin.
        IpAddr::V4(four) => four == Ipv4Addr::LOCALHOST,
        IpAddr::V6(six) if six == Ipv6Addr::LOCALHOST => true,
        IpAddr::V6(six) => {
            let is_of_link = own.scope == SCOPE_LINK;
            by.is_some_and(|by| BY_THE_KERNEL.contains(&by))
                || flags & FLAGS_OF_THE_KERNEL != 0
                || (is_of_link && is_of_an_ethernet_address(six))
        }
    }
}

/// Returns whether the address was derived from an Ethernet address (RFC 4291, appendix A).
fn is_of_an_ethernet_address(address: Ipv6Addr) -> bool {
    let bytes = address.octets();
    bytes[11..13] == [0xff, 0xfe]
}

/// Reads permanent and proxy entries other than those of netmig.
pub(super) fn neighbours(
    socket: &mut Connection,
    links: &Links,
    into: &mut Configuration,
) -> Result<(), SocketError> {
    for proxies in [false, true] {
        let mut fixed = [0; NEIGHBOUR_HEADER];
        if proxies {
            fixed[10] = NTF_PROXY;
        }
        for payload in list(socket, libc::RTM_GETNEIGH, &fixed)? {
            let rest = payload.get(NEIGHBOUR_HEADER..).unwrap_or_default();
            let is_proxy = payload.get(10).is_some_and(|flags| flags & NTF_PROXY != 0);
            let is_permanent = u16_at(&payload, 8).is_some_and(|state| state & NUD_PERMANENT != 0);
            let is_ours = find(rest, NDA_PROTOCOL) == Some(&[PROTOCOL]);
            if is_ours || !(is_proxy || is_permanent) {
                continue;
            }
            let Some(address) = find(rest, NDA_DST).and_then(ip_address) else { continue };
            let what = if is_proxy { "proxy" } else { "permanent" };
            let interface = name(links, u32_at(&payload, 4).unwrap_or(0));
            let text = format!("{what} neighbour {address} of {interface}");
            into.add_own(Kind::Neighbour, text);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute::put;

    fn of_kernel(address: &str, scope: u8, attributes: &[(u16, &[u8])]) -> bool {
        let address = address.parse().unwrap();
        let own = InterfaceAddress { interface: 2, address, prefix: 64, scope };
        let mut rest = Vec::new();
        for (kind, value) in attributes {
            put(&mut rest, *kind, value);
        }
        is_kernels(&own, &rest)
    }

    #[test]
    fn what_the_kernel_makes_is_told_from_what_somebody_has_added() {
        assert!(of_kernel("127.0.0.1", 254, &[]));
        assert!(of_kernel("::1", 254, &[]));
        assert!(of_kernel("fe80::42:aff:fe58:2", SCOPE_LINK, &[]), "an older kernel");
        assert!(of_kernel("fe80::77", SCOPE_LINK, &[(IFA_PROTO, &[3])]), "of a stable secret");
        assert!(of_kernel("2001:db8::7", 0, &[(IFA_PROTO, &[2])]), "advertised");
        assert!(!of_kernel("fe80::77", SCOPE_LINK, &[]));
        assert!(!of_kernel("127.0.0.2", 254, &[]));
        assert!(!of_kernel("fd77::42:aff:fe58:2", 0, &[]));
    }
}
