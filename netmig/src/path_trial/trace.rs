//! The trace of packets through nftables (`meta nftrace`): which rules and policies they met.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::flow::{Protocol, Tuple};
use crate::netlink::attribute::Attribute;
use crate::netlink::message::Message;
use crate::netlink::nfnetlink::{Subsystem, attributes};
use crate::netlink::{Malformed, Options, Protocol as Netlink, Socket, SocketError};
use crate::table::{CHAIN_POSTROUTING, TABLE};

/// Attribute numbers (`include/uapi/linux/netfilter/nf_tables.h`, `enum nft_trace_attributes`).
mod nfta {
    pub(super) const TABLE: u16 = 1;
    pub(super) const CHAIN: u16 = 2;
    pub(super) const RULE_HANDLE: u16 = 3;
    pub(super) const TYPE: u16 = 4;
    pub(super) const VERDICT: u16 = 5;
    pub(super) const ID: u16 = 6;
    pub(super) const NETWORK_HEADER: u16 = 8;
    pub(super) const TRANSPORT_HEADER: u16 = 9;
    pub(super) const POLICY: u16 = 16;
    pub(super) const VERDICT_CODE: u16 = 1;
}

/// `NFT_TRACETYPE_POLICY`.
const POLICY: u32 = 1;
const DROP: u32 = 0;
/// More packets than are ever traced at a time.
const MOST_PACKETS: usize = 4096;
/// Longest name of a table or chain that is reported.
const NAME: usize = 128;

/// A rule, or a chain's policy, that drops packets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DropRule {
    /// Number of the table's family.
    pub family: u8,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// Handle of the rule; `None` for the chain's policy.
    pub rule: Option<u64>,
}

impl DropRule {
    /// Returns whether rules for flows can be added to its chain. False if iptables manages the
    /// table: it does not understand these rules, and then refuses to list the table.
    #[must_use]
    pub fn can_be_opened(&self) -> bool {
        matches!(self.family_name(), "inet" | "ip" | "ip6") && !self.is_of_iptables()
    }

    /// Returns whether iptables manages its table.
    #[must_use]
    pub fn is_of_iptables(&self) -> bool {
        const TABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];
        matches!(self.family_name(), "ip" | "ip6") && TABLES.contains(&self.table.as_str())
    }

    /// Returns whether another one is in the same chain.
    #[must_use]
    pub fn is_same_chain(&self, other: &Self) -> bool {
        (self.family, &self.table, &self.chain) == (other.family, &other.table, &other.chain)
    }

    /// Returns the family's name, as nft(8) writes it.
    #[must_use]
    pub fn family_name(&self) -> &'static str {
        match i32::from(self.family) {
            libc::NFPROTO_INET => "inet",
            libc::NFPROTO_IPV4 => "ip",
            libc::NFPROTO_IPV6 => "ip6",
            libc::NFPROTO_BRIDGE => "bridge",
            libc::NFPROTO_NETDEV => "netdev",
            _ => "unknown",
        }
    }
}

impl fmt::Display for DropRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, chain, rule, .. } = self;
        match rule {
            None => write!(f, "the policy")?,
            Some(handle) => write!(f, "rule {handle}")?,
        }
        write!(f, " of chain {chain} in nftables' table {} {table}", self.family_name())
    }
}

/// What a host has seen of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing: it has not come.
    Unseen,
    /// It came, and has not left.
    Stuck,
    /// It came, and was forwarded to the peer.
    Forwarded,
    /// It came, and was about to leave this host: it has arrived.
    Arrived,
    /// A rule or policy dropped it.
    Dropped(DropRule),
}

impl Fate {
    /// Returns whether the packet's fate is known.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        !matches!(self, Self::Unseen | Self::Stuck)
    }
}

/// A socket that receives the trace.
pub(crate) struct Tracer {
    socket: Socket,
    buffer: Vec<u8>,
    packets: HashMap<u32, (Protocol, Tuple)>,
}

/// The content of one message.
#[derive(Debug, PartialEq, Eq)]
struct Event {
    packet: u32,
    /// The packet's current tuple, where the message has it.
    tuple: Option<(Protocol, Tuple)>,
    fate: Option<Fate>,
}

impl Tracer {
    pub(crate) fn open() -> Result<Self, SocketError> {
        let groups = &[libc::NFNLGRP_NFTRACE as u32];
        let options = Options {
            receive_buffer: Some(4 << 20),
            timeout: Duration::from_secs(1),
            no_enobufs: true,
            groups,
        };
        let (socket, buffer) = (Socket::open(Netlink::Netfilter, options)?, Socket::buffer());
        Ok(Self { socket, buffer, packets: HashMap::new() })
    }

    /// Reads what is known so far. Passes each packet's tuple as it came to this host, and its
    /// fate, to `each`.
    pub(crate) fn read(
        &mut self,
        mut each: impl FnMut((Protocol, Tuple), Fate),
    ) -> Result<(), SocketError> {
        while let Some(messages) = self.socket.poll(&mut self.buffer)? {
            for message in messages {
                let Message::Data { kind, payload, .. } = message? else { continue };
                if kind != Subsystem::NfTables.kind(libc::NFT_MSG_TRACE) {
                    continue;
                }
                let Some(event) = event(payload)? else { continue };
                // The first message has the tuple before NAT.
                if let Some(tuple) = event.tuple
                    && self.packets.len() < MOST_PACKETS
                {
                    self.packets.entry(event.packet).or_insert(tuple);
                }
                if let Some(packet) = self.packets.get(&event.packet) {
                    each(*packet, event.fate.unwrap_or(Fate::Stuck));
                }
            }
        }
        Ok(())
    }
}

fn event(payload: &[u8]) -> Result<Option<Event>, Malformed> {
    let family = *payload.first().ok_or(Malformed("a message without its header"))?;
    let mut found: HashMap<u16, Attribute<'_>> = HashMap::new();
    for attribute in attributes(payload)? {
        let attribute = attribute?;
        found.insert(attribute.kind, attribute);
    }
    let number = |kind| found.get(&kind).map(Attribute::be32).transpose();
    let name = |kind| -> Result<String, Malformed> {
        let text = found.get(&kind).map(Attribute::text).transpose()?.unwrap_or_default();
        Ok(text.chars().take(NAME).collect())
    };
    let Some(packet) = number(nfta::ID)? else { return Ok(None) };
    let headers = (found.get(&nfta::NETWORK_HEADER), found.get(&nfta::TRANSPORT_HEADER));
    let tuple = match headers {
        (Some(network), Some(transport)) => tuple(network.value, transport.value),
        _ => None,
    };
    let is_policy = number(nfta::TYPE)? == Some(POLICY);
    let mut code = None;
    for part in found.get(&nfta::VERDICT).into_iter().flat_map(Attribute::nested) {
        let part = part?;
        if part.kind == nfta::VERDICT_CODE {
            code = Some(part.be32()?);
        }
    }
    // A policy has an attribute of its own.
    let code = if is_policy { number(nfta::POLICY)? } else { code };
    let (table, chain) = (name(nfta::TABLE)?, name(nfta::CHAIN)?);
    let last = table == TABLE && chain == CHAIN_POSTROUTING;
    let fate = match (code, last) {
        (Some(DROP), true) => Some(Fate::Arrived),
        (Some(DROP), false) => {
            let rule = found.get(&nfta::RULE_HANDLE).filter(|_| !is_policy);
            let rule = rule.map(Attribute::be64).transpose()?;
            Some(Fate::Dropped(DropRule { family, table, chain, rule }))
        }
        (Some(_), true) if is_policy => Some(Fate::Forwarded),
        _ => None,
    };
    Ok(Some(Event { packet, tuple, fate }))
}

/// Parses headers of IPv4 or IPv6 and of TCP or UDP; `None` for anything else.
fn tuple(network: &[u8], transport: &[u8]) -> Option<(Protocol, Tuple)> {
    let four =
        |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(network.get(at..at + 4)?).ok()?));
    let six =
        |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(network.get(at..at + 16)?).ok()?));
    let (number, source, destination): (u8, IpAddr, IpAddr) = match network.first()? >> 4 {
        4 => (*network.get(9)?, four(12)?.into(), four(16)?.into()),
        6 => (*network.get(6)?, six(8)?.into(), six(24)?.into()),
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(transport.get(at..at + 2)?.try_into().ok()?));
    let (source_port, destination_port) = (port(0)?, port(2)?);
    let protocol = Protocol::from_number(number)?;
    Some((protocol, Tuple { source, destination, source_port, destination_port }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute::{nest, put, put_text};

    fn message(table: &str, chain: &str, of: &[(u16, u32)], handle: Option<u64>) -> Vec<u8> {
        let mut bytes = vec![1, 0, 0, 0];
        for (kind, name) in [(nfta::TABLE, table), (nfta::CHAIN, chain)] {
            put_text(&mut bytes, kind, name);
        }
        put(&mut bytes, nfta::ID, &7u32.to_be_bytes());
        if let Some(handle) = handle {
            put(&mut bytes, nfta::RULE_HANDLE, &handle.to_be_bytes());
        }
        for (kind, value) in of {
            if *kind == nfta::VERDICT {
                nest(&mut bytes, *kind, |verdict| {
                    put(verdict, nfta::VERDICT_CODE, &value.to_be_bytes());
                });
            } else {
                put(&mut bytes, *kind, &value.to_be_bytes());
            }
        }
        bytes
    }

    fn fate(bytes: &[u8]) -> Option<Fate> {
        event(bytes).unwrap().unwrap().fate
    }

    #[test]
    fn what_drops_a_packet_is_named() {
        let barrier = |rule| {
            let (table, chain) = ("fw".to_owned(), "guard".to_owned());
            Some(Fate::Dropped(DropRule { family: 1, table, chain, rule }))
        };
        let rule = message("fw", "guard", &[(nfta::TYPE, 3), (nfta::VERDICT, 0)], Some(9));
        assert_eq!(fate(&rule), barrier(Some(9)));
        let policy = message("fw", "guard", &[(nfta::TYPE, POLICY), (nfta::POLICY, 0)], None);
        assert_eq!(fate(&policy), barrier(None));
        let passed = message("fw", "guard", &[(nfta::TYPE, POLICY), (nfta::POLICY, 1)], None);
        assert_eq!(fate(&passed), None);
        let open = |family, table: &str| {
            let (table, chain) = (table.to_owned(), "FORWARD".to_owned());
            DropRule { family, table, chain, rule: None }.can_be_opened()
        };
        assert!(open(1, "filter") && open(2, "fw") && !open(2, "filter") && !open(7, "fw"));
        let own =
            message(TABLE, CHAIN_POSTROUTING, &[(nfta::TYPE, 3), (nfta::VERDICT, 0)], Some(3));
        assert_eq!(fate(&own), Some(Fate::Arrived));
        let on =
            message(TABLE, CHAIN_POSTROUTING, &[(nfta::TYPE, POLICY), (nfta::POLICY, 1)], None);
        assert_eq!(fate(&on), Some(Fate::Forwarded));
    }

    #[test]
    fn cut_messages_are_refused_or_less_but_never_a_panic() {
        let whole = message("fw", "guard", &[(nfta::TYPE, 3), (nfta::VERDICT, 0)], Some(9));
        for end in 0..whole.len() {
            let _ = event(&whole[..end]);
        }
        for end in 0..40 {
            assert_eq!(tuple(&[0x60; 40][..end], &[0; 4]), None);
        }
    }
}
