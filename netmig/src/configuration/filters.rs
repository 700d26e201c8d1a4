//! Packet filters: tables of nftables and of legacy iptables; and IPsec. No engine makes any inside of a
//! container.
//!
//! A legacy table that was only looked at exists too, with its chains and accepting policies: such a
//! blank table is left out. The kernel reports these tables by getsockopt(2) alone. Layout:
//! `include/uapi/linux/netfilter_ipv4/ip_tables.h`, `netfilter_ipv6/ip6_tables.h`,
//! `netfilter/x_tables.h`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::{Configuration, Fact, Kind};
use crate::netlink::attribute::{find_text, u16_at, u32_at};
use crate::netlink::message::{DUMP, request};
use crate::netlink::nfnetlink::{NFGENMSG, Subsystem, nfgenmsg};
use crate::netlink::route::list;
use crate::netlink::{Connection, Protocol, SocketError};

/// `NFTA_TABLE_NAME` (`include/uapi/linux/netfilter/nf_tables.h`).
const TABLE_NAME: u16 = 1;
/// Families by their numbers (`NFPROTO_*`).
const NFT_FAMILIES: &[(u8, &str)] =
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
    let word =
        NFT_FAMILIES.iter().find(|(number, _)| *number == family).map_or("?", |(_, word)| word);
    let name = find_text(payload.get(NFGENMSG..).unwrap_or_default(), TABLE_NAME);
    let text = format!("nftables table {word} {}", name.as_deref().unwrap_or("?"));
    Fact { kind: Kind::Filter, is_own: true, text }
}

/// Reads how many policies and security associations there are.
pub(super) fn ipsec(socket: &mut Connection, into: &mut Configuration) -> Result<(), SocketError> {
    for (request, what) in [(GET_ASSOCIATION, "security association"), (GET_POLICY, "policy")] {
        let number = list(socket, request, &[])?.len();
        if number > 0 {
            into.add_own(Kind::Ipsec, format!("IPsec {what} ({number})"));
        }
    }
    Ok(())
}

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`; the same numbers in IPv6.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// Bytes of a table's name, of `struct ipt_getinfo`, and of what comes before the entries in `struct
/// ipt_get_entries`.
const NAME: usize = 32;
const INFO: usize = 84;
const BEFORE_ENTRIES: usize = 40;
/// Where in `struct ipt_getinfo` the chains' mask, the first rule behind each chain's own, the number of
/// entries and their size stand.
const HOOKS: usize = 32;
const UNDERFLOW: usize = 56;
const ENTRIES: usize = 76;
const SIZE: usize = 80;
/// Most hooks of a table (`NF_INET_NUMHOOKS`).
const MOST_HOOKS: usize = 5;
/// Largest table that is read.
const LARGEST: usize = 64 << 20;
/// Where the verdict is in a standard target, and the one of `ACCEPT` (`-NF_ACCEPT - 1`).
const VERDICT: usize = 32;
const ACCEPT: i32 = -2;

/// A family of tables.
struct LegacyFamily {
    names: &'static str,
    word: &'static str,
    family: AddressFamily,
    level: i32,
    /// Where the place of its target stands in an entry.
    target: usize,
}

const LEGACY_FAMILIES: &[LegacyFamily] = &[
    LegacyFamily {
        names: "/proc/thread-self/net/ip_tables_names",
        word: "iptables",
        family: AddressFamily::Inet,
        level: libc::IPPROTO_IP,
        target: 88,
    },
    LegacyFamily {
        names: "/proc/thread-self/net/ip6_tables_names",
        word: "ip6tables",
        family: AddressFamily::Inet6,
        level: libc::IPPROTO_IPV6,
        target: 140,
    },
];
/// A table of arptables exists only if it has rules.
const ARP_NAMES: &str = "/proc/thread-self/net/arp_tables_names";

/// Reads the legacy tables in the calling thread's namespace that are not blank.
pub(super) fn legacy_tables() -> io::Result<Vec<Fact>> {
    let mut found = Vec::new();
    let mut add = |word, name: &str| {
        let text = format!("table {name} of {word}");
        found.push(Fact { kind: Kind::Filter, is_own: true, text });
    };
    for family in LEGACY_FAMILIES {
        for name in names(family.names) {
            if !family.is_blank(&name)? {
                add(family.word, &name);
            }
        }
    }
    names(ARP_NAMES).iter().for_each(|name| add("arptables", name));
    Ok(found)
}

/// Returns the names in a file; none where the kernel has no such tables.
fn names(file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|name| name.len() < NAME).map(str::to_owned).collect()
}

impl LegacyFamily {
    fn is_blank(&self, table: &str) -> io::Result<bool> {
        let asked = socket(self.family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let mut info = vec![0; INFO];
        info[..table.len()].copy_from_slice(table.as_bytes());
        get(&asked, self.level, GET_INFO, &mut info)?;
        let number = |at| u32_at(&info, at).unwrap_or(0);
        let hooks = number(HOOKS);
        // A rule for the policy of each chain, and one at the end of all.
        if number(ENTRIES) != hooks.count_ones() + 1 {
            return Ok(false);
        }
        let size = number(SIZE) as usize;
        if size > LARGEST {
            return Ok(false);
        }
        let mut entries = vec![0; BEFORE_ENTRIES + size];
        entries[..table.len()].copy_from_slice(table.as_bytes());
        entries[NAME..NAME + 4].copy_from_slice(&number(SIZE).to_ne_bytes());
        get(&asked, self.level, GET_ENTRIES, &mut entries)?;
        let entries = entries.get(BEFORE_ENTRIES..).unwrap_or_default();
        let policy = |hook: usize| {
            let at = number(UNDERFLOW + 4 * hook) as usize;
            let target = usize::from(u16_at(entries, at + self.target)?);
            u32_at(entries, at + target + VERDICT).map(u32::cast_signed)
        };
        let mut own = (0..MOST_HOOKS).filter(|hook| hooks & (1 << hook) != 0);
        Ok(own.all(|hook| policy(hook) == Some(ACCEPT)))
    }
}

/// Calls getsockopt(2) with a request in the buffer, which the answer overwrites.
fn get(socket: &OwnedFd, level: i32, option: i32, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads and writes no more bytes of the buffer than its length says.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
