//! Flows whose far end is on the container's new host: a local process, or a host behind its NAT.
//!
//! The anchor's entry holds what the packets between the two hosts are to the container; the new
//! host's entry holds what they are to the far end. Once both ends are on one host, one merged
//! entry replaces both, and no packet leaves the host:
//!
//! ```text
//! at the anchor      192.0.2.2:40000 > 192.0.2.1:8080    reply 10.88.0.2:80 > 192.0.2.2:40000
//! at the new host    10.88.0.7:40000 > 192.0.2.1:8080    reply 192.0.2.1:8080 > 192.0.2.2:40000
//! merged             10.88.0.7:40000 > 192.0.2.1:8080    reply 10.88.0.2:80 > 192.0.2.2:40000
//! ```
//!
//! The new host is the anchor from then on.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{
    Conntrack, Direction, Flow, FlowError, Protocol, STATUS_ASSURED, STATUS_CONFIRMED,
    STATUS_SEEN_REPLY, TCP_BE_LIBERAL, Tuple, Zone,
};

/// How often entries replace others that packets may recreate meanwhile.
const ATTEMPTS: usize = 5;

/// The entry that replaces those of the anchor and of the new host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedEntry {
    /// The merged entry.
    pub entry: Flow,
    /// The entries of this host that it replaces.
    pub replaced: Vec<Flow>,
}

impl Flow {
    /// Returns the tuple of this flow's packets from its anchor, which has this entry, to the far
    /// end's host. `None` if the flow is not the container's.
    #[must_use]
    pub fn towards_far_end(&self, container: &[IpAddr]) -> Option<Tuple> {
        Some(match self.direction(container)? {
            Direction::Inbound => self.original.inverse(),
            Direction::Outbound => self.reply.inverse(),
        })
    }

    /// Merges this entry, the anchor's, with the entry `there` that the far end's host has for the
    /// flow's packets, if it has one. `own` is the container's address there. The entry accepts any
    /// window, since it does not know the windows seen so far.
    fn merged(&self, container: &[IpAddr], own: IpAddr, there: Option<&Self>) -> Option<Self> {
        let arriving = self.towards_far_end(container)?;
        // Packets from the far end, as its host sees them first.
        let from_far_end = match there {
            Some(there) if there.original == arriving => there.reply,
            Some(there) => there.original,
            None => arriving.inverse(),
        };
        let (original, reply) = match self.direction(container)? {
            Direction::Inbound => (from_far_end, Tuple { source: own, ..self.reply }),
            Direction::Outbound => (Tuple { source: own, ..self.original }, from_far_end),
        };
        let tcp = self.tcp.map(|mut tcp| {
            tcp.flags = tcp.flags.map(|flags| flags | TCP_BE_LIBERAL);
            tcp
        });
        Some(Self {
            original,
            reply,
            status: STATUS_CONFIRMED | STATUS_SEEN_REPLY | STATUS_ASSURED,
            mark: 0,
            zone: Zone::default(),
            tcp,
            ..self.clone()
        })
    }
}

impl Conntrack {
    /// Returns the merged entries of flows whose far ends are on this host. Each flow is given as
    /// the anchor's entry and the entry with which it has arrived. `container` holds the addresses
    /// that the container had at the anchor, each with its address here. The result is `None` for
    /// flows whose far end has itself moved on to another host, and for those that do not come from
    /// one of the `anchor`'s addresses: they are others' connections.
    ///
    /// # Errors
    /// [`FlowError::Dump`] and [`FlowError::Entry`] when the table cannot be read.
    pub fn merged_entries(
        &mut self,
        flows: &[(Flow, Flow)],
        container: &[(IpAddr, IpAddr)],
        anchor: &BTreeSet<IpAddr>,
    ) -> Result<Vec<Option<MergedEntry>>, FlowError> {
        let olds: Vec<IpAddr> = container.iter().map(|(old, _)| *old).collect();
        let arriving = |flow: &Flow| {
            let tuple = flow.towards_far_end(&olds)?;
            anchor.contains(&tuple.source).then_some((flow.protocol, tuple))
        };
        let wanted: Vec<(Protocol, Tuple)> =
            flows.iter().filter_map(|(flow, _)| arriving(flow)).collect();
        let mut found = self.find(&wanted)?.into_iter();
        let join = |(flow, arrived): &(Flow, Flow)| {
            arriving(flow)?;
            let there = found.next().flatten();
            if there.as_ref().is_some_and(Self::is_led) {
                return None;
            }
            let old = match flow.direction(&olds)? {
                Direction::Inbound => flow.reply.source,
                Direction::Outbound => flow.original.source,
            };
            let own = container.iter().find(|(of, _)| *of == old)?.1;
            let entry = flow.merged(&olds, own, there.as_ref())?;
            Some(MergedEntry {
                entry,
                replaced: there.into_iter().chain([arrived.clone()]).collect(),
            })
        };
        Ok(flows.iter().map(join).collect())
    }

    /// Returns whether the connmark steers a direction of the flow to a peer.
    fn is_led(flow: &Flow) -> bool {
        use crate::peer_number::{ORIGINAL_MASK, REPLY_MASK};
        flow.mark & (ORIGINAL_MASK | REPLY_MASK) != 0
    }

    /// Replaces entries by merged ones. A packet that comes in between may recreate a replaced
    /// entry, which is replaced in turn.
    ///
    /// # Errors
    /// [`FlowError::InTheWay`] when entries are still recreated after several attempts; those of
    /// [`Conntrack::create`], [`Conntrack::delete`] and [`Conntrack::find`].
    pub fn replace_by_merged(&mut self, joined: &[MergedEntry]) -> Result<(), FlowError> {
        let replaced: Vec<Flow> = joined.iter().flat_map(|one| one.replaced.clone()).collect();
        let mut entries: Vec<Flow> = joined.iter().map(|one| one.entry.clone()).collect();
        self.delete(&replaced)?;
        for _ in 0..ATTEMPTS {
            let existing = self.create(&entries)?.existing;
            entries = existing.iter().filter_map(|index| entries.get(*index).cloned()).collect();
            if entries.is_empty() {
                return Ok(());
            }
            let of = |flow: &Flow| [flow.original, flow.reply].map(|tuple| (flow.protocol, tuple));
            let tuples: Vec<_> = entries.iter().flat_map(of).collect();
            let in_the_way: Vec<Flow> = self.find(&tuples)?.into_iter().flatten().collect();
            self.delete(&in_the_way)?;
        }
        Err(FlowError::InTheWay { count: entries.len(), flow: entries[0].to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::TcpState;

    const OLD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 88, 0, 2));
    const NEW: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 88, 0, 9));

    fn tuple(source: &str, destination: &str) -> Tuple {
        let (from, to): (std::net::SocketAddr, std::net::SocketAddr) =
            (source.parse().unwrap(), destination.parse().unwrap());
        Tuple {
            source: from.ip(),
            destination: to.ip(),
            source_port: from.port(),
            destination_port: to.port(),
        }
    }

    fn flow(original: Tuple, reply: Tuple) -> Flow {
        Flow {
            protocol: Protocol::Tcp,
            original,
            reply,
            status: 0x1ce,
            timeout: 431_999,
            mark: 5 << 16,
            zone: Zone::default(),
            tcp: Some(TcpState { state: 3, scales: [7, 7], flags: [3, 3] }),
        }
    }

    #[test]
    fn an_inbound_flow_comes_from_what_the_new_host_translates() {
        let anchor = flow(
            tuple("192.0.2.2:40000", "192.0.2.1:8080"),
            tuple("10.88.0.2:80", "192.0.2.2:40000"),
        );
        let masqueraded = flow(
            tuple("10.88.0.7:40001", "192.0.2.1:8080"),
            tuple("192.0.2.1:8080", "192.0.2.2:40000"),
        );
        assert_eq!(
            anchor.towards_far_end(&[OLD]),
            Some(tuple("192.0.2.1:8080", "192.0.2.2:40000"))
        );
        let joined = anchor.merged(&[OLD], NEW, Some(&masqueraded)).unwrap();
        assert_eq!(joined.original, masqueraded.original);
        assert_eq!(joined.reply, tuple("10.88.0.9:80", "192.0.2.2:40000"));
        assert_eq!((joined.mark, joined.status), (0, 0x0e), "led nowhere, and established");
        // A process, or one that has been silent for so long that nothing is known of it.
        let own = flow(anchor.original, anchor.original.inverse());
        for there in [Some(&own), None] {
            assert_eq!(anchor.merged(&[OLD], OLD, there).unwrap().original, anchor.original);
        }
        // Taken up in its middle, by a packet from the anchor.
        let reversed = flow(own.reply, own.original);
        let joined = anchor.merged(&[OLD], OLD, Some(&reversed)).unwrap();
        assert_eq!((joined.original, joined.reply), (anchor.original, anchor.reply));
    }

    #[test]
    fn an_outbound_flow_goes_to_what_the_new_host_publishes() {
        let anchor = flow(
            tuple("10.88.0.2:50000", "192.0.2.2:8080"),
            tuple("192.0.2.2:8080", "192.0.2.1:61000"),
        );
        let published = flow(
            tuple("192.0.2.1:61000", "192.0.2.2:8080"),
            tuple("10.88.0.7:80", "192.0.2.1:61000"),
        );
        let joined = anchor.merged(&[OLD], NEW, Some(&published)).unwrap();
        assert_eq!(joined.original, tuple("10.88.0.9:50000", "192.0.2.2:8080"));
        assert_eq!(joined.reply, published.reply);
        let own = flow(anchor.reply.inverse(), anchor.reply);
        let joined = anchor.merged(&[OLD], OLD, Some(&own)).unwrap();
        assert_eq!((joined.original, joined.reply), (anchor.original, anchor.reply));
        assert_eq!(anchor.merged(&[NEW], NEW, None), None, "another container's");
    }
}
