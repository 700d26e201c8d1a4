//! Parsing conntrack entries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::encode::cta;
use crate::flow::{Flow, Protocol, TcpState, Tuple, Zone, ZoneScope};
use crate::netlink::Malformed;
use crate::netlink::attribute::Attribute;
use crate::netlink::nfnetlink::attributes;

/// Parses one entry: the payload of a ctnetlink message with its nfnetlink header.
///
/// Returns `None` for an entry of a protocol that netmig does not move.
///
/// # Errors
/// [`Malformed`] if the bytes are not a complete entry.
pub fn parse(payload: &[u8]) -> Result<Option<Flow>, Malformed> {
    let (mut original, mut reply) = (None, None);
    let (mut status, mut timeout, mut mark) = (0, 0, 0);
    let (mut zone, mut tcp) = (Zone::default(), None);
    for attribute in attributes(payload)? {
        let attribute = attribute?;
        match attribute.kind {
            cta::TUPLE_ORIG => original = Some(side(attribute)?),
            cta::TUPLE_REPLY => reply = Some(side(attribute)?),
            cta::STATUS => status = attribute.be32()?,
            cta::TIMEOUT => timeout = attribute.be32()?,
            cta::MARK => mark = attribute.be32()?,
            cta::ZONE => zone = Zone { id: attribute.be16()?, scope: ZoneScope::Both },
            cta::PROTOINFO => tcp = tcp_state(attribute)?,
            _ => {}
        }
    }
    let (Some(original), Some(reply)) = (original, reply) else {
        return Err(Malformed("a conntrack entry without both tuples"));
    };
    if original.number != reply.number {
        return Err(Malformed("a conntrack entry of two protocols"));
    }
    let Some(protocol) = Protocol::from_number(original.number) else { return Ok(None) };
    for (side, scope) in [(&original, ZoneScope::Original), (&reply, ZoneScope::Reply)] {
        if let Some(id) = side.zone {
            zone = Zone { id, scope };
        }
    }
    let (original, reply) = (original.tuple()?, reply.tuple()?);
    Ok(Some(Flow { protocol, original, reply, status, timeout, mark, zone, tcp }))
}

/// Returns the bytes of an entry's original and reply direction; `None` where the host does not
/// count them.
pub(super) fn byte_counts(payload: &[u8]) -> Result<Option<[u64; 2]>, Malformed> {
    let mut counts = [None; 2];
    for attribute in attributes(payload)? {
        let attribute = attribute?;
        let direction = match attribute.kind {
            cta::COUNTERS_ORIG => 0,
            cta::COUNTERS_REPLY => 1,
            _ => continue,
        };
        for part in attribute.nested() {
            let part = part?;
            if part.kind == cta::COUNTERS_BYTES {
                counts[direction] = Some(u64::from_be_bytes(part.bytes()?));
            }
        }
    }
    Ok(counts[0].zip(counts[1]).map(<[u64; 2]>::from))
}

/// A tuple as parsed; protocols without ports have none.
struct Side {
    source: IpAddr,
    destination: IpAddr,
    ports: (Option<u16>, Option<u16>),
    number: u8,
    zone: Option<u16>,
}

impl Side {
    fn tuple(&self) -> Result<Tuple, Malformed> {
        let (Some(source_port), Some(destination_port)) = self.ports else {
            return Err(Malformed("a TCP or UDP tuple without ports"));
        };
        let Self { source, destination, .. } = *self;
        Ok(Tuple { source, destination, source_port, destination_port })
    }
}

fn side(tuple: Attribute<'_>) -> Result<Side, Malformed> {
    let (mut source, mut destination) = (None, None);
    let (mut ports, mut number, mut zone) = ((None, None), None, None);
    for attribute in tuple.nested() {
        let attribute = attribute?;
        match attribute.kind {
            cta::TUPLE_IP => {
                for address in attribute.nested() {
                    let address = address?;
                    match address.kind {
                        cta::IP_V4_SRC => source = Some(v4(address)?),
                        cta::IP_V4_DST => destination = Some(v4(address)?),
                        cta::IP_V6_SRC => source = Some(v6(address)?),
                        cta::IP_V6_DST => destination = Some(v6(address)?),
                        _ => {}
                    }
                }
            }
            cta::TUPLE_PROTO => {
                for part in attribute.nested() {
                    let part = part?;
                    match part.kind {
                        cta::PROTO_NUM => number = Some(part.u8()?),
                        cta::PROTO_SRC_PORT => ports.0 = Some(part.be16()?),
                        cta::PROTO_DST_PORT => ports.1 = Some(part.be16()?),
                        _ => {}
                    }
                }
            }
            cta::TUPLE_ZONE => zone = Some(attribute.be16()?),
            _ => {}
        }
    }
    let (Some(source), Some(destination), Some(number)) = (source, destination, number) else {
        return Err(Malformed("a tuple without addresses or protocol"));
    };
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(Malformed("a tuple of two address families"));
    }
    Ok(Side { source, destination, ports, number, zone })
}

fn v4(attribute: Attribute<'_>) -> Result<IpAddr, Malformed> {
    attribute.bytes::<4>().map(|octets| Ipv4Addr::from(octets).into())
}

fn v6(attribute: Attribute<'_>) -> Result<IpAddr, Malformed> {
    attribute.bytes::<16>().map(|octets| Ipv6Addr::from(octets).into())
}

fn tcp_state(protoinfo: Attribute<'_>) -> Result<Option<TcpState>, Malformed> {
    for attribute in protoinfo.nested() {
        let attribute = attribute?;
        if attribute.kind != cta::PROTOINFO_TCP {
            continue;
        }
        let mut tcp = TcpState { state: 0, scales: [0; 2], flags: [0; 2] };
        for part in attribute.nested() {
            let part = part?;
            // Flags come as `struct nf_ct_tcp_flags`: the flags and a mask.
            match part.kind {
                cta::TCP_STATE => tcp.state = part.u8()?,
                cta::TCP_WSCALE_ORIGINAL => tcp.scales[0] = part.u8()?,
                cta::TCP_WSCALE_REPLY => tcp.scales[1] = part.u8()?,
                cta::TCP_FLAGS_ORIGINAL => tcp.flags[0] = part.bytes::<2>()?[0],
                cta::TCP_FLAGS_REPLY => tcp.flags[1] = part.bytes::<2>()?[0],
                _ => {}
            }
        }
        return Ok(Some(tcp));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::conntrack::encode;

    fn sample(protocol: Protocol, zone: Zone) -> Flow {
        let original = Tuple {
            source: "192.0.2.3".parse().unwrap(),
            destination: "10.88.0.2".parse().unwrap(),
            source_port: 41000,
            destination_port: 80,
        };
        let tcp = TcpState { state: 3, scales: [7, 9], flags: [0x0b, 0x0a] };
        Flow {
            protocol,
            original,
            reply: original.inverse(),
            status: 0x0e,
            timeout: 431_999,
            mark: 0x0900_0000,
            zone,
            tcp: (protocol == Protocol::Tcp).then_some(tcp),
        }
    }

    fn bytes(flow: &Flow) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0];
        encode::create(&mut bytes, flow);
        bytes
    }

    #[test]
    fn what_would_be_created_is_read_back() {
        for scope in [ZoneScope::Both, ZoneScope::Original, ZoneScope::Reply] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let flow = sample(protocol, Zone { id: 3, scope });
                assert_eq!(parse(&bytes(&flow)), Ok(Some(flow)));
            }
        }
    }

    #[test]
    fn every_cut_is_refused_or_is_a_shorter_entry_but_never_a_panic() {
        let whole = bytes(&sample(Protocol::Tcp, Zone::default()));
        for end in 0..whole.len() {
            if let Ok(Some(flow)) = parse(&whole[..end]) {
                assert_eq!(flow.original.source_port, 41000, "cut at {end}");
            }
        }
    }

    #[test]
    fn every_single_flipped_byte_is_survived() {
        let whole = bytes(&sample(Protocol::Tcp, Zone { id: 1, scope: ZoneScope::Reply }));
        for at in 0..whole.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut broken = whole.clone();
                broken[at] ^= flip;
                let _ = parse(&broken);
            }
        }
    }

    #[test]
    fn other_protocols_are_none_and_half_entries_are_errors() {
        let mut icmp = bytes(&sample(Protocol::Udp, Zone::default()));
        let number = [5, 0, cta::PROTO_NUM as u8, 0, 17];
        let mut found = 0;
        for at in 0..icmp.len() - number.len() {
            if icmp[at..at + number.len()] == number {
                icmp[at + 4] = 1;
                found += 1;
            }
        }
        assert_eq!(found, 2);
        assert_eq!(parse(&icmp), Ok(None));
        assert!(parse(&[2, 0, 0, 0]).is_err());
        assert!(parse(&[]).is_err());
    }
}
