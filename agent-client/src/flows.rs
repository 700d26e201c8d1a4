//! `agent-client flows`: what this host carries, for whom.

mod end;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use indicatif::HumanBytes;
use netmig::flow::{Conntrack, Counted, Direction, Flow, Protocol, Tuple};
use netmig::peer_number::PeerNumber;
use netmig::tunnel::{self, Status};
use serde::Serialize;
use state::cause::Cause;
use state::directories::Directories;
use steering::moved_containers::{self, MovedContainer};

pub use end::{FarEnd, run as end};

/// What this host is to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    /// Far ends talk to its address; the container is elsewhere.
    Anchor,
    /// The container is here, the anchor elsewhere.
    Host,
    /// Neither: it sends on what comes.
    Between,
}

/// One direction of a flow as it arrives here.
#[derive(Debug, Serialize)]
struct Ends {
    from: SocketAddr,
    to: SocketAddr,
}

/// A line of the list.
#[derive(Debug, Serialize)]
struct Line {
    /// `null` if it is not known any more.
    container: Option<String>,
    role: Role,
    /// The peer's number here, as in the names of interfaces.
    peer: u8,
    /// Where its end of the tunnel is.
    peer_address: Option<IpAddr>,
    /// `wireguard`, `wireguard-go`, or `direct`: without encryption.
    tunnel: Option<String>,
    protocol: Protocol,
    direction: &'static str,
    original: Ends,
    reply: Ends,
    /// Of the original and of the reply direction; `null` unless the host counts them.
    bytes: Option<[u64; 2]>,
    /// Seconds since the container came or went.
    age: Option<u64>,
}

/// Lists the flows on standard output.
pub async fn run(directories: &Directories, json: bool) -> Result<(), Cause> {
    let mut ways = BTreeMap::new();
    for peer in tunnel::list().await? {
        ways.extend(tunnel::status(peer).await?.map(|status| (peer, status)));
    }
    let notes = moved_containers::all(directories)?;
    let marked = Conntrack::open()?.marked()?;
    let lines: Vec<Line> =
        marked.iter().filter_map(|counted| line(counted, &notes, &ways)).collect();
    if json {
        println!("{}", serde_json::json!({ "flows": lines }));
    } else {
        print(&lines);
    }
    Ok(())
}

/// A flow of this list.
struct Seen<'a> {
    /// None if the container is not known any more.
    note: Option<&'a MovedContainer>,
    role: Role,
    peer: PeerNumber,
    direction: Direction,
}

/// What this host has to do with a marked flow.
fn seen<'a>(flow: &Flow, notes: &'a [MovedContainer]) -> Option<Seen<'a>> {
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
) -> Option<Line> {
    let flow = &counted.flow;
    let Seen { note, role, peer, direction } = seen(flow, notes)?;
    Some(Line {
        container: note.map(|note| note.name.clone()),
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
        age: note.map(MovedContainer::age),
    })
}

fn ends(tuple: Tuple) -> Ends {
    Ends {
        from: SocketAddr::new(tuple.source, tuple.source_port),
        to: SocketAddr::new(tuple.destination, tuple.destination_port),
    }
}

fn print(lines: &[Line]) {
    if lines.is_empty() {
        println!("This host carries no flows.");
        return;
    }
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([
        "container",
        "here",
        "peer",
        "tunnel",
        "",
        "direction",
        "from",
        "to",
        "bytes",
        "moved",
    ]);
    for line in lines {
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table.add_row([
            or_unknown(line.container.clone()),
            format!("{:?}", line.role).to_lowercase(),
            line.peer_address.map_or_else(|| line.peer.to_string(), |address| address.to_string()),
            or_unknown(line.tunnel.clone()),
            line.protocol.to_string(),
            line.direction.to_owned(),
            line.original.from.to_string(),
            line.original.to.to_string(),
            or_unknown(line.bytes.map(|[a, b]| HumanBytes(a.saturating_add(b)).to_string())),
            or_unknown(line.age.map(|seconds| format!("{seconds} s ago"))),
        ]);
    }
    println!("{table}");
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
