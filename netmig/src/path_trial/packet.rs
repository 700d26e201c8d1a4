//! Packets like those of a flow, without data: a TCP segment or a UDP datagram.

use std::net::IpAddr;

use crate::flow::{Protocol, Tuple};

const ETHERNET: usize = 14;
/// EtherTypes.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const HOPS: u8 = 64;
/// Flags of TCP.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// A locally administered address that no interface has.
const SENDER: [u8; 6] = [0x02, 0, 0, 0x4e, 0x4d, 0x47];

/// The position of a packet in a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It opens the connection.
    First,
    /// It answers the first packet.
    Answer,
    /// Any later packet.
    Later,
}

impl Stage {
    fn flags(self) -> u8 {
        match self {
            Self::First => SYN,
            Self::Answer => SYN | ACK,
            Self::Later => ACK,
        }
    }
}

/// Returns an Ethernet frame for `receiver` with a packet of that tuple.
pub(super) fn frame(receiver: [u8; 6], protocol: Protocol, tuple: &Tuple, stage: Stage) -> Vec<u8> {
    let segment = segment(protocol, tuple, stage);
    // These lengths are far below the limits of both address families.
    let length = segment.len() as u16;
    let mut frame = [receiver, SENDER].concat();
    match (tuple.source, tuple.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend(IPV4.to_be_bytes());
            let mut header = vec![0x45, 0];
            header.extend((length + 20).to_be_bytes());
            // No identification, not to be fragmented.
            header.extend([0, 0, 0x40, 0, HOPS, protocol.number(), 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend(header);
        }
        (source, destination) => {
            frame.extend(IPV6.to_be_bytes());
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([protocol.number(), HOPS]);
            frame.extend(octets(source));
            frame.extend(octets(destination));
        }
    }
    frame.extend(segment);
    debug_assert!(frame.len() > ETHERNET);
    frame
}

fn segment(protocol: Protocol, tuple: &Tuple, stage: Stage) -> Vec<u8> {
    let mut segment = Vec::with_capacity(20);
    segment.extend(tuple.source_port.to_be_bytes());
    segment.extend(tuple.destination_port.to_be_bytes());
    let at = match protocol {
        Protocol::Tcp => {
            segment.extend(1u32.to_be_bytes());
            // The packet that opens the connection has sequence number 1.
            let acknowledged = if stage == Stage::First { 0u32 } else { 2 };
            segment.extend(acknowledged.to_be_bytes());
            // Five words of header, the flags, a window.
            segment.extend([0x50, stage.flags(), 0x20, 0]);
            segment.extend([0; 4]);
            16
        }
        Protocol::Udp => {
            segment.extend([0, 8, 0, 0]);
            6
        }
    };
    let length = (segment.len() as u32).to_be_bytes();
    let next = [0, 0, 0, protocol.number()];
    let ends = [octets(tuple.source), octets(tuple.destination)].concat();
    // The pseudo-header of either family sums up to the same fields (RFC 9293, 3.1; RFC 8200, 8.1).
    let sum = match checksum(&[&ends, &length, &next, &segment]) {
        // In UDP 0 means that there is no checksum (RFC 768).
        0 => u16::MAX,
        sum => sum,
    };
    segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    segment
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Returns the Internet checksum (RFC 1071) of parts of an even length each.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let mut folded = sum;
    while folded > 0xffff {
        folded = (folded & 0xffff) + (folded >> 16);
    }
    !(folded as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: &str, destination: &str) -> Tuple {
        Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            source_port: 40000,
            destination_port: 80,
        }
    }

    #[test]
    fn checksums_sum_up_to_nothing() {
        for (source, destination, header) in
            [("192.0.2.3", "192.0.2.1", 20), ("2001:db8::3", "2001:db8::1", 40)]
        {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let tuple = tuple(source, destination);
                let frame = frame([2; 6], protocol, &tuple, Stage::Later);
                let (network, segment) = frame[ETHERNET..].split_at(header);
                if header == 20 {
                    assert_eq!(checksum(&[network]), 0);
                }
                let ends = [octets(tuple.source), octets(tuple.destination)].concat();
                let rest = [0, 0, 0, protocol.number(), 0, 0, 0, segment.len() as u8];
                assert_eq!(checksum(&[&ends, &rest, segment]), 0, "{source} {protocol}");
            }
        }
    }

    #[test]
    fn a_new_connection_begins_with_its_first_segment() {
        let tuple = tuple("192.0.2.3", "192.0.2.1");
        for (stage, flags) in [(Stage::First, 0x02), (Stage::Answer, 0x12), (Stage::Later, 0x10)] {
            let frame = frame([2; 6], Protocol::Tcp, &tuple, stage);
            assert_eq!(frame[ETHERNET + 20 + 13], flags);
        }
    }
}
