//! What becomes of a flow when its container moves: connmarks at the source, entries at the
//! destination.

use std::net::IpAddr;

use super::{
    Alias, Direction, Flow, Protocol, Readdressed, STATUS_ASSURED, STATUS_CONFIRMED,
    STATUS_SEEN_REPLY, TCP_BE_LIBERAL, Tuple, Zone,
};
use crate::peer_number::{ORIGINAL_MASK, PeerNumber, REPLY_MASK};

impl Flow {
    /// Returns connmark value and mask that steer the packets towards the container to `peer`, on
    /// the host that stays the anchor.
    ///
    /// The byte of the other direction stays as it is: those packets leave this host as before.
    #[must_use]
    pub fn mark_at_source(direction: Direction, peer: PeerNumber) -> (u32, u32) {
        match direction {
            Direction::Inbound => (peer.original_mark(), ORIGINAL_MASK),
            Direction::Outbound => (peer.reply_mark(), REPLY_MASK),
        }
    }

    /// Returns the entry that must replace this one on the host that stays the anchor; `None` if
    /// this one may stay.
    ///
    /// A flow whose other end is a gateway was mostly masqueraded on its way to the bridge. The
    /// kernel drops packets of a masqueraded flow that leave by another interface than before, and
    /// deletes its entry when the interface goes, as the bridge does after its last container
    /// (`nf_nat_oif_changed`, `nf_nat_masquerade.c`). An entry created by request stays, with the
    /// same NAT. It accepts any window, since it does not know the windows seen so far.
    #[must_use]
    pub fn recreated_at_anchor(&self, container: &[IpAddr], aliases: &[Alias]) -> Option<Self> {
        let inbound = self.direction(container)? == Direction::Inbound;
        if !inbound || self.anchor(container).is_some() {
            return None;
        }
        Alias::of(aliases, self.reply.destination)?;
        let tcp = self.tcp.map(|mut tcp| {
            tcp.flags = tcp.flags.map(|flags| flags | TCP_BE_LIBERAL);
            tcp
        });
        Some(Self { tcp, ..self.clone() })
    }

    /// Returns the entry that the destination has to create for this entry of the source; `None` if
    /// the flow is not the container's.
    ///
    /// Inside the tunnel packets carry the container's own address, as between the source and its
    /// container. So the tuples are what the container sees, without the source's NAT. The entry is
    /// marked as answered and assured, since firewalls on the destination would otherwise treat the
    /// next packet as the first of a new flow. It accepts any window, since it does not know the
    /// windows seen so far. Its timeout is at least that of an answered UDP flow, which the kernel
    /// would set at the next packet: a flow of less than two seconds has 30 s at the source, and
    /// its entry could expire before the loss of the path is noticed.
    ///
    /// If the other end is a gateway of the anchor, it comes through the tunnel as its alias, and
    /// the entry translates it; likewise a container's address that differs at the destination. A
    /// host that is not the anchor has an entry like that already.
    #[must_use]
    pub fn at_destination(
        &self,
        container: &[IpAddr],
        relocation: &Relocation<'_>,
    ) -> Option<Self> {
        let direction = self.direction(container)?;
        let (original, reply) = self.ends_at_destination(direction, container, relocation)?;
        let mark = match direction {
            Direction::Inbound => relocation.hop.reply_mark(),
            Direction::Outbound => relocation.hop.original_mark(),
        };
        let tcp = self.tcp.map(|mut tcp| {
            tcp.flags = tcp.flags.map(|flags| flags | TCP_BE_LIBERAL);
            tcp
        });
        Some(Self {
            protocol: self.protocol,
            original,
            reply,
            status: STATUS_CONFIRMED | STATUS_SEEN_REPLY | STATUS_ASSURED,
            timeout: match self.protocol {
                Protocol::Tcp => self.timeout,
                Protocol::Udp => self.timeout.max(relocation.udp_timeout),
            },
            mark,
            zone: Zone::default(),
            tcp,
        })
    }

    /// Returns the tuples of the entry at the destination.
    fn ends_at_destination(
        &self,
        direction: Direction,
        container: &[IpAddr],
        relocation: &Relocation<'_>,
    ) -> Option<(Tuple, Tuple)> {
        let is_anchor = self.anchor(container).is_none();
        let alias = Alias::of(relocation.aliases, self.other_end(container)?);
        let (mut original, mut reply) = match direction {
            _ if !is_anchor => (self.original, self.reply),
            Direction::Inbound => (self.reply.inverse(), self.reply),
            Direction::Outbound => (self.original, self.original.inverse()),
        };
        let (outer, inner) = match direction {
            Direction::Inbound => {
                original.source = alias.filter(|_| is_anchor).unwrap_or(original.source);
                (&mut original.destination, &mut reply.source)
            }
            Direction::Outbound => {
                reply.source = alias.filter(|_| is_anchor).unwrap_or(reply.source);
                (&mut reply.destination, &mut original.source)
            }
        };
        if let Some(other) = relocation.readdressed.iter().find(|other| other.old == *inner) {
            *inner = other.new;
            if is_anchor {
                *outer = other.tunnel;
            }
        }
        Some((original, reply))
    }
}

/// How flows come to a destination.
#[derive(Clone, Copy, Debug)]
pub struct Relocation<'a> {
    /// The destination's number for the host by which the flows come.
    pub hop: PeerNumber,
    /// The aliases of the source's gateways in the tunnel.
    pub aliases: &'a [Alias],
    /// The container's addresses that differ at the destination.
    pub readdressed: &'a [Readdressed],
    /// The destination's timeout of an answered UDP flow, in seconds
    /// ([`udp_timeout`](super::udp_timeout)).
    pub udp_timeout: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Aliases, TcpState, ZoneScope};

    fn tuple(source: &str, source_port: u16, destination: &str, destination_port: u16) -> Tuple {
        Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            source_port,
            destination_port,
        }
    }

    fn flow(original: Tuple, reply: Tuple) -> Flow {
        Flow {
            protocol: Protocol::Tcp,
            original,
            reply,
            status: 0x1ce,
            timeout: 431_999,
            mark: 0x0000_0007,
            zone: Zone { id: 4, scope: ZoneScope::Both },
            tcp: Some(TcpState { state: 3, scales: [7, 9], flags: [0x23, 0x03] }),
        }
    }

    fn by(hop: u8, aliases: &[Alias]) -> Relocation<'_> {
        let hop = PeerNumber::new(hop).unwrap();
        Relocation { hop, aliases, readdressed: &[], udp_timeout: 120 }
    }

    const CONTAINER: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(10, 88, 0, 2))];

    #[test]
    fn an_inbound_flow_loses_the_sources_translation() {
        let at_source = flow(
            tuple("192.0.2.3", 41000, "192.0.2.1", 8080),
            tuple("10.88.0.2", 80, "192.0.2.3", 41000),
        );
        assert_eq!(at_source.direction(&CONTAINER), Some(Direction::Inbound));
        let anchor = PeerNumber::new(9).unwrap();
        let there = at_source.at_destination(&CONTAINER, &by(anchor.get(), &[])).unwrap();
        assert_eq!(there.original, tuple("192.0.2.3", 41000, "10.88.0.2", 80));
        assert_eq!(there.reply, there.original.inverse());
        assert_eq!(there.mark, 9 << 24, "replies go back to the anchor, no other bit is set");
        assert_eq!(there.tcp.unwrap().flags, [0x2b, 0x0b], "liberal in both directions");
        assert_eq!((there.status, there.zone), (0x0e, Zone::default()));
        assert_eq!(Flow::mark_at_source(Direction::Inbound, anchor), (9 << 16, 0x00ff_0000));
        assert_eq!((there.anchor(&CONTAINER), there.leads_to(&CONTAINER)), (Some(anchor), None));
        let left = Flow { mark: 9 << 16, ..at_source };
        assert_eq!((left.anchor(&CONTAINER), left.leads_to(&CONTAINER)), (None, Some(anchor)));
    }

    #[test]
    fn a_young_udp_flow_has_the_time_of_an_answered_one() {
        let tuples = (
            tuple("192.0.2.3", 41000, "192.0.2.1", 5353),
            tuple("10.88.0.2", 53, "192.0.2.3", 41000),
        );
        let young =
            Flow { protocol: Protocol::Udp, tcp: None, timeout: 28, ..flow(tuples.0, tuples.1) };
        let there = |flow: &Flow| flow.at_destination(&CONTAINER, &by(9, &[])).unwrap().timeout;
        assert_eq!(there(&young), 120);
        assert_eq!(there(&Flow { timeout: 180, ..young }), 180, "an operator's own setting");
        assert_eq!(there(&flow(tuples.0, tuples.1)), 431_999);
    }

    #[test]
    fn an_inbound_flow_that_the_source_masqueraded_shows_the_gateway_as_its_client() {
        let at_source = flow(
            tuple("192.0.2.1", 41000, "192.0.2.1", 8080),
            tuple("10.88.0.2", 80, "10.88.0.1", 41000),
        );
        let there = at_source.at_destination(&CONTAINER, &by(1, &[])).unwrap();
        assert_eq!(there.original, tuple("10.88.0.1", 41000, "10.88.0.2", 80));
    }

    #[test]
    fn an_outbound_flow_keeps_the_containers_view() {
        let at_source = flow(
            tuple("10.88.0.2", 50000, "192.0.2.4", 443),
            tuple("192.0.2.4", 443, "192.0.2.1", 61000),
        );
        assert_eq!(at_source.direction(&CONTAINER), Some(Direction::Outbound));
        let anchor = PeerNumber::new(255).unwrap();
        let there = at_source.at_destination(&CONTAINER, &by(anchor.get(), &[])).unwrap();
        assert_eq!(there.original, at_source.original);
        assert!(!there.is_translated());
        assert_eq!(there.mark, 255 << 16);
        assert_eq!((there.anchor(&CONTAINER), there.leads_to(&CONTAINER)), (Some(anchor), None));
        assert_eq!(Flow::mark_at_source(Direction::Outbound, anchor), (255 << 24, 0xff00_0000));
    }

    #[test]
    fn a_gateway_comes_as_its_stand_in_and_is_seen_as_itself() {
        let gateway = "10.88.0.1".parse().unwrap();
        let aliases = [Alias { here: gateway, address: "198.18.0.7".parse().unwrap() }];
        let inbound = Flow {
            mark: 0,
            ..flow(
                tuple("127.0.0.1", 41000, "127.0.0.1", 8080),
                tuple("10.88.0.2", 80, "10.88.0.1", 41000),
            )
        };
        let there = inbound.at_destination(&CONTAINER, &by(9, &aliases)).unwrap();
        assert_eq!(there.original, tuple("198.18.0.7", 41000, "10.88.0.2", 80));
        assert_eq!(there.reply, inbound.reply, "the container sees the gateway");
        let outbound = Flow {
            mark: 0,
            ..flow(
                tuple("10.88.0.2", 50000, "10.88.0.1", 53),
                tuple("10.88.0.1", 53, "10.88.0.2", 50000),
            )
        };
        let away = outbound.at_destination(&CONTAINER, &by(9, &aliases)).unwrap();
        assert_eq!(away.original, outbound.original);
        assert_eq!(away.reply, tuple("198.18.0.7", 53, "10.88.0.2", 50000));
        // The next host gets what this one has, whatever gateways there are.
        let next = PeerNumber::new(4).unwrap();
        for flow in [there, away] {
            let on = flow.at_destination(&CONTAINER, &by(4, &aliases)).unwrap();
            assert_eq!((on.original, on.reply), (flow.original, flow.reply));
            assert_eq!(on.anchor(&CONTAINER), Some(next));
        }
        let aliases = Aliases::new([3; 16]);
        let all = Alias::needed(&[inbound], &CONTAINER, &[gateway], &aliases);
        assert_eq!(all, Ok(vec![aliases.of(gateway).unwrap()]));
    }

    #[test]
    fn a_container_with_another_address_is_translated_wherever_it_goes() {
        let plain = Flow {
            mark: 0,
            ..flow(
                tuple("192.0.2.3", 41000, "192.0.2.1", 8080),
                tuple("10.88.0.2", 80, "192.0.2.3", 41000),
            )
        };
        let opened = Flow {
            mark: 0,
            ..flow(
                tuple("10.88.0.2", 50000, "192.0.2.4", 443),
                tuple("192.0.2.4", 443, "192.0.2.1", 61000),
            )
        };
        let become_by = |old: &str, tunnel: &str, new: &str| Readdressed {
            old: old.parse().unwrap(),
            tunnel: tunnel.parse().unwrap(),
            new: new.parse().unwrap(),
        };
        let first = [become_by("10.88.0.2", "198.18.0.1", "10.88.0.9")];
        let tunnel = first[0].tunnel.to_string();
        let relocation = Relocation { readdressed: &first, ..by(9, &[]) };
        let inbound = plain.at_destination(&CONTAINER, &relocation).unwrap();
        assert_eq!(inbound.original, tuple("192.0.2.3", 41000, &tunnel, 80));
        assert_eq!(inbound.reply, tuple("10.88.0.9", 80, "192.0.2.3", 41000));
        let outbound = opened.at_destination(&CONTAINER, &relocation).unwrap();
        assert_eq!(outbound.original, tuple("10.88.0.9", 50000, "192.0.2.4", 443));
        assert_eq!(outbound.reply, tuple("192.0.2.4", 443, &tunnel, 50000));
        // On it goes, to a third address: the anchor does not know, and the second host sends on what
        // it gets from there as it came.
        let there = ["10.88.0.9".parse().unwrap()];
        let second = [become_by("10.88.0.9", "198.18.0.2", "10.99.0.4")];
        let relocation = Relocation { readdressed: &second, ..by(3, &[]) };
        let led = inbound.at_destination(&there, &relocation).unwrap();
        assert_eq!(led.original, inbound.original);
        assert_eq!(led.reply.source, second[0].new);
        let led = outbound.at_destination(&there, &relocation).unwrap();
        assert_eq!(led.reply, outbound.reply);
        assert_eq!(led.original.source, second[0].new);
        let called = Alias { here: there[0], address: first[0].tunnel };
        let anchor = PeerNumber::new(9).unwrap();
        let own = Flow { mark: 0, ..inbound.clone() };
        assert_eq!(Alias::of_anchors(&[inbound, own, outbound], &there), [(anchor, called)]);
        assert_eq!(Alias::of_anchors(&[plain, opened], &CONTAINER), []);
    }

    #[test]
    fn only_flows_of_a_gateway_are_made_anew() {
        let gateway = "10.88.0.1".parse().unwrap();
        let aliases = [Alias { here: gateway, address: "198.18.0.7".parse().unwrap() }];
        let made = |original, reply| Flow { mark: 7, ..flow(original, reply) };
        let direct = made(
            tuple("192.0.2.3", 41000, "192.0.2.1", 8080),
            tuple("10.88.0.2", 80, "192.0.2.3", 41000),
        );
        assert_eq!(direct.recreated_at_anchor(&CONTAINER, &aliases), None);
        let hidden = made(
            tuple("127.0.0.1", 41000, "127.0.0.1", 8080),
            tuple("10.88.0.2", 80, "10.88.0.1", 41000),
        );
        let recreated_at_anchor = hidden.recreated_at_anchor(&CONTAINER, &aliases).unwrap();
        assert_eq!(
            (recreated_at_anchor.original, recreated_at_anchor.reply),
            (hidden.original, hidden.reply)
        );
        assert_eq!(
            (recreated_at_anchor.mark, recreated_at_anchor.tcp.unwrap().flags),
            (7, [0x2b, 0x0b])
        );
        let outbound = made(
            tuple("10.88.0.2", 50000, "192.0.2.4", 443),
            tuple("192.0.2.4", 443, "192.0.2.1", 61000),
        );
        assert_eq!(outbound.recreated_at_anchor(&CONTAINER, &aliases), None);
    }

    #[test]
    fn other_flows_are_left_alone() {
        let other =
            flow(tuple("192.0.2.3", 1, "192.0.2.1", 2), tuple("10.88.0.3", 2, "192.0.2.3", 1));
        assert_eq!(other.direction(&CONTAINER), None);
        assert_eq!(other.at_destination(&CONTAINER, &by(1, &[])), None);
    }

    #[test]
    fn an_ipv6_flow_is_found_by_either_address() {
        let both = ["10.88.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let at_source = flow(
            tuple("2001:db8::3", 41000, "2001:db8::1", 8080),
            tuple("fd00::2", 80, "2001:db8::3", 41000),
        );
        let there = at_source.at_destination(&both, &by(2, &[])).unwrap();
        assert_eq!(there.original, tuple("2001:db8::3", 41000, "fd00::2", 80));
    }
}
