//! The kernel's conntrack table by ctnetlink.

use std::net::IpAddr;

use nix::errno::Errno;

use super::{Flow, build, parse};
use crate::nfnetlink::message::{
    CREATE, DUMP, EXCLUSIVE, Head, Message, append, kind, request_ack,
};
use crate::nfnetlink::{Malformed, Options, Socket, SocketError, subsystem};

/// Messages of ctnetlink (`enum cntl_msg_types`).
const NEW: u8 = 0;
const GET: u8 = 1;
const DELETE: u8 = 2;
/// Requests are sent in datagrams of about this many bytes.
const CHUNK: usize = 60 << 10;
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
}

impl From<SocketError> for FlowError {
    fn from(error: SocketError) -> Self {
        Self::Dump(error)
    }
}

/// What became of the flows of one request. Indices are those of the slice that was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How many requests were carried out.
    pub done: usize,
    /// Flows that no longer existed: they ended in the meantime.
    pub gone: Vec<usize>,
    /// Flows that existed already and so were not created.
    pub existing: Vec<usize>,
    /// Flows that the kernel refused for another reason.
    pub refused: Vec<Refusal>,
}

/// A flow that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its index.
    pub flow: usize,
    /// The error number.
    pub errno: Errno,
    /// The kernel's own words, empty if it gave none.
    pub reason: String,
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

    /// The TCP and UDP flows that have one of the addresses as original or reply source.
    ///
    /// The kernel filters where it can (from 5.8 on); the answer is the same where it cannot.
    ///
    /// # Errors
    /// When the table cannot be read, or not without interruption in several attempts.
    pub fn dump(&mut self, addresses: &[IpAddr]) -> Result<Vec<Flow>, FlowError> {
        let mut flows = Vec::new();
        for (index, &address) in addresses.iter().enumerate() {
            let earlier = &addresses[..index];
            if earlier.contains(&address) {
                continue;
            }
            // Every flow is wanted once: those of earlier addresses are there already, and of
            // those that match both ways the second pass leaves out what the first one gave.
            let seen = |flow: &Flow| flow.direction(earlier).is_some();
            self.dump_by_source(address, true, &mut flows, |flow| {
                flow.reply.source == address && !seen(flow)
            })?;
            self.dump_by_source(address, false, &mut flows, |flow| {
                flow.original.source == address && flow.reply.source != address && !seen(flow)
            })?;
        }
        Ok(flows)
    }

    fn dump_by_source(
        &mut self,
        address: IpAddr,
        reply: bool,
        flows: &mut Vec<Flow>,
        wanted: impl Fn(&Flow) -> bool,
    ) -> Result<(), FlowError> {
        let before = flows.len();
        for _ in 0..DUMP_ATTEMPTS {
            flows.truncate(before);
            self.sequence = self.sequence.wrapping_add(1);
            let sequence = self.sequence;
            self.requests.clear();
            let head = Head {
                kind: kind(subsystem::CONNTRACK, GET),
                flags: DUMP,
                sequence,
                family: build::family(address),
                resource: 0,
            };
            append(&mut self.requests, head, |body| build::filter(body, address, reply));
            let dumped = self.socket.dump(&self.requests, sequence, &mut self.buffer, |entry| {
                match parse(entry).map_err(FlowError::Entry)? {
                    Some(flow) if wanted(&flow) => flows.push(flow),
                    _ => {}
                }
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

    /// Changes the bits of the flows' marks in which `mask` is set, in place: nothing else of
    /// the entries changes.
    ///
    /// # Errors
    /// When the table cannot be changed at all; single flows are told in the [`Outcome`].
    pub fn set_mark(
        &mut self,
        flows: &[Flow],
        value: u32,
        mask: u32,
    ) -> Result<Outcome, FlowError> {
        self.change("mark", flows, (NEW, 0), |body, flow| build::mark(body, flow, value, mask))
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
            self.exchange(&chunk, &mut outcome)
                .map_err(|source| FlowError::Change { act, count: flows.len(), source })?;
        }
        let failed = outcome.gone.len() + outcome.existing.len() + outcome.refused.len();
        outcome.done = flows.len() - failed;
        Ok(outcome)
    }

    fn exchange(&mut self, chunk: &Chunk, outcome: &mut Outcome) -> Result<(), SocketError> {
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
                            errno => {
                                let reason = refused.reason;
                                outcome.refused.push(Refusal { flow, errno, reason });
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
