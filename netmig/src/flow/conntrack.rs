//! The kernel's conntrack table by ctnetlink.

use std::net::{IpAddr, Ipv4Addr};

use nix::errno::Errno;

use super::build::Filter;
use super::parse::byte_counts;
use super::{Counted, Direction, Flow, Protocol, Tuple, build, parse};
use crate::netlink::attribute::family;
use crate::netlink::connection::Answer;
use crate::netlink::message::{CREATE, DUMP, EXCLUSIVE, append, request};
use crate::netlink::nfnetlink::{Subsystem, attributes, nfgenmsg};
use crate::netlink::{Connection, Malformed, Protocol as Netlink, Refused, SocketError};
use crate::peer::{ORIGINAL_MASK, PeerNumber, REPLY_MASK};

/// Messages of ctnetlink (`enum cntl_msg_types`).
const NEW: i32 = 0;
const GET: i32 = 1;
const DELETE: i32 = 2;
/// Asks for figures of the whole table.
const GET_STATS: i32 = 5;
/// Requests are sent in datagrams of about this many bytes.
const CHUNK: usize = 60 << 10;
/// `CTA_STATS_GLOBAL_ENTRIES`: entries of this network namespace.
const STATS_ENTRIES: u16 = 1;
/// A pass over the table costs about as much as this many entries that are given and thrown away
/// (10 ms and 2.6 µs on the reference machine, whose table has 262,144 buckets).
const ENTRIES_PER_PASS: usize = 4_000;
/// Entries that are asked for at a time: each answer takes about a kilobyte of the receive buffer.
const ASKED_AT_ONCE: usize = 64;

/// Why conntrack could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlowError {
    /// The table could not be opened.
    #[error("cannot reach the conntrack table")]
    Open(#[source] SocketError),
    /// The table could not be read.
    #[error("cannot read the conntrack table")]
    Dump(#[source] SocketError),
    /// An entry could not be understood.
    #[error("cannot understand an entry of the conntrack table")]
    Entry(#[source] Malformed),
    /// The table changed its size during each of several readings.
    #[error("the conntrack table changed during each of several readings; try again")]
    Unstable,
    /// Flows could not be marked, created or deleted at all.
    #[error("cannot {act} {count} conntrack entries")]
    Change {
        /// What was to be done: mark, create, delete.
        act: &'static str,
        /// To how many.
        count: usize,
        /// The reason.
        #[source]
        source: SocketError,
    },
    /// Others are made in their place again and again.
    #[error("{count} conntrack entries are in the way of others, the first one is that of {flow}")]
    InTheWay {
        /// How many.
        count: usize,
        /// The first of those that could not be made.
        flow: String,
    },
    /// The kernel refused some of them. Everything else that was asked for is done.
    #[error(
        "the kernel refused to {act} {count} conntrack entries, the first one ({flow}) with: {reason}"
    )]
    Refused {
        /// What was to be done: mark, create, delete.
        act: &'static str,
        /// How many it refused.
        count: usize,
        /// The first of them.
        flow: String,
        /// Its error, and the kernel's own words if it gave any.
        reason: String,
    },
}

impl From<SocketError> for FlowError {
    fn from(error: SocketError) -> Self {
        match error {
            SocketError::Unstable => Self::Unstable,
            SocketError::Malformed(malformed) => Self::Entry(malformed),
            error => Self::Dump(error),
        }
    }
}

/// What became of the flows of one request, none of which was [refused](FlowError::Refused). Indices are
/// those of the slice that was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How many requests were carried out.
    pub done: usize,
    /// Flows that no longer existed: they ended in the meantime.
    pub gone: Vec<usize>,
    /// Flows that existed already and so were not created.
    pub existing: Vec<usize>,
}

/// Flows that the kernel refused, for another reason than that they are gone or exist already.
#[derive(Default)]
struct Refusals {
    count: usize,
    /// The index of the first one, and why.
    first: Option<(usize, Refused)>,
}

/// The conntrack table of the network namespace in which this was opened.
///
/// All calls block, for no longer than five seconds; those that change entries have taken effect
/// when they return.
pub struct Conntrack {
    connection: Connection,
    requests: Vec<u8>,
}

impl Conntrack {
    /// Opens the table and makes all buffers ready.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN, or on a kernel without nfnetlink.
    pub fn open() -> Result<Self, FlowError> {
        let connection = Connection::open(Netlink::Netfilter).map_err(FlowError::Open)?;
        Ok(Self { connection, requests: Vec::with_capacity(CHUNK + 1024) })
    }

    /// How many entries the table has, of any kind.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn count(&mut self) -> Result<usize, FlowError> {
        let mut asked = request(kind(GET_STATS), 0, &nfgenmsg(0, 0), |_| ());
        let mut entries = None;
        self.connection.exchange(&mut asked, |_, answer| {
            match answer {
                Answer::Data(payload) => entries = entry_count(payload)?,
                Answer::Refused(refused) => return Err(refused.into()),
            }
            Ok(())
        })?;
        entries.ok_or(FlowError::Entry(Malformed("figures without a count")))
    }

    /// The TCP and UDP flows that have one of the addresses as original or reply source.
    ///
    /// Of a large table the kernel gives only those over IPv4 (from 5.8 on), in two passes for
    /// each address; a small one is read whole in one pass. The answer is the same.
    ///
    /// # Errors
    /// When the table cannot be read, or not without interruption in several attempts.
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
            // Every flow is wanted once: not those that an earlier pass gave already.
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

    /// All flows that are led to or come from any peer.
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

    /// The entry that has each tuple, as its original or its reply direction; `None` if there is none.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn find(&mut self, tuples: &[(Protocol, Tuple)]) -> Result<Vec<Option<Flow>>, FlowError> {
        let mut found = vec![None; tuples.len()];
        for (found, chunk) in found.chunks_mut(ASKED_AT_ONCE).zip(tuples.chunks(ASKED_AT_ONCE)) {
            self.requests.clear();
            for (protocol, tuple) in chunk {
                let fixed = nfgenmsg(family(tuple.source), 0);
                append(&mut self.requests, kind(GET), 0, &fixed, |body| {
                    build::wanted(body, *protocol, *tuple);
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

    /// One pass over the table, for what is made of its entries. Older kernels may give more than was asked
    /// for.
    fn pass<T>(
        &mut self,
        filter: Filter,
        found: &mut Vec<T>,
        make: impl Fn(&[u8]) -> Result<Option<T>, Malformed>,
    ) -> Result<(), FlowError> {
        let fixed = nfgenmsg(build::filter_family(filter), 0);
        let mut asked = request(kind(GET), DUMP, &fixed, |body| build::filter(body, filter));
        found.extend(self.connection.dump_consistent(&mut asked, make)?);
        Ok(())
    }

    /// Leads those of the container's flows that go to `from` to another peer, or home (`None`); gives
    /// how many they were.
    ///
    /// # Errors
    /// When the table cannot be read or changed.
    pub fn lead(
        &mut self,
        container: &[IpAddr],
        from: PeerNumber,
        to: Option<PeerNumber>,
    ) -> Result<usize, FlowError> {
        let flows = self.dump(container)?;
        let mut led = 0;
        for direction in [Direction::Inbound, Direction::Outbound] {
            let flows: Vec<Flow> = flows
                .iter()
                .filter(|flow| flow.direction(container) == Some(direction))
                .filter(|flow| flow.leads_to(container) == Some(from))
                .cloned()
                .collect();
            let (mark, mask) = Flow::mark_at_source(direction, to.unwrap_or(from));
            if !flows.is_empty() {
                self.set_mark(&flows, if to.is_some() { mark } else { 0 }, mask)?;
            }
            led += flows.len();
        }
        Ok(led)
    }

    /// Changes the bits of the flows' marks in which `mask` is set, in place: nothing else of
    /// the entries changes.
    ///
    /// # Errors
    /// [`FlowError::Change`] when the table cannot be changed at all, [`FlowError::Refused`] when single
    /// flows cannot. One that has ended is none of these: the [`Outcome`] tells of it.
    pub fn set_mark(
        &mut self,
        flows: &[Flow],
        value: u32,
        mask: u32,
    ) -> Result<Outcome, FlowError> {
        self.change("mark", flows, (NEW, 0), |body, flow| build::mark(body, flow, value, mask))
    }

    /// Makes entries last for another number of seconds if no packet comes.
    ///
    /// # Errors
    /// As [`Conntrack::set_mark`].
    pub fn prolong(&mut self, flows: &[Flow], seconds: u32) -> Result<Outcome, FlowError> {
        self.change("prolong", flows, (NEW, 0), |body, flow| build::timeout(body, flow, seconds))
    }

    /// Creates entries. Those that exist already stay as they are.
    ///
    /// # Errors
    /// As [`Conntrack::set_mark`].
    pub fn create(&mut self, flows: &[Flow]) -> Result<Outcome, FlowError> {
        self.change("create", flows, (NEW, CREATE | EXCLUSIVE), build::create)
    }

    /// Deletes entries by their original tuple and zone.
    ///
    /// # Errors
    /// As [`Conntrack::set_mark`].
    pub fn delete(&mut self, flows: &[Flow]) -> Result<Outcome, FlowError> {
        self.change("delete", flows, (DELETE, 0), build::identity)
    }

    fn change(
        &mut self,
        act: &'static str,
        flows: &[Flow],
        (message, flags): (i32, u16),
        fill: impl Fn(&mut Vec<u8>, &Flow),
    ) -> Result<Outcome, FlowError> {
        let mut outcome = Outcome::default();
        let mut refusals = Refusals::default();
        let mut next = 0;
        while next < flows.len() {
            let first = next;
            self.requests.clear();
            while next < flows.len() && self.requests.len() < CHUNK {
                let flow = &flows[next];
                let fixed = nfgenmsg(family(flow.original.source), 0);
                append(&mut self.requests, kind(message), flags, &fixed, |body| fill(body, flow));
                next += 1;
            }
            let exchanged = self.connection.exchange(&mut self.requests, |index, answer| {
                let Answer::Refused(refused) = answer else { return Ok(()) };
                match refused.errno {
                    Errno::ENOENT => outcome.gone.push(first + index),
                    Errno::EEXIST => outcome.existing.push(first + index),
                    _ => {
                        refusals.count += 1;
                        refusals.first.get_or_insert((first + index, refused));
                    }
                }
                Ok(())
            });
            let count = flows.len();
            exchanged.map_err(|source| FlowError::Change { act, count, source })?;
        }
        if let Some((index, Refused { errno, reason })) = refusals.first {
            let flow = flows.get(index).map(ToString::to_string).unwrap_or_default();
            let reason = format!("{} {reason}", errno.desc()).trim_end().to_owned();
            return Err(FlowError::Refused { act, count: refusals.count, flow, reason });
        }
        outcome.done = flows.len() - outcome.gone.len() - outcome.existing.len();
        Ok(outcome)
    }
}

fn kind(message: i32) -> u16 {
    Subsystem::Conntrack.kind(message)
}

/// Makes those flows of a pass that are wanted.
fn flow_that(wanted: impl Fn(&Flow) -> bool) -> impl Fn(&[u8]) -> Result<Option<Flow>, Malformed> {
    move |entry| Ok(parse(entry)?.filter(|flow| wanted(flow)))
}

fn entry_count(payload: &[u8]) -> Result<Option<usize>, Malformed> {
    for attribute in attributes(payload)? {
        let attribute = attribute?;
        if attribute.kind == STATS_ENTRIES {
            return attribute.be32().map(|entries| Some(entries as usize));
        }
    }
    Ok(None)
}
