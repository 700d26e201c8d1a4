//! Flows between a container that moves and others on its bridge.
//!
//! Bridged packets have no conntrack entries (unless `net.bridge.bridge-nf-call-iptables` hands
//! them to conntrack), so the entries are built from the sockets of both containers.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use super::{
    Direction, Flow, Protocol, STATUS_ASSURED, STATUS_CONFIRMED, STATUS_SEEN_REPLY, TCP_BE_LIBERAL,
    TcpState, Tuple, UDP_TIMEOUT, Zone,
};
use crate::sockets::Connections;

/// `TCP_CONNTRACK_ESTABLISHED`.
const ESTABLISHED: u8 = 3;
/// The kernel's default timeout of established connections, in seconds.
const TCP_TIMEOUT: u32 = 432_000;

/// The sockets from which the entries are built.
#[derive(Debug)]
pub(crate) struct BridgedFlows<'a> {
    /// Addresses of the container that moves.
    pub(crate) container: &'a [IpAddr],
    /// Addresses of the others.
    pub(crate) others: &'a [IpAddr],
    /// The container's TCP sockets.
    pub(crate) tcp: &'a Connections,
    /// The container's connected UDP sockets.
    pub(crate) udp: &'a Connections,
    /// Local and remote end of the others' connected UDP sockets.
    pub(crate) inward: &'a [(SocketAddr, SocketAddr)],
}

impl BridgedFlows<'_> {
    /// Returns the entries that `known` lacks, without NAT.
    pub(crate) fn entries(&self, known: &[Flow]) -> Vec<Flow> {
        let ends = |flow: &Flow| {
            let own = match flow.direction(self.container)? {
                Direction::Inbound => flow.reply,
                Direction::Outbound => flow.original,
            };
            Some((flow.protocol, own))
        };
        let mut known: HashSet<(Protocol, Tuple)> = known.iter().filter_map(ends).collect();
        let mut made = Vec::new();
        let mut add = |protocol, own: SocketAddr, far: SocketAddr, inbound| {
            let out = Tuple {
                source: own.ip(),
                destination: far.ip(),
                source_port: own.port(),
                destination_port: far.port(),
            };
            if self.container.contains(&own.ip())
                && self.others.contains(&far.ip())
                && known.insert((protocol, out))
            {
                made.push(entry(protocol, if inbound { out.inverse() } else { out }));
            }
        };
        for (own, far) in &self.tcp.open {
            add(Protocol::Tcp, *own, *far, self.tcp.listening.contains(&own.port()));
        }
        for (own, far) in &self.udp.open {
            add(Protocol::Udp, *own, *far, false);
        }
        for (far, own) in self.inward {
            add(Protocol::Udp, *own, *far, true);
        }
        made
    }
}

fn entry(protocol: Protocol, original: Tuple) -> Flow {
    let tcp = protocol == Protocol::Tcp;
    Flow {
        protocol,
        original,
        reply: original.inverse(),
        status: STATUS_CONFIRMED | STATUS_SEEN_REPLY | STATUS_ASSURED,
        timeout: if tcp { TCP_TIMEOUT } else { UDP_TIMEOUT },
        mark: 0,
        zone: Zone::default(),
        tcp: tcp.then_some(TcpState {
            state: ESTABLISHED,
            scales: [0; 2],
            flags: [TCP_BE_LIBERAL; 2],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_both_openers_get_entries_and_those_known_do_not() {
        let end = |text: &str| text.parse::<SocketAddr>().unwrap();
        let container = ["10.88.0.2".parse().unwrap()];
        let others = ["10.88.0.3".parse().unwrap()];
        let tcp = Connections {
            open: vec![
                (end("10.88.0.2:7000"), end("10.88.0.3:40000")),
                (end("10.88.0.2:50000"), end("10.88.0.3:80")),
                (end("10.88.0.2:50001"), end("192.0.2.4:80")),
            ],
            listening: [7000].into(),
        };
        let udp = Connections {
            open: vec![(end("10.88.0.2:50002"), end("10.88.0.3:53"))],
            ..Connections::default()
        };
        let inward = [
            (end("10.88.0.3:40001"), end("10.88.0.2:7000")),
            (end("10.88.0.3:53"), end("10.88.0.2:50002")),
            (end("10.88.0.3:40002"), end("10.88.0.9:7000")),
        ];
        let seen = BridgedFlows {
            container: &container,
            others: &others,
            tcp: &tcp,
            udp: &udp,
            inward: &inward,
        };
        let made = seen.entries(&[]);
        let told: Vec<String> = made.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "tcp 10.88.0.3:40000 > 10.88.0.2:7000",
                "tcp 10.88.0.2:50000 > 10.88.0.3:80",
                "udp 10.88.0.2:50002 > 10.88.0.3:53",
                "udp 10.88.0.3:40001 > 10.88.0.2:7000",
            ]
        );
        assert_eq!(seen.entries(&made), []);
    }
}
