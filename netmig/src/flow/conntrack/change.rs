//! Changing the table: marks, timeouts, creation and deletion of entries.

use std::net::IpAddr;

use nix::errno::Errno;

use super::{CHUNK, Conntrack, DELETE, FlowError, NEW, encode, kind};
use crate::flow::{Direction, Flow};
use crate::netlink::Refused;
use crate::netlink::attribute::family;
use crate::netlink::connection::Answer;
use crate::netlink::message::{CREATE, EXCLUSIVE, append};
use crate::netlink::nfnetlink::nfgenmsg;
use crate::peer_number::PeerNumber;

/// The outcome of a change in which the kernel [refused](FlowError::Refused) no entry. Indices are
/// those of the given slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Number of changed entries.
    pub done: usize,
    /// Entries that no longer existed: their flows ended in the meantime.
    pub gone: Vec<usize>,
    /// Entries that existed already and so were not created.
    pub existing: Vec<usize>,
}

/// Entries that the kernel refused for a reason other than that they are gone or exist already.
#[derive(Default)]
struct Refusals {
    count: usize,
    /// Index of the first one, and the kernel's answer.
    first: Option<(usize, Refused)>,
}

impl Conntrack {
    /// Steers those of the container's flows that go to peer `from` to another peer, or back to
    /// this host (`None`). Returns their number.
    ///
    /// # Errors
    /// As [`Conntrack::dump`] and [`Conntrack::set_mark`].
    pub fn redirect(
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

    /// Changes the bits of the flows' connmarks in which `mask` is set. Nothing else of the entries
    /// changes.
    ///
    /// # Errors
    /// [`FlowError::Change`] when no entry can be changed, [`FlowError::Refused`] when some cannot.
    /// A flow that has ended is not an error: the [`Outcome`] lists it.
    pub fn set_mark(
        &mut self,
        flows: &[Flow],
        value: u32,
        mask: u32,
    ) -> Result<Outcome, FlowError> {
        self.change("mark", flows, (NEW, 0), |body, flow| encode::mark(body, flow, value, mask))
    }

    /// Sets the entries' timeout, in seconds.
    ///
    /// # Errors
    /// As [`Conntrack::set_mark`].
    pub fn set_timeout(&mut self, flows: &[Flow], seconds: u32) -> Result<Outcome, FlowError> {
        self.change("prolong", flows, (NEW, 0), |body, flow| encode::timeout(body, flow, seconds))
    }

    /// Creates entries. Those that exist already stay as they are.
    ///
    /// # Errors
    /// As [`Conntrack::set_mark`].
    pub fn create(&mut self, flows: &[Flow]) -> Result<Outcome, FlowError> {
        self.change("create", flows, (NEW, CREATE | EXCLUSIVE), encode::create)
    }

    /// Deletes entries, named by their original tuple and zone.
    ///
    /// # Errors
    /// As [`Conntrack::set_mark`].
    pub fn delete(&mut self, flows: &[Flow]) -> Result<Outcome, FlowError> {
        self.change("delete", flows, (DELETE, 0), encode::identity)
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
