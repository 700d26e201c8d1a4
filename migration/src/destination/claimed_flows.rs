//! Judges the entries that a source asks for: they have to be the arriving container's.
//!
//! A source that is the anchor of a flow gives its own entry, of which this host takes the container's view
//! ([`Flow::at_destination`]). Of a flow whose anchor is a third host it gives what it has been given, with the
//! translation that this anchor needs. Such an entry could as well translate packets that have nothing to do
//! with the container: a connection to a port of this host, one of another container here, or one that this
//! host forwards.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netmig::flow::{Conntrack, Direction, Flow, is_alias};
use netmig::path_trial::is_one_host;
use state::cause::Cause;
use steering::port_forward;
use tokio::runtime::Handle;

use super::server_context::ServerContext;

/// The source asks for an entry that is none of the container's.
#[derive(Debug, thiserror::Error)]
#[error(
    "the source asks for an entry that is not one of the container's flows as an anchor leads them here: {0}"
)]
pub struct NotOfContainer(String);

/// Whose entries may be made here.
#[derive(Debug)]
pub struct Claims {
    host: &'static ServerContext,
    /// The container's ID.
    id: String,
    /// Its addresses here.
    own: Vec<IpAddr>,
    /// This host's addresses, and aliases by which new connections come here for other containers.
    taken: BTreeSet<IpAddr>,
}

impl Claims {
    /// Makes those of a container with this ID that has these addresses, on a host with those.
    ///
    /// # Errors
    /// The notes of what is forwarded cannot be read.
    pub fn new(
        host: &'static ServerContext,
        id: String,
        own: Vec<IpAddr>,
        here: BTreeSet<IpAddr>,
    ) -> Result<Self, Cause> {
        let mut taken = here;
        let others = port_forward::all(&host.directories)?.into_iter().filter(|note| note.id != id);
        let ways = others.flat_map(|note| note.readdressed).map(|(by, _)| by);
        taken.extend(ways.filter(|by| is_alias(*by)));
        Ok(Self { host, id, own, taken })
    }

    /// Checks entries before any of them is made.
    ///
    /// # Errors
    /// [`NotOfContainer`] for the first one that may not be made.
    pub fn check(&self, entries: &[Flow]) -> Result<(), NotOfContainer> {
        let mut ends = BTreeSet::new();
        for entry in entries {
            match judge(entry, &self.own, &self.taken) {
                Claim::Own => {}
                Claim::OwnUnlessHere(end) => drop(ends.insert(end)),
                Claim::Foreign => return Err(NotOfContainer(entry.to_string())),
            }
        }
        if ends.is_empty() {
            return Ok(());
        }
        let ends: Vec<IpAddr> = ends.into_iter().collect();
        // The caller has left this thread to blocking work. The engine is asked in rare cases alone.
        let holders = Handle::current().block_on(self.host.engine.holders(&ends, &self.id));
        match holders.first() {
            Some(holder) => {
                let (container, address) = (&holder.container, holder.address);
                Err(NotOfContainer(format!("{address} is that of container {container} here")))
            }
            None => Ok(()),
        }
    }

    /// Deletes what is in the way of entries, if all of that is the container's: an earlier holder of its
    /// address may have left it. Otherwise nothing is deleted, and the first entry that is another's is given.
    ///
    /// # Errors
    /// The table cannot be read or changed.
    pub fn clear(
        &self,
        conntrack: &mut Conntrack,
        entries: &[Flow],
    ) -> Result<Option<Flow>, Cause> {
        let tuples = entries.iter().flat_map(|flow| [flow.original, flow.reply].map(|t| (flow, t)));
        let tuples: Vec<_> = tuples.map(|(flow, tuple)| (flow.protocol, tuple)).collect();
        let found: Vec<Flow> = conntrack.find(&tuples)?.into_iter().flatten().collect();
        if let Some(other) = found.iter().find(|flow| flow.own_end(&self.own).is_none()) {
            return Ok(Some(other.clone()));
        }
        conntrack.delete(&found)?;
        Ok(None)
    }
}

/// Deletes those of the entries that are there and belong to a container with these addresses.
///
/// # Errors
/// The table cannot be read or changed.
pub fn forget(entries: &[Flow], own: &[IpAddr]) -> Result<(), Cause> {
    let mut conntrack = Conntrack::open()?;
    let tuples: Vec<_> = entries.iter().map(|flow| (flow.protocol, flow.original)).collect();
    let mut found: Vec<Flow> = conntrack.find(&tuples)?.into_iter().flatten().collect();
    found.retain(|flow| flow.own_end(own).is_some());
    conntrack.delete(&found)?;
    Ok(())
}

/// What an entry is to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// It changes nothing but packets from and to the container.
    Own,
    /// The same, unless this address belongs to another container here.
    OwnUnlessHere(IpAddr),
    /// It changes packets of others.
    Foreign,
}

/// Judges an entry by the container's addresses, and those that are others' here.
///
/// Seen from the container it has to be a flow with one of its addresses. In the tunnel the two ends may have
/// others, and the ports are the same: the far end may have an alias. The container's address may be an alias
/// as well, or the one by which the anchor knows it, which it had there. Nobody here can tell whether it had;
/// but packets to it that other hosts send do not come to this host, and those of this host and its
/// containers are recognised by their senders.
fn judge(entry: &Flow, own: &[IpAddr], taken: &BTreeSet<IpAddr>) -> Claim {
    // Each from the far end to the container.
    let (inner, outer) = match entry.direction(own) {
        Some(Direction::Inbound) => (entry.reply.inverse(), entry.original),
        Some(Direction::Outbound) => (entry.original.inverse(), entry.reply),
        None => return Claim::Foreign,
    };
    let has_same_ports =
        (inner.source_port, inner.destination_port) == (outer.source_port, outer.destination_port);
    let is_v4 = inner.destination.is_ipv4();
    let all = [inner.source, outer.source, outer.destination];
    let has_one_family = all.iter().all(|address| address.is_ipv4() == is_v4);
    let has_one_far_end = inner.source == outer.source || is_alias(outer.source);
    if !has_same_ports || !has_one_family || !has_one_far_end {
        return Claim::Foreign;
    }
    if inner.destination == outer.destination {
        return Claim::Own;
    }
    let is_elsewhere = |address: IpAddr| is_one_host(address) && !taken.contains(&address);
    if !is_elsewhere(outer.destination) {
        Claim::Foreign
    } else if is_v4 && is_alias(outer.destination) {
        // Nobody but agents uses these.
        Claim::Own
    } else if is_elsewhere(outer.source) {
        Claim::OwnUnlessHere(outer.source)
    } else {
        Claim::Foreign
    }
}

#[cfg(test)]
mod tests {
    use netmig::flow::{Alias, Protocol, Readdressed, Relocation, Tuple, Zone};
    use netmig::peer_number::PeerNumber;

    use super::*;

    const OWN: &str = "10.88.0.9";
    const TAKEN: [&str; 5] = ["192.0.2.2", "10.88.0.1", "2001:db8::2", "fd00::1", "198.18.0.99"];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn tuple(source: (&str, u16), destination: (&str, u16)) -> Tuple {
        Tuple {
            source: ip(source.0),
            destination: ip(destination.0),
            source_port: source.1,
            destination_port: destination.1,
        }
    }

    fn flow(original: Tuple, reply: Tuple, mark: u32) -> Flow {
        let (protocol, zone) = (Protocol::Udp, Zone::default());
        Flow { protocol, original, reply, status: 0xe, timeout: 9, mark, zone, tcp: None }
    }

    fn judged(original: Tuple, reply: Tuple) -> Claim {
        let taken = TAKEN.iter().map(|text| ip(text)).collect();
        judge(&flow(original, reply, 0), &[ip(OWN), ip("fd00::9")], &taken)
    }

    #[test]
    fn entries_that_translate_packets_of_others_are_foreign() {
        let far = "198.51.100.7";
        let foreign = [
            // A port of this host.
            (tuple((far, 5000), ("192.0.2.2", 22)), tuple((OWN, 22), (far, 5000))),
            (tuple((far, 5000), ("127.0.0.1", 22)), tuple((OWN, 22), (far, 5000))),
            // What this host sends to another one.
            (
                tuple(("192.0.2.2", 5000), ("192.0.2.9", 443)),
                tuple((OWN, 443), ("192.0.2.2", 5000)),
            ),
            (tuple(("10.88.0.1", 5000), ("10.88.0.3", 80)), tuple((OWN, 80), ("10.88.0.1", 5000))),
            // Another port of the container, or another client.
            (tuple((far, 5000), (OWN, 22)), tuple((OWN, 80), (far, 5000))),
            (tuple((far, 5000), (OWN, 80)), tuple((OWN, 80), (far, 5001))),
            (tuple((far, 5000), (OWN, 80)), tuple((OWN, 80), ("198.51.100.8", 5000))),
            // Answers of others become answers to the container.
            (tuple((OWN, 5000), (far, 443)), tuple(("192.0.2.9", 443), ("192.0.2.2", 5000))),
            (tuple((OWN, 5000), (far, 443)), tuple((far, 443), ("192.0.2.2", 61000))),
            // No flow of the container.
            (tuple((far, 5000), ("192.0.2.2", 80)), tuple(("10.88.0.3", 80), (far, 5000))),
            // Unique local addresses may be those of containers, and aliases may be others'.
            (
                tuple(("2001:db8::7", 5000), ("fd00::1", 80)),
                tuple(("fd00::9", 80), ("2001:db8::7", 5000)),
            ),
            (tuple((far, 5000), ("198.18.0.99", 80)), tuple((OWN, 80), (far, 5000))),
            // Two families.
            (tuple((far, 5000), ("fd00::9", 80)), tuple((OWN, 80), (far, 5000))),
        ];
        for (original, reply) in foreign {
            assert_eq!(judged(original, reply), Claim::Foreign, "{original}, reply {reply}");
        }
    }

    #[test]
    fn a_connection_of_another_container_here_is_asked_about() {
        let (other, far) = ("10.88.0.3", "198.51.100.7");
        let original = tuple((other, 5000), (far, 443));
        let claim = judged(original, tuple((OWN, 443), (other, 5000)));
        assert_eq!(claim, Claim::OwnUnlessHere(ip(other)));
    }

    #[test]
    fn entries_that_honest_sources_ask_for_are_the_containers() {
        let plain = (
            tuple(("198.51.100.7", 41000), ("203.0.113.1", 8080)),
            tuple(("10.88.0.2", 80), ("198.51.100.7", 41000)),
        );
        let opened = (
            tuple(("10.88.0.2", 50000), ("198.51.100.7", 443)),
            tuple(("198.51.100.7", 443), ("203.0.113.1", 61000)),
        );
        let hidden = (
            tuple(("127.0.0.1", 41000), ("127.0.0.1", 8080)),
            tuple(("10.88.0.2", 80), ("10.88.0.1", 41000)),
        );
        let stand_ins = [Alias { here: ip("10.88.0.1"), address: ip("198.18.0.7") }];
        let way = |from: &str, tunnel: &str, to: &str| {
            vec![Readdressed { old: ip(from), tunnel: ip(tunnel), new: ip(to) }]
        };
        // To another address at once; with the same one, and then another one; with two in a row.
        let moves = [
            vec![way("10.88.0.2", "198.18.0.1", OWN)],
            vec![vec![], way("10.88.0.2", "198.18.0.1", OWN)],
            vec![
                vec![],
                way("10.88.0.2", "198.18.0.1", "10.77.0.4"),
                way("10.77.0.4", "198.19.0.1", OWN),
            ],
        ];
        let taken: BTreeSet<IpAddr> = TAKEN.iter().map(|text| ip(text)).collect();
        for hops in moves {
            for (original, reply) in [plain, opened, hidden] {
                let mut arrived = flow(original, reply, 0);
                let mut container = ip("10.88.0.2");
                for readdressed in &hops {
                    let (hop, stand_ins) = (PeerNumber::new(9).unwrap(), &stand_ins[..]);
                    let aliases = stand_ins;
                    let arrival = Relocation { hop, aliases, readdressed, udp_timeout: 120 };
                    arrived = arrived.at_destination(&[container], &arrival).unwrap();
                    container = readdressed.first().map_or(container, |other| other.new);
                }
                assert_eq!(container, ip(OWN));
                let claim = judge(&arrived, &[container], &taken);
                assert_ne!(claim, Claim::Foreign, "{arrived} over {} moves", hops.len());
            }
        }
    }
}
