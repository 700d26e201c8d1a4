//! Tables of nftables, and IPsec. No engine makes any inside of a container.

use super::{Configuration, Fact, Kind};
use crate::netlink::attribute::find_text;
use crate::netlink::message::{DUMP, request};
use crate::netlink::nfnetlink::{NFGENMSG, Subsystem, nfgenmsg};
use crate::netlink::route::list;
use crate::netlink::{Connection, Protocol, SocketError};

/// `NFTA_TABLE_NAME` (`include/uapi/linux/netfilter/nf_tables.h`).
const TABLE_NAME: u16 = 1;
/// Families by their numbers (`NFPROTO_*`).
const FAMILIES: &[(u8, &str)] =
    &[(1, "inet"), (2, "ip"), (3, "arp"), (5, "netdev"), (7, "bridge"), (10, "ip6")];

/// `XFRM_MSG_GETSA` and `XFRM_MSG_GETPOLICY` (`include/uapi/linux/xfrm.h`).
const GET_ASSOCIATION: u16 = 0x12;
const GET_POLICY: u16 = 0x15;

/// Reads the tables of nftables in the calling thread's namespace.
pub(super) fn tables() -> Result<Vec<Fact>, SocketError> {
    let kind = Subsystem::NfTables.kind(libc::NFT_MSG_GETTABLE);
    let mut asked = request(kind, DUMP, &nfgenmsg(0, 0), |_| ());
    let mut found = Vec::new();
    // Tables that come or go meanwhile are seen or not; the frozen original is read once more.
    let _consistent = Connection::open(Protocol::Netfilter)?.dump(&mut asked, |payload| {
        found.push(table(payload));
        Ok(())
    })?;
    Ok(found)
}

fn table(payload: &[u8]) -> Fact {
    let family = payload.first().copied().unwrap_or(0);
    let word = FAMILIES.iter().find(|(number, _)| *number == family).map_or("?", |(_, word)| word);
    let name = find_text(payload.get(NFGENMSG..).unwrap_or_default(), TABLE_NAME);
    let text = format!("nftables table {word} {}", name.as_deref().unwrap_or("?"));
    Fact { kind: Kind::Filter, is_own: true, text }
}

/// Reads how many policies and associations there are.
pub(super) fn ipsec(socket: &mut Connection, into: &mut Configuration) -> Result<(), SocketError> {
    for (request, what) in [(GET_ASSOCIATION, "security association"), (GET_POLICY, "policy")] {
        let number = list(socket, request, &[])?.len();
        if number > 0 {
            into.add_own(Kind::Ipsec, format!("IPsec {what} ({number})"));
        }
    }
    Ok(())
}
