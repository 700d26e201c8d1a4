//! Packets of flows that the destination counts.

use netmig::flow::{Flow, Protocol, STATUS_SEEN_REPLY, Tuple, Zone};
use netmig::table::{PacketCount, Passage};
use protocol::message as wire;

use super::{Refused, Wire, plain_fields, same_fields};

/// Most flows that a source names.
const MOST_COUNTED: usize = 8;

/// UDP flows of a container whose anchor is the source, as sources of earlier versions name them: at most eight.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountedFlows(pub Vec<CountedFlow>);

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountedFlow {
    /// Packets of the host that opened the flow, as they come to the source.
    pub original: Tuple,
    /// Packets of the other side, as they come to the source.
    pub reply: Tuple,
}

/// Packets of a flow since the destination began to count them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCount {
    /// Packets of the host that opened the flow.
    pub original: PacketCount,
    /// Packets of the other side.
    pub reply: PacketCount,
}

plain_fields! {
    PacketCount => wire::PacketCount { came, left }
}

same_fields! {
    FlowCount => wire::FlowCount { original, reply }
    Passage => wire::FlowPassage { towards, from }
}

impl CountedFlow {
    /// Returns the source's entry.
    #[must_use]
    pub fn entry(self) -> Flow {
        Flow {
            protocol: Protocol::Udp,
            original: self.original,
            reply: self.reply,
            status: STATUS_SEEN_REPLY,
            timeout: 0,
            mark: 0,
            zone: Zone::default(),
            tcp: None,
        }
    }
}

impl Wire for CountedFlow {
    type Form = wire::CountedFlow;

    fn into_wire(self) -> wire::CountedFlow {
        let Self { original, reply } = self;
        wire::CountedFlow { original: original.into_wire(), reply: reply.into_wire() }
    }

    fn from_wire(form: wire::CountedFlow) -> Result<Self, Refused> {
        let wire::CountedFlow { original, reply } = form;
        let is_four = original.source.is_ipv4();
        let others = [original.destination, reply.source, reply.destination];
        if others.iter().any(|address| address.is_ipv4() != is_four) {
            return Err(Refused::Impossible("a flow"));
        }
        Ok(Self { original: Tuple::from_wire(original)?, reply: Tuple::from_wire(reply)? })
    }
}

impl Wire for CountedFlows {
    type Form = Vec<wire::CountedFlow>;

    fn into_wire(self) -> Self::Form {
        self.0.into_wire()
    }

    fn from_wire(form: Self::Form) -> Result<Self, Refused> {
        if form.len() > MOST_COUNTED {
            return Err(Refused::TooMany { what: "flows to count", limit: MOST_COUNTED });
        }
        Vec::from_wire(form).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::comes_back;

    fn flow() -> CountedFlow {
        let original = Tuple {
            source: [192, 0, 2, 3].into(),
            destination: [192, 0, 2, 1].into(),
            source_port: 41_000,
            destination_port: 53,
        };
        let reply = Tuple { source: [10, 88, 0, 2].into(), ..original.inverse() };
        CountedFlow { original, reply }
    }

    #[test]
    fn counted_flows_and_their_counts_come_back() {
        comes_back(&CountedFlows(vec![flow(); MOST_COUNTED]));
        let count = |came, left| PacketCount { came, left };
        comes_back(&FlowCount { original: count(1, 2), reply: count(3, 4) });
        comes_back(&Passage { towards: count(1, 2), from: count(3, 4) });
    }

    #[test]
    fn flows_that_no_agent_has_counted_are_refused() {
        let many = vec![flow(); MOST_COUNTED + 1].into_wire();
        assert!(CountedFlows::from_wire(many).is_err());
        let mut two_families = flow().into_wire();
        two_families.reply.destination = "2001:db8::3".parse().unwrap();
        assert!(CountedFlows::from_wire(vec![two_families]).is_err());
    }
}
