//! Routes, and next hops that they share.
//!
//! Attribute numbers are those of `include/uapi/linux/rtnetlink.h`.

use libc::{
    RTA_CACHEINFO, RTA_DST, RTA_GATEWAY, RTA_METRICS, RTA_OIF, RTA_PREF, RTA_PREFSRC, RTA_PRIORITY,
    RTA_TABLE, RTM_F_CLONED,
};

use super::{Configuration, Kind, Known, Links, hexadecimal, name};
use crate::netlink::attribute::{attributes, find, find_u32, ip_address, u32_at};
use crate::netlink::route::{NEXT_HOP_CONFIGURATION, ROUTE_HEADER, RTAX_LOCK, RTAX_MTU, list};
use crate::netlink::{Connection, SocketError};

const RTM_GETNEXTHOP: u16 = 106;
/// Bytes of `struct nhmsg`.
const NEXT_HOP_HEADER: usize = 8;
const NHA_ID: u16 = 1;

/// Origins of a route that are the kernel's (`RTPROT_*`): a redirect, the kernel, a router's
/// advertisement.
const BY_THE_KERNEL: [u8; 3] = [1, 2, 9];

/// Types of routes (`RTN_*`) other than unicast.
const KINDS: &[(u8, &str)] = &[
    (2, "local "),
    (3, "broadcast "),
    (4, "anycast "),
    (5, "multicast "),
    (6, "blackhole "),
    (7, "unreachable "),
    (8, "prohibit "),
    (9, "throw "),
    (10, "nat "),
];

/// Reads routes that the kernel has not added by itself. Engines add some, so these are compared.
pub(super) fn read(
    socket: &mut Connection,
    known: &Known,
    links: &Links,
    into: &mut Configuration,
) -> Result<(), SocketError> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut fixed = [0; ROUTE_HEADER];
        fixed[0] = u8::try_from(family).unwrap_or(0);
        for payload in list(socket, libc::RTM_GETROUTE, &fixed)? {
            // A kernel without IPv6 answers such a dump with the routes of all families.
            if payload.first() == fixed.first()
                && let Some(text) = describe(&payload, known, links)
            {
                into.add(Kind::Route, text);
            }
        }
    }
    for payload in list(socket, RTM_GETNEXTHOP, &[0; NEXT_HOP_HEADER])? {
        let rest = payload.get(NEXT_HOP_HEADER..).unwrap_or_default();
        let id = find_u32(rest, NHA_ID).unwrap_or(0);
        into.add_own(Kind::Route, format!("next hop {id}"));
    }
    Ok(())
}

/// Returns a route as text; `None` for one of the kernel's.
fn describe(payload: &[u8], known: &Known, links: &Links) -> Option<String> {
    let (header, rest) = payload.split_at_checked(ROUTE_HEADER)?;
    let flags = u32_at(header, 8)?;
    let (prefix, tos, by, scope, kind) = (header[1], header[3], header[5], header[6], header[7]);
    if BY_THE_KERNEL.contains(&by) || flags & RTM_F_CLONED != 0 {
        return None;
    }
    let word = KINDS.iter().find(|(number, _)| *number == kind).map_or("", |(_, word)| word);
    let to = find(rest, RTA_DST).and_then(ip_address);
    let to = to.map_or_else(|| "default".to_owned(), |address| format!("{address}/{prefix}"));
    let family = if header[0] == 2 { "IPv4" } else { "IPv6" };
    let table = find_u32(rest, RTA_TABLE).unwrap_or_else(|| u32::from(header[4]));
    let text = format!("{family} route {word}{to} in table {table}");
    let mut words = Vec::new();
    for (kind, value) in attributes(rest) {
        let number = || u32_at(value, 0).unwrap_or(0);
        let address = || ip_address(value).map(|address| known.name_of(address));
        words.push(match kind {
            RTA_OIF => format!(" dev {}", name(links, number())),
            RTA_GATEWAY => format!(" via {}", address().unwrap_or_default()),
            RTA_PREFSRC => format!(" src {}", address().unwrap_or_default()),
            RTA_PRIORITY => format!(" metric {}", number()),
            RTA_METRICS => metrics(value),
            // The rest of a lifetime, and what the text has already. A preference of 0 is the default.
            RTA_CACHEINFO | RTA_DST | RTA_TABLE => String::new(),
            RTA_PREF if value == [0] => String::new(),
            other => format!(" attribute {other} {}", hexadecimal(value)),
        });
    }
    let flags = flags & NEXT_HOP_CONFIGURATION;
    if (tos, scope, flags) != (0, 0, 0) {
        words.push(format!(" tos {tos} scope {scope} flags {flags}"));
    }
    // The order of attributes depends on the kernel.
    words.sort();
    Some(text + &words.concat())
}

/// Returns metrics as text, without the MTU: netmig gives a container that has arrived that of the
/// tunnel.
fn metrics(value: &[u8]) -> String {
    let all = attributes(value).filter(|(kind, _)| !matches!(*kind, RTAX_MTU | RTAX_LOCK));
    all.map(|(kind, value)| format!(" metric {kind} {}", hexadecimal(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute::{nest, put};

    fn route(by: u8, gateway: [u8; 4], mtu: u32) -> Vec<u8> {
        let mut payload = vec![2, 0, 0, 0, 254, by, 0, 1, 0, 0, 0, 0];
        put(&mut payload, RTA_TABLE, &254_u32.to_ne_bytes());
        put(&mut payload, RTA_GATEWAY, &gateway);
        put(&mut payload, RTA_OIF, &2_u32.to_ne_bytes());
        nest(&mut payload, RTA_METRICS, |metrics| {
            put(metrics, RTAX_MTU, &mtu.to_ne_bytes());
        });
        payload
    }

    #[test]
    fn a_default_route_is_the_same_on_two_networks() {
        let known = |gateway: [u8; 4]| Known { gateways: vec![gateway.into()], ..Known::default() };
        let text = |by, gateway: [u8; 4], of, number, mtu| {
            describe(&route(by, gateway, mtu), &known(of), &vec![(number, "eth0".to_owned())])
        };
        let (a, b) = ([10, 88, 0, 1], [10, 99, 0, 1]);
        let one = text(4, a, a, 2, 1500).unwrap();
        assert_eq!(one, "IPv4 route default in table 254 dev eth0 via its gateway");
        assert_eq!(text(4, b, b, 2, 1420).unwrap(), one);
        assert_ne!(text(4, b, a, 2, 1500).unwrap(), one, "another gateway");
        assert_eq!(text(2, a, a, 2, 1500), None, "the kernel's");
        assert_eq!(describe(&[2, 0], &known(a), &Vec::new()), None);
    }
}
