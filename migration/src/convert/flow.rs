//! Flows, and addresses that stand for others in tunnels.

use std::net::IpAddr;

use netmig::flow::{Alias, Flow, Protocol, TcpState, Tuple, Zone, ZoneScope};
use protocol::message::flow as wire;
use state::id::HostId;
use steering::flow_termination::FlowEnds;

use super::{Refused, Wire, plain_fields, same_fields, same_variants};

/// Flows of one anchor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowBatch {
    /// The anchor, or the next host on the way there; `None` for the source itself.
    pub anchor: Option<HostId>,
    /// The source's entries.
    pub flows: Vec<Flow>,
    /// What stands in the tunnel for the source's gateways and for addresses of the destination that are the
    /// other end of a flow.
    pub aliases: Vec<Alias>,
    /// Addresses of the destination that are the other end of a flow: such flows become local there.
    pub at_destination: Vec<IpAddr>,
}

same_variants! {
    Protocol => wire::Protocol { Tcp, Udp }
    ZoneScope => wire::ZoneScope { Both, Original, Reply }
}

plain_fields! {
    Tuple => wire::Tuple { source, destination, source_port, destination_port }
    TcpState => wire::TcpState { state, scales, flags }
}

same_fields! {
    Zone => wire::Zone { id, scope }
    FlowBatch => wire::FlowBatch { anchor, flows, aliases, at_destination }
    FlowEnds => wire::FlowEnds { protocol, own, far }
}

impl Wire for Flow {
    type Form = wire::Flow;

    fn into_wire(self) -> wire::Flow {
        let Self { protocol, original, reply, status, timeout, mark, zone, tcp } = self;
        wire::Flow {
            protocol: protocol.into_wire(),
            original: original.into_wire(),
            reply: reply.into_wire(),
            status,
            timeout,
            mark,
            zone: zone.into_wire(),
            tcp: tcp.into_wire(),
        }
    }

    fn from_wire(form: wire::Flow) -> Result<Self, Refused> {
        let wire::Flow { protocol, original, reply, status, timeout, mark, zone, tcp } = form;
        let is_four = original.source.is_ipv4();
        let others = [original.destination, reply.source, reply.destination];
        let is_of_one_family = others.iter().all(|address| address.is_ipv4() == is_four);
        let has_its_state = tcp.is_none() || protocol == wire::Protocol::Tcp;
        if !is_of_one_family || !has_its_state {
            return Err(Refused::Impossible("a flow"));
        }
        Ok(Self {
            protocol: Protocol::from_wire(protocol)?,
            original: Tuple::from_wire(original)?,
            reply: Tuple::from_wire(reply)?,
            status,
            timeout,
            mark,
            zone: Zone::from_wire(zone)?,
            tcp: Option::from_wire(tcp)?,
        })
    }
}

impl Wire for Alias {
    type Form = wire::Alias;

    fn into_wire(self) -> wire::Alias {
        let Self { here, address } = self;
        wire::Alias { here, address }
    }

    fn from_wire(wire::Alias { here, address }: wire::Alias) -> Result<Self, Refused> {
        if here.is_ipv4() != address.is_ipv4() {
            return Err(Refused::Impossible("an address in place of another one"));
        }
        Ok(Self { here, address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::comes_back;

    fn flow() -> Flow {
        let original = Tuple {
            source: [192, 0, 2, 3].into(),
            destination: [192, 0, 2, 1].into(),
            source_port: 41_000,
            destination_port: 8080,
        };
        let reply = Tuple {
            source: [10, 88, 0, 2].into(),
            destination: [192, 0, 2, 3].into(),
            source_port: 80,
            destination_port: 41_000,
        };
        Flow {
            protocol: Protocol::Tcp,
            original,
            reply,
            status: 14,
            timeout: 300,
            mark: 0x0900_0000,
            zone: Zone { id: 5, scope: ZoneScope::Reply },
            tcp: Some(TcpState { state: 3, scales: [7, 8], flags: [9, 10] }),
        }
    }

    #[test]
    fn flows_come_back() {
        let udp = Flow { protocol: Protocol::Udp, tcp: None, ..flow() };
        let stand_in = Alias { here: [10, 88, 0, 1].into(), address: [198, 18, 7, 7].into() };
        comes_back(&FlowBatch {
            anchor: Some(HostId([4; 16])),
            flows: vec![flow(), udp],
            aliases: vec![stand_in],
            at_destination: vec![[192, 0, 2, 2].into()],
        });
        comes_back(&FlowEnds {
            protocol: Protocol::Udp,
            own: "10.88.0.2:80".parse().unwrap(),
            far: "[2001:db8::3]:9".parse().unwrap(),
        });
        for scope in [ZoneScope::Both, ZoneScope::Original, ZoneScope::Reply] {
            comes_back(&Zone { id: 1, scope });
        }
    }

    #[test]
    fn flows_that_no_kernel_has_are_refused() {
        let six = "2001:db8::3".parse().unwrap();
        let plain = flow().into_wire();
        let mut two_families = plain;
        two_families.reply.destination = six;
        let mut other_state = plain;
        other_state.protocol = wire::Protocol::Udp;
        for strange in [two_families, other_state] {
            assert!(Flow::from_wire(strange).is_err(), "{strange:?}");
        }
        let stand_in = wire::Alias { here: six, address: [198, 18, 7, 7].into() };
        assert!(Alias::from_wire(stand_in).is_err());
    }
}
