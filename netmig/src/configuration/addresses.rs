//! Addresses, and neighbour entries that somebody has made.
//!
//! Attribute numbers are those of `include/uapi/linux/if_addr.h` and `neighbour.h`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Configuration, Kind, Known, Links, list, name};
use crate::netns::link::ip_address;
use crate::netns::message::{attribute, u16_at, u32_at};
use crate::netns::socket::KernelSocket;
use crate::routing::PROTOCOL;

const RTM_GETADDR: u16 = 22;
/// Bytes of `struct ifaddrmsg`.
const ADDRESS_HEADER: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_PROTO: u16 = 11;
/// Who has made an address (`IFAPROT_*`): of the loopback interface, of a router's advertisement, of a link.
const BY_THE_KERNEL: [u8; 3] = [1, 2, 3];
const SCOPE_LINK: u8 = 253;
/// An address that follows one of a router's advertisement, or was made of a secret.
const FLAGS_OF_THE_KERNEL: u32 = 0x01 | 0x800;

const RTM_GETNEIGH: u16 = 30;
/// Bytes of `struct ndmsg`.
const NEIGHBOUR_HEADER: usize = 12;
const NUD_PERMANENT: u16 = 0x80;
const NTF_PROXY: u8 = 8;
const NDA_DST: u16 = 1;
const NDA_PROTOCOL: u16 = 12;

/// Reads addresses that are neither the container's by its engine's record nor the kernel's, and names those
/// of the record that are missing.
pub(super) fn read(
    socket: &mut KernelSocket,
    known: &Known,
    links: &Links,
    into: &mut Configuration,
) -> io::Result<()> {
    let mut found = Vec::new();
    for payload in list(socket, RTM_GETADDR, &[0; ADDRESS_HEADER])? {
        let rest = payload.get(ADDRESS_HEADER..).unwrap_or_default();
        let value = attribute(rest, IFA_LOCAL).or_else(|| attribute(rest, IFA_ADDRESS));
        let Some(address) = value.and_then(ip_address) else { continue };
        let interface = name(links, u32_at(&payload, 4).unwrap_or(0));
        if known.addresses.contains(&address) && interface == known.interface {
            found.push(address);
            continue;
        }
        if !is_kernels(address, &payload, rest) {
            let prefix = payload[1];
            into.add_own(Kind::Address, format!("address {address}/{prefix} of {interface}"));
        }
    }
    for missing in known.addresses.iter().filter(|address| !found.contains(address)) {
        let interface = &known.interface;
        into.add_own(Kind::Address, format!("no address {missing} of {interface} any more"));
    }
    Ok(())
}

fn is_kernels(address: IpAddr, header: &[u8], rest: &[u8]) -> bool {
    let by = attribute(rest, IFA_PROTO).and_then(|value| value.first().copied());
    let flags = attribute(rest, IFA_FLAGS).and_then(|value| u32_at(value, 0)).unwrap_or(0);
    match address {
        // Kernels before 5.18 do not tell by whom.
        IpAddr::V4(four) => four == Ipv4Addr::LOCALHOST,
        IpAddr::V6(six) if six == Ipv6Addr::LOCALHOST => true,
        IpAddr::V6(six) => {
            let is_of_link = header.get(3) == Some(&SCOPE_LINK);
            by.is_some_and(|by| BY_THE_KERNEL.contains(&by))
                || flags & FLAGS_OF_THE_KERNEL != 0
                || (is_of_link && is_of_an_ethernet_address(six))
        }
    }
}

/// Whether the address was made of an Ethernet address (RFC 4291, appendix A).
fn is_of_an_ethernet_address(address: Ipv6Addr) -> bool {
    let bytes = address.octets();
    bytes[11..13] == [0xff, 0xfe]
}

/// Reads entries that stay until somebody removes them, other than those of netmig.
pub(super) fn neighbours(
    socket: &mut KernelSocket,
    links: &Links,
    into: &mut Configuration,
) -> io::Result<()> {
    for proxies in [false, true] {
        let mut fixed = [0; NEIGHBOUR_HEADER];
        if proxies {
            fixed[10] = NTF_PROXY;
        }
        for payload in list(socket, RTM_GETNEIGH, &fixed)? {
            let rest = payload.get(NEIGHBOUR_HEADER..).unwrap_or_default();
            let is_proxy = payload.get(10).is_some_and(|flags| flags & NTF_PROXY != 0);
            let is_permanent = u16_at(&payload, 8).is_some_and(|state| state & NUD_PERMANENT != 0);
            let is_ours = attribute(rest, NDA_PROTOCOL) == Some(&[PROTOCOL]);
            if is_ours || !(is_proxy || is_permanent) {
                continue;
            }
            let Some(address) = attribute(rest, NDA_DST).and_then(ip_address) else { continue };
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
    use crate::netns::message::Message;

    fn of_kernel(address: &str, scope: u8, attributes: &[(u16, &[u8])]) -> bool {
        let header = [10, 64, 0, scope, 2, 0, 0, 0];
        let mut message = Message::new(20, 0, &header);
        for (kind, value) in attributes {
            message.attribute(*kind, value);
        }
        let payload = message.finish()[16..].to_vec();
        is_kernels(address.parse().unwrap(), &payload, &payload[ADDRESS_HEADER..])
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
