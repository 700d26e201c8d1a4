//! Tables of nftables, and IPsec. No engine makes any inside of a container.

use std::io;

use super::{Configuration, Fact, Kind, list};
use crate::netns::socket::KernelSocket;
use crate::nfnetlink::attribute::Attributes;
use crate::nfnetlink::message::{DUMP, Head, NFGENMSG, append, kind};
use crate::nfnetlink::{Options, Socket, SocketError, subsystem};

/// `NFT_MSG_GETTABLE` and `NFTA_TABLE_NAME` (`include/uapi/linux/netfilter/nf_tables.h`).
const GET_TABLE: u8 = 1;
const TABLE_NAME: u16 = 1;
/// Families by their numbers (`NFPROTO_*`).
const FAMILIES: &[(u8, &str)] =
    &[(1, "inet"), (2, "ip"), (3, "arp"), (5, "netdev"), (7, "bridge"), (10, "ip6")];

/// `XFRM_MSG_GETSA` and `XFRM_MSG_GETPOLICY` (`include/uapi/linux/xfrm.h`).
const GET_ASSOCIATION: u16 = 0x12;
const GET_POLICY: u16 = 0x15;

/// Reads the tables of nftables in the calling thread's namespace.
pub(super) fn tables() -> Result<Vec<Fact>, SocketError> {
    let socket = Socket::open(Options::default())?;
    let mut request = Vec::new();
    let kind = kind(subsystem::NFTABLES, GET_TABLE);
    append(&mut request, Head { kind, flags: DUMP, sequence: 1, family: 0, resource: 0 }, |_| ());
    let mut found = Vec::new();
    let mut buffer = Socket::buffer();
    // Tables that come or go meanwhile are seen or not; the frozen original is read once more.
    let _consistent = socket.dump(&request, 1, &mut buffer, |payload| {
        found.push(table(payload));
        Ok::<_, SocketError>(())
    })?;
    Ok(found)
}

fn table(payload: &[u8]) -> Fact {
    let family = payload.first().copied().unwrap_or(0);
    let word = FAMILIES.iter().find(|(number, _)| *number == family).map_or("?", |(_, word)| word);
    let mut attributes = Attributes::new(payload.get(NFGENMSG..).unwrap_or_default());
    let name = attributes
        .find_map(|attribute| attribute.ok().filter(|one| one.kind == TABLE_NAME)?.text().ok());
    let text = format!("nftables table {word} {}", name.unwrap_or("?"));
    Fact { kind: Kind::Filter, is_own: true, text }
}

/// Reads how many policies and associations there are.
pub(super) fn ipsec(socket: &mut KernelSocket, into: &mut Configuration) -> io::Result<()> {
    for (request, what) in [(GET_ASSOCIATION, "security association"), (GET_POLICY, "policy")] {
        let number = list(socket, request, &[])?.len();
        if number > 0 {
            into.add_own(Kind::Ipsec, format!("IPsec {what} ({number})"));
        }
    }
    Ok(())
}
