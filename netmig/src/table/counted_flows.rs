//! Counting packets of a container's flows: as they come to this host, and as they leave it.
//!
//! Rules put each flow into a set of its own accord when its first packet comes, with a counter in the element
//! (`nft_dynset.c`, Linux 5.7 for counters that a dump shows). So a packet costs one look into a hash table, however many
//! flows there are. An element's key is the flow as its container sees it, which is the same on every host.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::net::{IpAddr, SocketAddr};

use nftnl::nftnl_sys as sys;
use nftnl::set::{Set, SetKey};
use nftnl::{Batch, MsgType, ProtoFamily};

use super::contents::asking;
use super::statement::{ORIGINAL, REPLY, Statement};
use super::{
    CHAIN_POSTROUTING, CHAIN_STEER, CHAIN_STEER_OUTPUT, Purpose, RuleTag, TABLE, Table, TableError,
    compare, handle, is_absent, rules,
};
use crate::flow::{FlowEnds, Protocol};
use crate::netlink::Malformed;
use crate::netlink::attribute::{Attributes, put_text};
use crate::netlink::message::DUMP;
use crate::netlink::nfnetlink::attributes;

/// Packets of one direction of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCount {
    /// Packets that came, counted before routing, once they were released.
    pub came: u64,
    /// Packets that left, counted after everything that may drop them.
    pub left: u64,
}

/// Packets of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passage {
    /// Those for the container.
    pub towards: PacketCount,
    /// Those of the container.
    pub from: PacketCount,
}

/// Most elements of a set: flows beyond are not counted.
const MOST: u32 = 65_536;
/// `NFT_SET_EVAL`: rules add elements.
const DYNAMIC: u32 = 0x20;

/// Numbers by which nft(8) knows the types of a set's keys (`enum datatypes`), and the bits of each in the type of
/// a key of several parts.
mod key_type {
    pub(super) const IPV4: u32 = 7;
    pub(super) const IPV6: u32 = 8;
    pub(super) const PROTOCOL: u32 = 12;
    pub(super) const PORT: u32 = 13;
    const BITS: u32 = 6;

    pub(super) const fn of_flow(address: u32) -> u32 {
        (((address << BITS | address) << BITS | PORT) << BITS | PORT) << BITS | PROTOCOL
    }
}

/// Attribute numbers (`include/uapi/linux/netfilter/nf_tables.h`).
mod nfta {
    pub(super) const LIST_TABLE: u16 = 1;
    pub(super) const LIST_SET: u16 = 2;
    pub(super) const LIST_ELEMENTS: u16 = 3;
    pub(super) const ELEMENT_KEY: u16 = 1;
    pub(super) const ELEMENT_EXPRESSION: u16 = 7;
    pub(super) const DATA_VALUE: u16 = 1;
}

/// The key of an element for a flow over IPv4 or IPv6. Only its type and length are used.
struct KeyOfV4;
struct KeyOfV6;

impl SetKey for KeyOfV4 {
    const TYPE: u32 = key_type::of_flow(key_type::IPV4);
    const LEN: u32 = 20;

    fn data(&self) -> Box<[u8]> {
        Box::default()
    }
}

impl SetKey for KeyOfV6 {
    const TYPE: u32 = key_type::of_flow(key_type::IPV6);
    const LEN: u32 = 44;

    fn data(&self) -> Box<[u8]> {
        Box::default()
    }
}

/// Returns what a key consists of: keys of conntrack, and the number of the 32-bit register of each.
pub(super) fn key(family: IpAddr) -> [(i32, u32); 5] {
    let (source, destination, words) = match family {
        IpAddr::V4(_) => (libc::NFT_CT_SRC_IP, libc::NFT_CT_DST_IP, 1),
        IpAddr::V6(_) => (libc::NFT_CT_SRC_IP6, libc::NFT_CT_DST_IP6, 4),
    };
    [
        (source, 0),
        (destination, words),
        (libc::NFT_CT_PROTO_SRC, 2 * words),
        (libc::NFT_CT_PROTO_DST, 2 * words + 1),
        (libc::NFT_CT_PROTOCOL, 2 * words + 2),
    ]
}

/// Reads a key.
fn flow(key: &[u8]) -> Option<FlowEnds> {
    let (own, far, rest): (IpAddr, IpAddr, &[u8]) = match key.len() {
        20 => {
            let (own, rest) = key.split_first_chunk::<4>()?;
            let (far, rest) = rest.split_first_chunk::<4>()?;
            ((*own).into(), (*far).into(), rest)
        }
        44 => {
            let (own, rest) = key.split_first_chunk::<16>()?;
            let (far, rest) = rest.split_first_chunk::<16>()?;
            ((*own).into(), (*far).into(), rest)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(*rest.get(at..)?.first_chunk()?));
    Some(FlowEnds {
        protocol: Protocol::from_number(*rest.get(8)?)?,
        own: SocketAddr::new(own, port(0)?),
        far: SocketAddr::new(far, port(4)?),
    })
}

/// What a rule counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counting {
    chain: &'static str,
    /// The direction in which the container sends: the reply direction if somebody else has opened the flow.
    own: u8,
    /// The direction of the packets.
    packets: u8,
    address: IpAddr,
}

/// Returns what is counted for a container with these addresses.
fn countings(addresses: &[IpAddr]) -> Vec<Counting> {
    let mut all = Vec::new();
    for address in addresses {
        for chain in [CHAIN_STEER, CHAIN_STEER_OUTPUT, CHAIN_POSTROUTING] {
            for own in [REPLY, ORIGINAL] {
                for packets in [ORIGINAL, REPLY] {
                    all.push(Counting { chain, own, packets, address: *address });
                }
            }
        }
    }
    all
}

impl Counting {
    /// Returns the name of its set.
    fn set(tag: &RuleTag, number: usize) -> String {
        format!("count-{}-{number}", tag.as_str())
    }

    fn rule(&self, set: String) -> rules::NewRule {
        let (direction, family) = (self.own, self.address);
        let statements = vec![
            Statement::CtSource(self.own, self.address),
            Statement::CtDirection(self.packets),
            Statement::CountEach { set, direction, family },
        ];
        rules::NewRule { chain: self.chain.to_owned(), statements }
    }

    /// Adds to what is known of a flow.
    fn add(&self, passage: &mut Passage, packets: u64) {
        let direction =
            if self.packets == self.own { &mut passage.from } else { &mut passage.towards };
        if self.chain == CHAIN_POSTROUTING {
            direction.left += packets;
        } else {
            direction.came += packets;
        }
    }
}

fn add_set<K: SetKey>(batch: &mut Batch, name: &str, number: usize) -> Result<(), TableError> {
    let (table, id) = (handle()?, u32::try_from(number).unwrap_or(u32::MAX));
    let set = Set::<K>::new_named(&CString::new(name)?, id, &table, ProtoFamily::Inet);
    let raw = set.as_ptr().as_ptr();
    // SAFETY: the set is this function's alone, and both attributes are numbers of 32 bits (libnftnl's `src/set.c`).
    unsafe {
        sys::nftnl_set_set_u32(raw, sys::NFTNL_SET_FLAGS as u16, DYNAMIC);
        sys::nftnl_set_set_u32(raw, sys::NFTNL_SET_DESC_SIZE as u16, MOST);
    }
    batch.add(&set, MsgType::Add);
    Ok(())
}

impl Table {
    /// Starts counting, until [`Table::remove_flow_counter`].
    ///
    /// # Errors
    /// [`TableError::Refused`] when the table is not installed, or nftables refuses;
    /// [`TableError::Read`].
    fn add_flow_counter(&mut self, tag: &RuleTag, all: &[Counting]) -> Result<(), TableError> {
        self.remove_flow_counter(tag)?;
        let (table, purpose) = (handle()?, Purpose::FlowCounter(tag.clone()));
        let mut batch = Batch::new();
        for (number, counting) in all.iter().enumerate() {
            let set = Counting::set(tag, number);
            match counting.address {
                IpAddr::V4(_) => add_set::<KeyOfV4>(&mut batch, &set, number)?,
                IpAddr::V6(_) => add_set::<KeyOfV6>(&mut batch, &set, number)?,
            }
            rules::add(&mut batch, &table, &counting.rule(set), &purpose)?;
        }
        self.commit(batch, "count packets of flows")
    }

    /// Removes the counting rules and their sets; absent rules are not an error.
    ///
    /// # Errors
    /// [`TableError::Read`], [`TableError::Refused`] when the table cannot be read or changed.
    pub fn remove_flow_counter(&mut self, tag: &RuleTag) -> Result<(), TableError> {
        let (contents, purpose) = (self.read()?, Purpose::FlowCounter(tag.clone()));
        let table = handle()?;
        let mut batch = Batch::new();
        let mut sets = Vec::new();
        for rule in contents.with_purpose(&purpose) {
            rules::delete(&mut batch, &table, rule)?;
            sets.push(compare::counting_set(&rule.expressions));
        }
        if sets.is_empty() {
            return Ok(());
        }
        // A set goes once no rule uses it.
        for name in sets.into_iter().flatten() {
            let name = CString::new(name)?;
            let set = Set::<KeyOfV4>::new_named(&name, 0, &table, ProtoFamily::Inet);
            batch.add(&set, MsgType::Del);
        }
        self.commit(batch, "remove rules that count packets")
    }

    /// Returns the packets of each element of a set.
    fn elements(&mut self, set: &str) -> Result<Vec<(FlowEnds, u64)>, TableError> {
        let mut asked = asking(libc::NFT_MSG_GETSETELEM, DUMP, |body| {
            put_text(body, nfta::LIST_TABLE, TABLE);
            put_text(body, nfta::LIST_SET, set);
        });
        let read =
            self.connection.dump_consistent(&mut asked, |payload| elements(payload).map(Some));
        Ok(read.map_err(TableError::Read)?.concat())
    }
}

/// Reads a message of a dump of elements. Elements of other kinds are none of ours.
fn elements(payload: &[u8]) -> Result<Vec<(FlowEnds, u64)>, Malformed> {
    let mut all = Vec::new();
    for list in attributes(payload)? {
        let list = list?;
        if list.kind != nfta::LIST_ELEMENTS {
            continue;
        }
        for element in list.nested() {
            all.extend(element_of(element?.nested())?);
        }
    }
    Ok(all)
}

fn element_of(attributes: Attributes<'_>) -> Result<Option<(FlowEnds, u64)>, Malformed> {
    let (mut of, mut packets) = (None, None);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            nfta::ELEMENT_KEY => {
                for data in attribute.nested() {
                    let data = data?;
                    of = of.or(flow(data.value).filter(|_| data.kind == nfta::DATA_VALUE));
                }
            }
            nfta::ELEMENT_EXPRESSION => packets = compare::packets(attribute),
            _ => {}
        }
    }
    Ok(of.zip(packets))
}

/// Counts packets of a container's flows. Dropping it removes its rules.
pub struct FlowCounter {
    tag: RuleTag,
    table: Table,
    countings: Vec<Counting>,
}

impl FlowCounter {
    /// Starts counting the packets of a container with these addresses.
    ///
    /// # Errors
    /// [`TableError::Refused`] when the table is not installed, or nftables refuses;
    /// [`TableError::Open`], [`TableError::Read`].
    pub fn begin(tag: &RuleTag, addresses: &[IpAddr]) -> Result<Self, TableError> {
        let (mut table, countings) = (Table::open()?, countings(addresses));
        table.add_flow_counter(tag, &countings)?;
        Ok(Self { tag: tag.clone(), table, countings })
    }

    /// Returns the packets since then of every flow that had any; `None` if others have removed rules, or there were
    /// more flows than are counted.
    ///
    /// # Errors
    /// [`TableError::Read`] when the table cannot be read.
    pub fn read(&mut self) -> Result<Option<BTreeMap<FlowEnds, Passage>>, TableError> {
        let purpose = Purpose::FlowCounter(self.tag.clone());
        if self.table.read()?.with_purpose(&purpose).count() != self.countings.len() {
            return Ok(None);
        }
        let mut all: BTreeMap<FlowEnds, Passage> = BTreeMap::new();
        for (number, counting) in self.countings.iter().enumerate() {
            let elements = match self.table.elements(&Counting::set(&self.tag, number)) {
                Ok(elements) => elements,
                Err(TableError::Read(error)) if is_absent(&error) => return Ok(None),
                Err(e) => return Err(e),
            };
            if elements.len() >= MOST as usize {
                return Ok(None);
            }
            for (flow, packets) in elements {
                counting.add(all.entry(flow).or_default(), packets);
            }
        }
        Ok(Some(all))
    }
}

impl std::fmt::Debug for FlowCounter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowCounter").field("tag", &self.tag).finish_non_exhaustive()
    }
}

impl Drop for FlowCounter {
    fn drop(&mut self) {
        if let Err(error) = self.table.remove_flow_counter(&self.tag) {
            // The rules are removed with the migration.
            tracing::warn!("cannot remove rules that count packets: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_flow_as_the_container_sees_it() {
        let four = [10, 88, 0, 2, 192, 0, 2, 3, 0, 80, 0, 0, 0x9c, 0x40, 0, 0, 17, 0, 0, 0];
        let read = flow(&four).unwrap();
        assert_eq!(
            (read.own, read.far),
            (([10, 88, 0, 2], 80).into(), ([192, 0, 2, 3], 40_000).into())
        );
        assert_eq!(read.protocol, Protocol::Udp);
        let mut six = [0; 44];
        (six[15], six[31], six[33], six[37], six[40]) = (1, 2, 3, 4, 6);
        let read = flow(&six).unwrap();
        assert_eq!(read.own, "[::1]:3".parse().unwrap());
        assert_eq!((read.far, read.protocol), ("[::2]:4".parse().unwrap(), Protocol::Tcp));
        // Another protocol, another length.
        assert_eq!(flow(&[0; 20]), None);
        assert!((0..20).all(|end| flow(&four[..end]).is_none()));
    }

    #[test]
    fn towards_and_from_follow_from_who_opened_the_flow() {
        let count = |own, packets, chain| {
            let mut passage = Passage::default();
            let address = [10, 88, 0, 2].into();
            Counting { chain, own, packets, address }.add(&mut passage, 3);
            passage
        };
        let inbound = count(REPLY, ORIGINAL, CHAIN_STEER);
        assert_eq!(inbound.towards, PacketCount { came: 3, left: 0 });
        assert_eq!(count(ORIGINAL, REPLY, CHAIN_STEER), inbound);
        let answers = count(REPLY, REPLY, CHAIN_POSTROUTING);
        assert_eq!(answers.from, PacketCount { came: 0, left: 3 });
        assert_eq!(count(ORIGINAL, ORIGINAL, CHAIN_POSTROUTING), answers);
        let of_this_host = count(REPLY, ORIGINAL, CHAIN_STEER_OUTPUT);
        assert_eq!(of_this_host, inbound);
    }
}
