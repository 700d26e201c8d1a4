//! What this host carries, for which container, and with which other host.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use netmig::flow::{Conntrack, Counted, Direction, Flow, Protocol, Tuple};
use netmig::peer_number::PeerNumber;
use netmig::tunnel::{self, Status};
use serde::Serialize;
use state::cause::Cause;
use state::directories::Directories;

use crate::moved_containers::{self, MovedContainer};

/// What this host is to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Far ends talk to its address; the container is elsewhere.
    Anchor,
    /// The container is here, the anchor elsewhere.
    Host,
    /// Neither: it sends on what comes.
    Between,
}

/// One direction of a flow as it arrives here.
#[derive(Debug, Serialize)]
pub struct Ends {
    /// The sender.
    pub from: SocketAddr,
    /// The receiver.
    pub to: SocketAddr,
}

/// A flow that this host carries, as people and programs are told of it.
#[derive(Debug, Serialize)]
pub struct CarriedFlow {
    /// The container's name; `None` if it is not known any more. Containers that had one address after another are all named
    /// (`db or web`): nothing tells whose flow it is.
    pub container: Option<String>,
    /// What this host is to it.
    pub role: Role,
    /// The peer's number here, as in the names of interfaces.
    pub peer: u8,
    /// Where its end of the tunnel is.
    pub peer_address: Option<IpAddr>,
    /// `wireguard`, `wireguard-go`, or `direct`: without encryption.
    pub tunnel: Option<String>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// `inbound` or `outbound`, as the container sees it.
    pub direction: &'static str,
    /// The original direction.
    pub original: Ends,
    /// The reply direction.
    pub reply: Ends,
    /// Of the original and of the reply direction; `None` unless the host counts them.
    pub bytes: Option<[u64; 2]>,
    /// Seconds since the container came or went.
    pub age: Option<u64>,
}

/// Lists the flows that this host carries.
///
/// # Errors
/// The kernel's tunnels or entries, or this host's notes, cannot be read.
pub async fn list(directories: &Directories) -> Result<Vec<CarriedFlow>, Cause> {
    let mut ways = BTreeMap::new();
    for peer in tunnel::list().await? {
        ways.extend(tunnel::status(peer).await?.map(|status| (peer, status)));
    }
    let notes = moved_containers::all(directories)?;
    let marked = Conntrack::open()?.marked()?;
    Ok(marked.iter().filter_map(|counted| line(counted, &notes, &ways)).collect())
}

/// What is known of a marked flow.
pub struct Seen<'a> {
    /// The note of its container; `None` if that is not known any more.
    pub note: Option<&'a MovedContainer>,
    role: Role,
    /// The host that carries the flow as well.
    pub peer: PeerNumber,
    direction: Direction,
}

/// Returns what this host has to do with a marked flow; `None` if nothing.
#[must_use]
pub fn seen<'a>(flow: &Flow, notes: &'a [MovedContainer]) -> Option<Seen<'a>> {
    let note = notes.iter().find(|note| flow.direction(&note.addresses).is_some());
    // Of a container that nobody knows any more the marks themselves tell where it is: the original
    // direction leads to it, or comes from it.
    let guess = [flow.reply.source, flow.original.source];
    let container = match note {
        Some(note) => &note.addresses[..],
        None if PeerNumber::of_original(flow.mark).is_some() == flow.is_translated() => &guess[..1],
        None => &guess[1..],
    };
    let (role, peer) = match (flow.leads_to(container), flow.anchor(container)) {
        (Some(peer), None) => (Role::Anchor, peer),
        (None, Some(peer)) => (Role::Host, peer),
        (Some(peer), Some(_)) => (Role::Between, peer),
        (None, None) => return None,
    };
    Some(Seen { note, role, peer, direction: flow.direction(container)? })
}

fn line(
    counted: &Counted,
    notes: &[MovedContainer],
    ways: &BTreeMap<PeerNumber, Status>,
) -> Option<CarriedFlow> {
    let flow = &counted.flow;
    let Seen { role, peer, direction, .. } = seen(flow, notes)?;
    let of_it: Vec<_> =
        notes.iter().filter(|note| flow.direction(&note.addresses).is_some()).collect();
    let mut names: Vec<&str> = of_it.iter().map(|note| note.name.as_str()).collect();
    names.sort_unstable();
    let only = if let [only] = of_it[..] { Some(only) } else { None };
    Some(CarriedFlow {
        container: (!names.is_empty()).then(|| names.join(" or ")),
        role,
        peer: peer.get(),
        peer_address: ways.get(&peer).and_then(|way| way.address),
        tunnel: ways.get(&peer).map(|way| way.kind.to_string()),
        protocol: flow.protocol,
        direction: match direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        },
        original: ends(flow.original),
        reply: ends(flow.reply),
        bytes: counted.bytes,
        age: only.map(MovedContainer::age),
    })
}

/// Returns both ends of one direction.
#[must_use]
pub fn ends(tuple: Tuple) -> Ends {
    Ends {
        from: SocketAddr::new(tuple.source, tuple.source_port),
        to: SocketAddr::new(tuple.destination, tuple.destination_port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netmig::flow::{Flow, Zone};

    fn flow(original: [&str; 2], reply: [&str; 2], mark: u32) -> Flow {
        let tuple = |[from, to]: [&str; 2]| {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            Tuple {
                source: from.ip(),
                destination: to.ip(),
                source_port: from.port(),
                destination_port: to.port(),
            }
        };
        Flow {
            protocol: Protocol::Udp,
            original: tuple(original),
            reply: tuple(reply),
            status: 0,
            timeout: 30,
            mark,
            zone: Zone::default(),
            tcp: None,
        }
    }

    fn told(flow: &Flow, notes: &[MovedContainer]) -> (Role, &'static str, u8) {
        let counted = Counted { flow: flow.clone(), bytes: None };
        let line = line(&counted, notes, &BTreeMap::new()).unwrap();
        (line.role, line.direction, line.peer)
    }

    #[test]
    fn containers_that_had_one_address_are_all_named() {
        let note = |name: &str, address: &str| MovedContainer {
            id: String::new(),
            name: name.to_owned(),
            addresses: vec![address.parse().unwrap()],
            moved: 0,
            exchange: Default::default(),
            detours: Vec::new(),
        };
        let ends = ["192.0.2.3:40000", "10.88.0.2:80"];
        let flow = flow(ends, [ends[1], ends[0]], 3 << 24);
        let counted = Counted { flow, bytes: None };
        let name = |notes: &[MovedContainer]| {
            let line = line(&counted, notes, &BTreeMap::new()).unwrap();
            (line.container, line.age.is_some())
        };
        let [web, db, other] =
            [note("web", "10.88.0.2"), note("db", "10.88.0.2"), note("other", "10.88.0.3")];
        assert_eq!(name(&[other.clone(), web.clone()]), (Some("web".to_owned()), true));
        assert_eq!(name(&[web, other, db]), (Some("db or web".to_owned()), false));
        assert_eq!(name(&[]), (None, false));
    }

    #[test]
    fn the_role_is_found_with_and_without_a_note() {
        let note = MovedContainer {
            id: String::new(),
            name: "web".to_owned(),
            addresses: vec!["10.88.0.2".parse().unwrap()],
            moved: 0,
            exchange: Default::default(),
            detours: Vec::new(),
        };
        let (client, host, inside) = ("192.0.2.3:40000", "192.0.2.1:8080", "10.88.0.2:80");
        let cases = [
            (flow([client, host], [inside, client], 3 << 16), (Role::Anchor, "inbound", 3)),
            (flow([client, inside], [inside, client], 3 << 24), (Role::Host, "inbound", 3)),
            (flow([inside, client], [client, host], 3 << 24), (Role::Anchor, "outbound", 3)),
            (flow([inside, client], [client, inside], 3 << 16), (Role::Host, "outbound", 3)),
        ];
        for (flow, wanted) in cases {
            assert_eq!(told(&flow, std::slice::from_ref(&note)), wanted);
            assert_eq!(told(&flow, &[]), wanted, "{flow}");
        }
        let between = flow([client, inside], [inside, client], 3 << 24 | 4 << 16);
        assert_eq!(told(&between, &[note]), (Role::Between, "inbound", 4));
    }
}
