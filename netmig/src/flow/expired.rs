//! Connections whose conntrack entry has expired because they were silent for too long
//! (`nf_conntrack_tcp_timeout_established`).
//!
//! Without a move the next packet would recreate the entry: conntrack picks up connections in the
//! middle, and the engine's rules translate them as they did first. After a move these rules are
//! gone. So the entry is built from the container's own socket before the move, as those rules
//! would make it:
//!
//! | connection | entry |
//! | --- | --- |
//! | to a published port | to the host's port, at the address by which the host talks to the far end or on which the port is published |
//! | from any other port | masqueraded with the same port, as the kernel does unless that port is taken |
//!
//! If the far end used another address of the host, the entry is wrong: nothing records which one
//! it used.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use super::{
    Direction, Flow, Protocol, STATUS_ASSURED, STATUS_CONFIRMED, STATUS_SEEN_REPLY, TCP_BE_LIBERAL,
    TcpState, Tuple, Zone,
};
use crate::sockets::Connections;

/// `TCP_CONNTRACK_ESTABLISHED`.
const ESTABLISHED: u8 = 3;
/// The kernel's default timeout of established connections, in seconds.
const TIMEOUT: u32 = 432_000;

/// A published TCP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The host's address on which it is published; `None` for all.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: u16,
    /// The container's port.
    pub container: u16,
}

/// A container whose conntrack entries may have expired.
#[derive(Debug)]
pub struct ExpiredFlows<'a> {
    /// The connections of its sockets.
    pub connections: &'a Connections,
    /// Its addresses.
    pub container: &'a [IpAddr],
    /// Its networks. Connections within them are not flows of the host.
    pub networks: &'a [(IpAddr, u8)],
    /// Its published TCP ports.
    pub published: &'a [Published],
}

impl ExpiredFlows<'_> {
    /// Returns the entries that `flows`, all of the container's conntrack entries, lack. `host`
    /// returns the address by which this host talks to a far end.
    pub fn entries(&self, flows: &[Flow], host: impl Fn(IpAddr) -> Option<IpAddr>) -> Vec<Flow> {
        let known: HashSet<_> = flows.iter().filter_map(|flow| self.ends(flow)).collect();
        let forgotten = self.connections.open.iter().filter(|(own, far)| {
            self.container.contains(&own.ip())
                && !known.contains(&(*own, *far))
                && !self.networks.iter().any(|network| contains(*network, far.ip()))
        });
        forgotten.filter_map(|(own, far)| self.entry(*own, *far, &host)).collect()
    }

    /// Returns the container's end and the far end of a TCP flow, as the container's socket has
    /// them.
    fn ends(&self, flow: &Flow) -> Option<(SocketAddr, SocketAddr)> {
        let Tuple { source, source_port, destination, destination_port } =
            match flow.direction(self.container)? {
                Direction::Inbound => flow.reply,
                Direction::Outbound => flow.original,
            };
        flow.tcp.map(|_| {
            (SocketAddr::new(source, source_port), SocketAddr::new(destination, destination_port))
        })
    }

    fn entry(
        &self,
        own: SocketAddr,
        far: SocketAddr,
        host: impl Fn(IpAddr) -> Option<IpAddr>,
    ) -> Option<Flow> {
        let out = Tuple {
            source: own.ip(),
            destination: far.ip(),
            source_port: own.port(),
            destination_port: far.port(),
        };
        let (original, reply) = if self.connections.listening.contains(&own.port()) {
            let fits = |port: &&Published| {
                let family = port.address.is_none_or(|ip| ip.is_ipv4() == far.is_ipv4());
                port.container == own.port() && family
            };
            let mut original = out.inverse();
            if let Some(port) = self.published.iter().find(fits) {
                original.destination = match port.address {
                    Some(address) => address,
                    None => host(far.ip())?,
                };
                original.destination_port = port.host;
            }
            (original, out)
        } else {
            (out, Tuple { destination: host(far.ip())?, ..out.inverse() })
        };
        Some(Flow {
            protocol: Protocol::Tcp,
            original,
            reply,
            status: STATUS_CONFIRMED | STATUS_SEEN_REPLY | STATUS_ASSURED,
            timeout: TIMEOUT,
            mark: 0,
            zone: Zone::default(),
            tcp: Some(TcpState { state: ESTABLISHED, scales: [0; 2], flags: [TCP_BE_LIBERAL; 2] }),
        })
    }
}

/// Returns whether an address belongs to a network, given by any of its addresses and a prefix
/// length.
pub(crate) fn contains((of, length): (IpAddr, u8), address: IpAddr) -> bool {
    match (of, address) {
        (IpAddr::V4(of), IpAddr::V4(ip)) => {
            let differ = of.to_bits() ^ ip.to_bits();
            differ.checked_shr(32 - u32::from(length.min(32))).unwrap_or(0) == 0
        }
        (IpAddr::V6(of), IpAddr::V6(ip)) => {
            let differ = of.to_bits() ^ ip.to_bits();
            differ.checked_shr(128 - u32::from(length.min(128))).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_end_at_their_prefix() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(contains((ip("10.88.0.2"), 16), ip("10.88.9.9")));
        assert!(!contains((ip("10.88.0.2"), 16), ip("10.89.0.2")));
        assert!(contains((ip("10.88.0.2"), 0), ip("192.0.2.1")));
        assert!(contains((ip("fd77::2"), 64), ip("fd77::9")));
        assert!(
            !contains((ip("fd77::2"), 64), ip("fd78::2"))
                && !contains((ip("fd77::2"), 0), ip("10.88.0.2"))
        );
    }

    #[test]
    fn what_was_forgotten_is_made_as_the_engines_rules_would() {
        let open = [
            ("10.88.0.2:80", "192.0.2.3:41000"),
            ("10.88.0.2:80", "192.0.2.3:41001"),
            ("10.88.0.2:50000", "192.0.2.4:443"),
            ("10.88.0.2:80", "10.88.0.5:42000"),
            ("127.0.0.1:80", "127.0.0.1:43000"),
        ];
        let connections = Connections {
            open: open.iter().map(|(own, far)| (end(own), end(far))).collect(),
            listening: [80].into(),
        };
        let container = ["10.88.0.2".parse().unwrap()];
        let forgotten = ExpiredFlows {
            connections: &connections,
            container: &container,
            networks: &[(container[0], 16)],
            published: &[Published { address: None, host: 8080, container: 80 }],
        };
        let host = |_| Some("192.0.2.1".parse().unwrap());
        let made = forgotten.entries(&[], host);
        let told: Vec<String> = made.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "tcp 192.0.2.3:41000 > 192.0.2.1:8080 (reply 10.88.0.2:80 > 192.0.2.3:41000)",
                "tcp 192.0.2.3:41001 > 192.0.2.1:8080 (reply 10.88.0.2:80 > 192.0.2.3:41001)",
                "tcp 10.88.0.2:50000 > 192.0.2.4:443 (reply 192.0.2.4:443 > 192.0.2.1:50000)",
            ]
        );
        // Those that conntrack has are left alone, whatever it has made of their ports.
        let mut masqueraded = made[2].clone();
        masqueraded.reply.destination_port = 61000;
        let left = forgotten.entries(&[made[0].clone(), masqueraded], host);
        assert_eq!(left, [made[1].clone()]);
    }
}
