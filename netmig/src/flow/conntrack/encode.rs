//! Writing ctnetlink requests.

use std::net::{IpAddr, Ipv4Addr};

use crate::flow::{
    Flow, Protocol, STATUS_ASSURED, STATUS_CONFIRMED, STATUS_FIXED_TIMEOUT, STATUS_SEEN_REPLY,
    TCP_BE_LIBERAL, Tuple, Zone, ZoneScope,
};
use crate::netlink::attribute::{family, nest, put};

/// Attribute numbers (`include/uapi/linux/netfilter/nfnetlink_conntrack.h`).
pub(super) mod cta {
    pub(crate) const TUPLE_ORIG: u16 = 1;
    pub(crate) const TUPLE_REPLY: u16 = 2;
    pub(crate) const STATUS: u16 = 3;
    pub(crate) const PROTOINFO: u16 = 4;
    pub(crate) const NAT_SRC: u16 = 6;
    pub(crate) const TIMEOUT: u16 = 7;
    pub(crate) const MARK: u16 = 8;
    pub(crate) const COUNTERS_ORIG: u16 = 9;
    pub(crate) const COUNTERS_REPLY: u16 = 10;
    pub(crate) const NAT_DST: u16 = 13;
    pub(crate) const ZONE: u16 = 18;
    pub(crate) const MARK_MASK: u16 = 21;
    pub(crate) const FILTER: u16 = 25;

    pub(crate) const TUPLE_IP: u16 = 1;
    pub(crate) const TUPLE_PROTO: u16 = 2;
    pub(crate) const TUPLE_ZONE: u16 = 3;

    pub(crate) const IP_V4_SRC: u16 = 1;
    pub(crate) const IP_V4_DST: u16 = 2;
    pub(crate) const IP_V6_SRC: u16 = 3;
    pub(crate) const IP_V6_DST: u16 = 4;

    pub(crate) const PROTO_NUM: u16 = 1;
    pub(crate) const PROTO_SRC_PORT: u16 = 2;
    pub(crate) const PROTO_DST_PORT: u16 = 3;

    pub(crate) const COUNTERS_BYTES: u16 = 2;

    pub(crate) const PROTOINFO_TCP: u16 = 1;
    pub(crate) const TCP_STATE: u16 = 1;
    pub(crate) const TCP_WSCALE_ORIGINAL: u16 = 2;
    pub(crate) const TCP_WSCALE_REPLY: u16 = 3;
    pub(crate) const TCP_FLAGS_ORIGINAL: u16 = 4;
    pub(crate) const TCP_FLAGS_REPLY: u16 = 5;

    pub(crate) const NAT_V4_MINIP: u16 = 1;
    pub(crate) const NAT_V4_MAXIP: u16 = 2;
    pub(crate) const NAT_PROTO: u16 = 3;
    pub(crate) const NAT_V6_MINIP: u16 = 4;
    pub(crate) const NAT_V6_MAXIP: u16 = 5;
    pub(crate) const PROTONAT_PORT_MIN: u16 = 1;
    pub(crate) const PROTONAT_PORT_MAX: u16 = 2;

    pub(crate) const FILTER_ORIG_FLAGS: u16 = 1;
    pub(crate) const FILTER_REPLY_FLAGS: u16 = 2;
    /// Compare the tuple's source address (`CTA_FILTER_F_CTA_IP_SRC`, `nf_internals.h`).
    pub(crate) const FILTER_IP_SRC: u32 = 1;
}

/// TCP flags that a created entry takes from a [`Flow`]: window scaling, SACK, close begun,
/// liberal. The kernel maintains the others itself.
const TCP_FLAGS: u8 = 0x01 | 0x02 | 0x04 | TCP_BE_LIBERAL;

/// Appends what identifies an entry: original tuple and zone.
pub(super) fn identity(message: &mut Vec<u8>, flow: &Flow) {
    tuple(message, cta::TUPLE_ORIG, flow.original, flow.protocol, flow.zone);
    whole_zone(message, flow.zone);
}

/// Appends what looks up the entry that has a tuple in either direction.
pub(super) fn wanted(message: &mut Vec<u8>, protocol: Protocol, wanted: Tuple) {
    tuple(message, cta::TUPLE_ORIG, wanted, protocol, Zone::default());
}

/// Appends the attributes of a request that changes an entry's connmark where `mask` has bits.
pub(super) fn mark(message: &mut Vec<u8>, flow: &Flow, value: u32, mask: u32) {
    identity(message, flow);
    put(message, cta::MARK, &value.to_be_bytes());
    put(message, cta::MARK_MASK, &mask.to_be_bytes());
}

/// Appends the attributes of a request that changes an entry's timeout.
pub(super) fn timeout(message: &mut Vec<u8>, flow: &Flow, seconds: u32) {
    identity(message, flow);
    put(message, cta::TIMEOUT, &seconds.to_be_bytes());
}

/// Appends the attributes of a request that creates an entry.
///
/// The reply tuple is always the plain inverse, and NAT is requested separately: given a translated
/// reply tuple the kernel creates an entry without NAT, because `nf_nat_setup_info` marks an entry
/// as translated only if it alters the reply tuple itself.
pub(super) fn create(message: &mut Vec<u8>, flow: &Flow) {
    let plain = flow.original.inverse();
    tuple(message, cta::TUPLE_ORIG, flow.original, flow.protocol, flow.zone);
    tuple(message, cta::TUPLE_REPLY, plain, flow.protocol, flow.zone);
    whole_zone(message, flow.zone);
    let kept = STATUS_SEEN_REPLY | STATUS_ASSURED | STATUS_FIXED_TIMEOUT;
    let status = flow.status & kept | STATUS_CONFIRMED;
    put(message, cta::STATUS, &status.to_be_bytes());
    put(message, cta::TIMEOUT, &flow.timeout.to_be_bytes());
    put(message, cta::MARK, &flow.mark.to_be_bytes());
    let Tuple { source, destination, source_port, destination_port } = flow.reply;
    if (source, source_port) != (plain.source, plain.source_port) {
        translation(message, cta::NAT_DST, source, source_port);
    }
    if (destination, destination_port) != (plain.destination, plain.destination_port) {
        translation(message, cta::NAT_SRC, destination, destination_port);
    }
    if let Some(tcp) = flow.tcp {
        nest(message, cta::PROTOINFO, |message| {
            nest(message, cta::PROTOINFO_TCP, |message| {
                put(message, cta::TCP_STATE, &[tcp.state]);
                put(message, cta::TCP_WSCALE_ORIGINAL, &[tcp.scales[0]]);
                put(message, cta::TCP_WSCALE_REPLY, &[tcp.scales[1]]);
                put(message, cta::TCP_FLAGS_ORIGINAL, &[tcp.flags[0], TCP_FLAGS]);
                put(message, cta::TCP_FLAGS_REPLY, &[tcp.flags[1], TCP_FLAGS]);
            });
        });
    }
}

/// The entries that a dump returns.
///
/// There is no filter for an IPv6 address: the kernel returns exactly the entries that do *not*
/// have it (`ctnetlink_filter_match_tuple` inverts the result of `ipv6_addr_cmp`, seen up to 6.18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// All.
    None,
    /// All of IPv6.
    V6,
    /// Those whose original direction has this source.
    OriginalSource(Ipv4Addr),
    /// Those whose reply direction has this source.
    ReplySource(Ipv4Addr),
}

/// Returns the address family to dump; 0 for any.
pub(super) fn filter_family(filter: Filter) -> u8 {
    match filter {
        Filter::None => 0,
        Filter::V6 => libc::AF_INET6.to_le_bytes()[0],
        Filter::OriginalSource(address) | Filter::ReplySource(address) => family(address.into()),
    }
}

/// Appends the attributes of a filtered dump (Linux 5.8; older kernels ignore them).
pub(super) fn filter(message: &mut Vec<u8>, filter: Filter) {
    let (kind, flags, address) = match filter {
        Filter::None | Filter::V6 => return,
        Filter::OriginalSource(address) => (cta::TUPLE_ORIG, cta::FILTER_ORIG_FLAGS, address),
        Filter::ReplySource(address) => (cta::TUPLE_REPLY, cta::FILTER_REPLY_FLAGS, address),
    };
    nest(message, kind, |message| {
        nest(message, cta::TUPLE_IP, |message| {
            put(message, cta::IP_V4_SRC, &address.octets());
        });
    });
    nest(message, cta::FILTER, |message| {
        // These flags are in host byte order, unlike all else.
        put(message, flags, &cta::FILTER_IP_SRC.to_ne_bytes());
    });
}

fn tuple(message: &mut Vec<u8>, kind: u16, tuple: Tuple, protocol: Protocol, zone: Zone) {
    let own_zone = matches!(
        (kind, zone.scope),
        (cta::TUPLE_ORIG, ZoneScope::Original) | (cta::TUPLE_REPLY, ZoneScope::Reply)
    );
    nest(message, kind, |message| {
        nest(message, cta::TUPLE_IP, |message| match (tuple.source, tuple.destination) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                put(message, cta::IP_V6_SRC, &source.octets());
                put(message, cta::IP_V6_DST, &destination.octets());
            }
            (source, destination) => {
                for (kind, address) in [(cta::IP_V4_SRC, source), (cta::IP_V4_DST, destination)] {
                    if let IpAddr::V4(address) = address {
                        put(message, kind, &address.octets());
                    }
                }
            }
        });
        nest(message, cta::TUPLE_PROTO, |message| {
            put(message, cta::PROTO_NUM, &[protocol.number()]);
            put(message, cta::PROTO_SRC_PORT, &tuple.source_port.to_be_bytes());
            put(message, cta::PROTO_DST_PORT, &tuple.destination_port.to_be_bytes());
        });
        if own_zone && zone.id != 0 {
            put(message, cta::TUPLE_ZONE, &zone.id.to_be_bytes());
        }
    });
}

fn whole_zone(message: &mut Vec<u8>, zone: Zone) {
    if zone.scope == ZoneScope::Both && zone.id != 0 {
        put(message, cta::ZONE, &zone.id.to_be_bytes());
    }
}

fn translation(message: &mut Vec<u8>, kind: u16, address: IpAddr, port: u16) {
    nest(message, kind, |message| {
        match address {
            IpAddr::V4(address) => {
                put(message, cta::NAT_V4_MINIP, &address.octets());
                put(message, cta::NAT_V4_MAXIP, &address.octets());
            }
            IpAddr::V6(address) => {
                put(message, cta::NAT_V6_MINIP, &address.octets());
                put(message, cta::NAT_V6_MAXIP, &address.octets());
            }
        }
        nest(message, cta::NAT_PROTO, |message| {
            put(message, cta::PROTONAT_PORT_MIN, &port.to_be_bytes());
            put(message, cta::PROTONAT_PORT_MAX, &port.to_be_bytes());
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute::Attributes;

    fn kinds(bytes: &[u8]) -> Vec<u16> {
        Attributes::new(bytes).map(|attribute| attribute.unwrap().kind).collect()
    }

    fn flow(reply: Tuple, original: Tuple) -> Flow {
        Flow {
            protocol: Protocol::Udp,
            original,
            reply,
            status: 0xffff,
            timeout: 30,
            mark: 0,
            zone: Zone::default(),
            tcp: None,
        }
    }

    #[test]
    fn translation_is_asked_for_only_where_the_tuples_differ() {
        let original = Tuple {
            source: "192.0.2.3".parse().unwrap(),
            destination: "10.88.0.2".parse().unwrap(),
            source_port: 9,
            destination_port: 80,
        };
        let mut plain = Vec::new();
        create(&mut plain, &flow(original.inverse(), original));
        assert!(!kinds(&plain).contains(&cta::NAT_DST) && !kinds(&plain).contains(&cta::NAT_SRC));

        let moved = Tuple { source: "10.88.0.9".parse().unwrap(), ..original.inverse() };
        let mut translated = Vec::new();
        create(&mut translated, &flow(moved, original));
        assert!(kinds(&translated).contains(&cta::NAT_DST));
        assert!(!kinds(&translated).contains(&cta::NAT_SRC));
    }

    #[test]
    fn the_status_of_a_created_entry_holds_only_bits_that_may_be_set() {
        let original = Tuple {
            source: "fd00::3".parse().unwrap(),
            destination: "fd00::2".parse().unwrap(),
            source_port: 9,
            destination_port: 80,
        };
        let mut bytes = Vec::new();
        create(&mut bytes, &flow(original.inverse(), original));
        let status = Attributes::new(&bytes).flatten().find(|a| a.kind == cta::STATUS).unwrap();
        let allowed = STATUS_SEEN_REPLY | STATUS_ASSURED | STATUS_CONFIRMED | STATUS_FIXED_TIMEOUT;
        assert_eq!(status.be32(), Ok(0x0e | STATUS_FIXED_TIMEOUT));
        assert_eq!(status.be32().unwrap_or(0) & !allowed, 0);
    }

    #[test]
    fn a_mark_request_says_which_bits_it_changes() {
        let original = Tuple {
            source: "192.0.2.3".parse().unwrap(),
            destination: "192.0.2.1".parse().unwrap(),
            source_port: 9,
            destination_port: 80,
        };
        let mut bytes = Vec::new();
        mark(&mut bytes, &flow(original.inverse(), original), 0x0002_0000, 0x00ff_0000);
        let value = |kind| {
            Attributes::new(&bytes).flatten().find(|a| a.kind == kind).unwrap().be32().unwrap()
        };
        assert_eq!((value(cta::MARK), value(cta::MARK_MASK)), (0x0002_0000, 0x00ff_0000));
    }
}
