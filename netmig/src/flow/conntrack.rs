//! The kernel's conntrack table by ctnetlink.

use std::net::{IpAddr, Ipv4Addr};

use nix::errno::Errno;

use super::build::Filter;
use super::parse::byte_counts;
use super::{Counted, Direction, Flow, Protocol, Tuple, build, parse};
use crate::nfnetlink::attribute::Attributes;
use crate::nfnetlink::message::{
    ACK, CREATE, DUMP, EXCLUSIVE, Head, Message, NFGENMSG, Refused, append, kind, request_ack,
};
use crate::nfnetlink::{Malformed, Options, Socket, SocketError, subsystem};
use crate::peer::{ORIGINAL_MASK, PeerNumber, REPLY_MASK};

/// Messages of ctnetlink (`enum cntl_msg_types`).
const NEW: u8 = 0;
const GET: u8 = 1;
const DELETE: u8 = 2;
/// Requests are sent in datagrams of about this many bytes.
const CHUNK: usize = 60 << 10;
/// Asks for figures of the whole table.
const GET_STATS: u8 = 5;
/// `CTA_STATS_GLOBAL_ENTRIES`: entries of this network namespace.
const STATS_ENTRIES: u16 = 1;
/// A pass over the table costs about as much as this many entries that are given and thrown away
/// (10 ms and 2.6 µs on the reference machine, whose table has 262,144 buckets).
const ENTRIES_PER_PASS: usize = 4_000;
/// Entries that are asked for at a time: each answer takes about a kilobyte of the receive buffer.
const ASKED_AT_ONCE: usize = 64;
/// How often a dump is repeated when the table was resized under it.
const DUMP_ATTEMPTS: usize = 5;

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
    #[error("the conntrack table changed during each of {DUMP_ATTEMPTS} readings; try again")]
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
        Self::Dump(error)
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
    socket: Socket,
    buffer: Vec<u8>,
    requests: Vec<u8>,
    sequence: u32,
}

impl Conntrack {
    /// Opens the table and makes all buffers ready.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN, or on a kernel without nfnetlink.
    pub fn open() -> Result<Self, FlowError> {
        let socket = Socket::open(Options::default()).map_err(FlowError::Open)?;
        let requests = Vec::with_capacity(CHUNK + 1024);
        Ok(Self { socket, buffer: Socket::buffer(), requests, sequence: 0 })
    }

    /// How many entries the table has, of any kind.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn count(&mut self) -> Result<usize, FlowError> {
        let sequence = self.next_request(GET_STATS, ACK, 0, |_| {});
        self.socket.send(&self.requests).map_err(FlowError::Dump)?;
        let mut entries = None;
        loop {
            for message in self.socket.receive(&mut self.buffer)? {
                match message.map_err(SocketError::from)? {
                    Message::Data { sequence: of, payload, .. } if of == sequence => {
                        entries = entry_count(payload).map_err(FlowError::Entry)?;
                    }
                    Message::Ack { sequence: of } if of == sequence => {
                        let missing = FlowError::Entry(Malformed("figures without a count"));
                        return entries.ok_or(missing);
                    }
                    Message::Refused { sequence: of, refused } if of == sequence => {
                        return Err(FlowError::Dump(refused.into()));
                    }
                    _ => {}
                }
            }
        }
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
        for (first, chunk) in (0..).step_by(ASKED_AT_ONCE).zip(tuples.chunks(ASKED_AT_ONCE)) {
            let first_sequence = self.sequence.wrapping_add(1);
            self.requests.clear();
            for (protocol, tuple) in chunk {
                self.sequence = self.sequence.wrapping_add(1);
                let head = Head {
                    kind: kind(subsystem::CONNTRACK, GET),
                    flags: 0,
                    sequence: self.sequence,
                    family: build::family(tuple.source),
                    resource: 0,
                };
                append(&mut self.requests, head, |body| build::wanted(body, *protocol, *tuple));
            }
            let asked = Chunk { first, first_sequence, last_sequence: self.sequence };
            self.socket.send(&self.requests).map_err(FlowError::Dump)?;
            let mut missing = chunk.len();
            while missing > 0 {
                for message in self.socket.receive(&mut self.buffer)? {
                    match message.map_err(SocketError::from)? {
                        Message::Data { sequence, payload, .. } => {
                            let Some(index) = asked.flow(sequence) else { continue };
                            found[index] = parse(payload).map_err(FlowError::Entry)?;
                            missing -= 1;
                        }
                        Message::Refused { sequence, refused }
                            if asked.flow(sequence).is_some() =>
                        {
                            if refused.errno != Errno::ENOENT {
                                return Err(FlowError::Dump(refused.into()));
                            }
                            missing -= 1;
                        }
                        Message::Overrun => return Err(SocketError::Overrun.into()),
                        _ => {}
                    }
                }
            }
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
        let before = found.len();
        for _ in 0..DUMP_ATTEMPTS {
            found.truncate(before);
            let sequence = self.next_request(GET, DUMP, build::filter_family(filter), |body| {
                build::filter(body, filter);
            });
            let dumped = self.socket.dump(&self.requests, sequence, &mut self.buffer, |entry| {
                found.extend(make(entry).map_err(FlowError::Entry)?);
                Ok(())
            });
            match dumped {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(FlowError::Dump(error)) if error.refusal() == Some(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        Err(FlowError::Unstable)
    }

    /// Makes `requests` hold one request, and returns its sequence number.
    fn next_request(
        &mut self,
        message: u8,
        flags: u16,
        family: u8,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let kind = kind(subsystem::CONNTRACK, message);
        let head = Head { kind, flags, sequence: self.sequence, family, resource: 0 };
        self.requests.clear();
        append(&mut self.requests, head, fill);
        self.sequence
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
        (message, flags): (u8, u16),
        fill: impl Fn(&mut Vec<u8>, &Flow),
    ) -> Result<Outcome, FlowError> {
        let mut outcome = Outcome::default();
        let mut refusals = Refusals::default();
        let mut next = 0;
        while next < flows.len() {
            let first = next;
            let first_sequence = self.sequence.wrapping_add(1);
            let mut last_start = 0;
            self.requests.clear();
            while next < flows.len() && self.requests.len() < CHUNK {
                self.sequence = self.sequence.wrapping_add(1);
                last_start = self.requests.len();
                let head = Head {
                    kind: kind(subsystem::CONNTRACK, message),
                    flags,
                    sequence: self.sequence,
                    family: build::family(flows[next].original.source),
                    resource: 0,
                };
                append(&mut self.requests, head, |body| fill(body, &flows[next]));
                next += 1;
            }
            // Refusals are always told; one acknowledgement at the end shows that all is done.
            request_ack(&mut self.requests, last_start);
            let chunk = Chunk { first, first_sequence, last_sequence: self.sequence };
            let exchanged = self.exchange(&chunk, &mut outcome, &mut refusals);
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

    fn exchange(
        &mut self,
        chunk: &Chunk,
        outcome: &mut Outcome,
        refusals: &mut Refusals,
    ) -> Result<(), SocketError> {
        self.socket.send(&self.requests)?;
        loop {
            for message in self.socket.receive(&mut self.buffer)? {
                match message? {
                    Message::Ack { sequence } if sequence == chunk.last_sequence => return Ok(()),
                    Message::Refused { sequence, refused } => {
                        let Some(flow) = chunk.flow(sequence) else { continue };
                        match refused.errno {
                            Errno::ENOENT => outcome.gone.push(flow),
                            Errno::EEXIST => outcome.existing.push(flow),
                            _ => {
                                refusals.count += 1;
                                refusals.first.get_or_insert((flow, refused));
                            }
                        }
                        if sequence == chunk.last_sequence {
                            return Ok(());
                        }
                    }
                    Message::Overrun => return Err(SocketError::Overrun),
                    _ => {}
                }
            }
        }
    }
}

/// Makes those flows of a pass that are wanted.
fn flow_that(wanted: impl Fn(&Flow) -> bool) -> impl Fn(&[u8]) -> Result<Option<Flow>, Malformed> {
    move |entry| Ok(parse(entry)?.filter(|flow| wanted(flow)))
}

fn entry_count(payload: &[u8]) -> Result<Option<usize>, Malformed> {
    let attributes = payload.get(NFGENMSG..).ok_or(Malformed("a message without its header"))?;
    for attribute in Attributes::new(attributes) {
        let attribute = attribute?;
        if attribute.kind == STATS_ENTRIES {
            return attribute.be32().map(|entries| Some(entries as usize));
        }
    }
    Ok(None)
}

/// The flows of one datagram and the sequence numbers of their requests.
struct Chunk {
    first: usize,
    first_sequence: u32,
    last_sequence: u32,
}

impl Chunk {
    /// Index of the flow that a sequence number of this chunk stands for.
    fn flow(&self, sequence: u32) -> Option<usize> {
        let offset = sequence.wrapping_sub(self.first_sequence);
        let last = self.last_sequence.wrapping_sub(self.first_sequence);
        (offset <= last).then_some(self.first + offset as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_lead_back_to_flows_even_across_the_wrap() {
        let chunk = Chunk { first: 500, first_sequence: u32::MAX - 1, last_sequence: 2 };
        assert_eq!(chunk.flow(u32::MAX - 1), Some(500));
        assert_eq!(chunk.flow(u32::MAX), Some(501));
        assert_eq!(chunk.flow(2), Some(504));
        assert_eq!(chunk.flow(3), None);
        assert_eq!(chunk.flow(u32::MAX - 2), None);
    }
}
