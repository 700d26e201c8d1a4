//! Reading the table: dumps, and lookups of single entries.

use std::net::{IpAddr, Ipv4Addr};

use nix::errno::Errno;

use super::encode::{self, Filter};
use super::parse::{byte_counts, parse};
use super::{Conntrack, FlowError, GET, kind};
use crate::flow::{Counted, Flow, Protocol, Tuple};
use crate::netlink::Malformed;
use crate::netlink::attribute::family;
use crate::netlink::connection::Answer;
use crate::netlink::message::{DUMP, append, request};
use crate::netlink::nfnetlink::nfgenmsg;
use crate::peer_number::{ORIGINAL_MASK, REPLY_MASK};

/// A pass over the table costs about as much as this many entries that are parsed and discarded (10
/// ms and 2.6 µs on the reference machine, whose table has 262,144 buckets).
const ENTRIES_PER_PASS: usize = 4_000;
/// Entries that are looked up in one datagram: each answer takes about a kilobyte of the receive
/// buffer.
const ASKED_AT_ONCE: usize = 64;

impl Conntrack {
    /// Returns the TCP and UDP flows that have one of the addresses as original or reply source.
    ///
    /// From a large table the kernel returns only those over IPv4 (Linux 5.8), in two passes for
    /// each address; a small table is read whole in one pass. The result is the same.
    ///
    /// # Errors
    /// [`FlowError::Dump`] and [`FlowError::Entry`] when the table cannot be read,
    /// [`FlowError::Unstable`] when it keeps being resized.
    pub fn dump(&mut self, addresses: &[IpAddr]) -> Result<Vec<Flow>, FlowError> {
        let mut flows = Vec::new();
        let mut v4: Vec<Ipv4Addr> = Vec::new();
        let mut any_v6 = false;
        for address in addresses {
            match address {
                IpAddr::V4(address) if !v4.contains(address) => v4.push(*address),
                IpAddr::V4(_) => {}
                IpAddr::V6(_) => any_v6 = true,
            }
        }
        let passes_saved = (2 * v4.len() + usize::from(any_v6)).saturating_sub(1);
        let of_container = |flow: &Flow| flow.direction(addresses).is_some();
        if self.count()? <= ENTRIES_PER_PASS * passes_saved {
            self.pass(Filter::None, &mut flows, flow_that(of_container))?;
            return Ok(flows);
        }
        for (index, &address) in v4.iter().enumerate() {
            // Leave out flows that an earlier pass returned already.
            let earlier: Vec<IpAddr> = v4[..index].iter().map(|&address| address.into()).collect();
            let seen = |flow: &Flow| flow.direction(&earlier).is_some();
            let replies = |flow: &Flow| flow.reply.source == address && !seen(flow);
            self.pass(Filter::ReplySource(address), &mut flows, flow_that(replies))?;
            let opens = |flow: &Flow| {
                flow.original.source == address && flow.reply.source != address && !seen(flow)
            };
            self.pass(Filter::OriginalSource(address), &mut flows, flow_that(opens))?;
        }
        if any_v6 {
            let v6 = |flow: &Flow| flow.original.source.is_ipv6() && of_container(flow);
            self.pass(Filter::V6, &mut flows, flow_that(v6))?;
        }
        Ok(flows)
    }

    /// Returns all flows that a connmark steers to any peer.
    ///
    /// # Errors
    /// As [`Conntrack::dump`].
    pub fn marked(&mut self) -> Result<Vec<Counted>, FlowError> {
        let mut marked = Vec::new();
        self.pass(Filter::None, &mut marked, |entry| {
            let flow = parse(entry)?;
            let led = flow.filter(|flow| flow.mark & (ORIGINAL_MASK | REPLY_MASK) != 0);
            led.map(|flow| Ok(Counted { flow, bytes: byte_counts(entry)? })).transpose()
        })?;
        Ok(marked)
    }

    /// Looks up the entry that has each tuple as its original or reply direction; `None` where
    /// there is none.
    ///
    /// # Errors
    /// [`FlowError::Dump`] and [`FlowError::Entry`] when the table cannot be read.
    pub fn find(&mut self, tuples: &[(Protocol, Tuple)]) -> Result<Vec<Option<Flow>>, FlowError> {
        let mut found = vec![None; tuples.len()];
        for (found, chunk) in found.chunks_mut(ASKED_AT_ONCE).zip(tuples.chunks(ASKED_AT_ONCE)) {
            self.requests.clear();
            for (protocol, tuple) in chunk {
                let fixed = nfgenmsg(family(tuple.source), 0);
                append(&mut self.requests, kind(GET), 0, &fixed, |body| {
                    encode::wanted(body, *protocol, *tuple);
                });
            }
            self.connection.exchange(&mut self.requests, |index, answer| {
                match answer {
                    Answer::Data(payload) => found[index] = parse(payload)?,
                    Answer::Refused(refused) if refused.errno == Errno::ENOENT => {}
                    Answer::Refused(refused) => return Err(refused.into()),
                }
                Ok(())
            })?;
        }
        Ok(found)
    }

    /// Makes one pass over the table. Kernels before 5.8 return more than the filter asks for.
    fn pass<T>(
        &mut self,
        filter: Filter,
        found: &mut Vec<T>,
        make: impl Fn(&[u8]) -> Result<Option<T>, Malformed>,
    ) -> Result<(), FlowError> {
        let fixed = nfgenmsg(encode::filter_family(filter), 0);
        let mut asked = request(kind(GET), DUMP, &fixed, |body| encode::filter(body, filter));
        found.extend(self.connection.dump_consistent(&mut asked, make)?);
        Ok(())
    }
}

/// Returns a function that parses an entry and keeps it if `wanted` is true.
fn flow_that(wanted: impl Fn(&Flow) -> bool) -> impl Fn(&[u8]) -> Result<Option<Flow>, Malformed> {
    move |entry| Ok(parse(entry)?.filter(|flow| wanted(flow)))
}
