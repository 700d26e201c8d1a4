//! Interfaces and their queueing disciplines.
//!
//! Attribute numbers are those of `include/uapi/linux/if_link.h` and `rtnetlink.h`.

use libc::{
    IFLA_ALT_IFNAME, IFLA_GROUP, IFLA_IFALIAS, IFLA_PROP_LIST, IFLA_TXQLEN, IFLA_XDP, TCA_KIND,
};

use super::{Configuration, Kind, Known, Links, name};
use crate::netlink::attribute::{attributes, find, find_text, find_u32, u32_at};
use crate::netlink::route::{LINK_HEADER, Link, list};
use crate::netlink::{Connection, SocketError};

/// Bytes of `struct tcmsg`, and where its interface and its handle stand.
const QUEUEING_HEADER: usize = 20;
const QUEUEING_INTERFACE: usize = 4;
const QUEUEING_HANDLE: usize = 8;

const IFLA_XDP_ATTACHED: u16 = 2;

/// Flags that are configuration (netdevice(7)), by name. The others are state.
const FLAGS: &[(i32, &str)] = &[
    (libc::IFF_UP, "up"),
    (libc::IFF_NOARP, "noarp"),
    (libc::IFF_PROMISC, "promiscuous"),
    (libc::IFF_ALLMULTI, "allmulticast"),
    (libc::IFF_MULTICAST, "multicast"),
];

/// Interfaces that the kernel adds to every namespace once a kind of tunnel is loaded
/// (`net.core.fb_tunnels_only_for_init_net`).
const FALLBACKS: &[&str] =
    &["tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"];

/// Reads the interfaces; returns their names.
pub(super) fn read(
    socket: &mut Connection,
    known: &Known,
    into: &mut Configuration,
) -> Result<Links, SocketError> {
    let mut links = Links::new();
    for payload in list(socket, libc::RTM_GETLINK, &[0; LINK_HEADER])? {
        let Some(link) = Link::parse(&payload) else { continue };
        let rest = payload.get(LINK_HEADER..).unwrap_or_default();
        links.push((link.index, link.name.clone()));
        let has = |flag: i32| link.flags & flag.cast_unsigned() != 0;
        let is_loopback = has(libc::IFF_LOOPBACK);
        if FALLBACKS.contains(&link.name.as_str()) && !has(libc::IFF_UP) {
            continue;
        }
        let mut text = format!("interface {}", link.name);
        for (_, word) in FLAGS.iter().filter(|(flag, _)| has(*flag)) {
            text.push_str(", ");
            text.push_str(word);
        }
        text.push_str(&properties(rest));
        if !is_loopback && link.name != known.interface {
            let kind = link.kind.as_deref().unwrap_or("unknown");
            into.add_own(Kind::Link, format!("{text} of kind {kind}"));
            continue;
        }
        into.add(Kind::Link, text);
        if is_loopback {
            // The engine does not record it, so it is compared.
            into.add(Kind::Link, format!("interface {} with an MTU of {}", link.name, link.mtu));
        } else {
            own_properties(&link, known, into);
        }
    }
    Ok(links)
}

/// Reports what differs from what the engine gave the container's interface. The destination's
/// network may have another MTU, so that is not compared between hosts.
fn own_properties(link: &Link, known: &Known, into: &mut Configuration) {
    let name = &link.name;
    if link.mtu != known.mtu {
        let (is, was) = (link.mtu, known.mtu);
        into.add_own(Kind::Link, format!("an MTU of {is} of interface {name}, not {was}"));
    }
    if let (Some(is), Some(was)) = (link.mac, known.mac)
        && is != was
    {
        let text = is.map(|byte| format!("{byte:02x}")).join(":");
        into.add_own(Kind::Link, format!("the Ethernet address {text} of interface {name}"));
    }
}

/// Returns the properties that are configuration, as text.
fn properties(rest: &[u8]) -> String {
    let mut text = String::new();
    if let Some(length) = find_u32(rest, IFLA_TXQLEN) {
        text.push_str(&format!(", queue of {length}"));
    }
    if let Some(group @ 1..) = find_u32(rest, IFLA_GROUP) {
        text.push_str(&format!(", group {group}"));
    }
    if let Some(alias) = find_text(rest, IFLA_IFALIAS) {
        text.push_str(&format!(", alias {alias:?}"));
    }
    let other_names = attributes(find(rest, IFLA_PROP_LIST).unwrap_or_default());
    for (_, other) in other_names.filter(|(kind, _)| *kind == IFLA_ALT_IFNAME) {
        let other = String::from_utf8_lossy(other);
        text.push_str(&format!(", name {:?}", other.trim_end_matches('\0')));
    }
    let xdp = find(rest, IFLA_XDP).unwrap_or_default();
    if find(xdp, IFLA_XDP_ATTACHED).is_some_and(|attached| attached != [0]) {
        text.push_str(", an XDP program");
    }
    text
}

/// Reads queueing disciplines that were added: those that the kernel gives an interface have no
/// handle (`qdisc_create_dflt`, `net/sched/sch_generic.c`). Classes and filters need one that was
/// added.
pub(super) fn queueing(
    socket: &mut Connection,
    links: &Links,
    into: &mut Configuration,
) -> Result<(), SocketError> {
    for payload in list(socket, libc::RTM_GETQDISC, &[0; QUEUEING_HEADER])? {
        let rest = payload.get(QUEUEING_HEADER..).unwrap_or_default();
        if u32_at(&payload, QUEUEING_HANDLE).unwrap_or(0) != 0 {
            let kind = find_text(rest, TCA_KIND).unwrap_or_default();
            let interface = name(links, u32_at(&payload, QUEUEING_INTERFACE).unwrap_or(0));
            into.add_own(Kind::Queueing, format!("queueing discipline {kind} of {interface}"));
        }
    }
    Ok(())
}
