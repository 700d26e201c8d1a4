//! One nf_tables batch: sent in one datagram, with every answer accounted for.

use std::ops::Range;

use nftnl::Batch;

use super::TableError;
use crate::netlink::message::{APPEND, Message, change_flags};
use crate::netlink::nfnetlink::Subsystem;
use crate::netlink::{Connection, Refused, SocketError};

/// A finished batch, ready to be sent.
pub(crate) struct Transaction {
    bytes: Vec<u8>,
    /// Sequence numbers that are answered. Kernels before 6.10 do not acknowledge the messages that
    /// begin and end a batch; nftnl excludes those from the range there.
    answered: Range<u32>,
    /// Sequence number of the first message between begin and end.
    first: u32,
}

/// The transactions that put a hold in force.
pub(crate) struct HoldTransactions {
    /// For new TCP connections.
    pub(crate) new_connections: Transaction,
    /// For everything.
    pub(crate) everything: Transaction,
}

impl Transaction {
    pub(crate) fn new(batch: Batch) -> Self {
        let batch = batch.finalize();
        // The kernel accepts a batch in one datagram only; nftnl returns it in pages.
        let bytes = batch.iter().flatten().copied().collect();
        let answered = batch.sequence_numbers();
        let first = answered.start + u32::from(begin_is_answered(&batch));
        Self { bytes, answered, first }
    }

    /// Makes the added rules come before all others of their chains, the last one first.
    pub(crate) fn inserting(mut self) -> Self {
        // Without the flag a rule is put first (`nf_tables_newrule`).
        let new_rule = Subsystem::NfTables.kind(libc::NFT_MSG_NEWRULE);
        change_flags(&mut self.bytes, new_rule, |flags| flags & !APPEND);
        self
    }

    /// Returns the messages.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the sequence number of the `index`th message.
    pub(crate) fn message(&self, index: u32) -> u32 {
        self.first + index
    }

    /// Sends the batch and returns the refusals with their sequence numbers. None means that the
    /// batch is in force.
    ///
    /// When the call that sends it returns, the kernel has processed the batch and put all its
    /// answers into the socket, so there is nothing to wait for.
    pub(crate) fn refusals(
        &self,
        connection: &mut Connection,
    ) -> Result<Vec<(u32, Refused)>, TableError> {
        let answers_lost = || TableError::Read(SocketError::Overrun);
        let (socket, buffer) = connection.parts();
        while socket.poll(buffer)?.is_some() {}
        socket.send(&self.bytes)?;
        let mut answers = 0;
        let mut refusals = Vec::new();
        while let Some(messages) = socket.poll(buffer)? {
            for message in messages {
                match message.map_err(SocketError::from)? {
                    Message::Ack { sequence } if self.answered.contains(&sequence) => answers += 1,
                    Message::Refused { sequence, refused } => {
                        answers += 1;
                        refusals.push((sequence, refused));
                    }
                    Message::Overrun => return Err(answers_lost()),
                    _ => {}
                }
            }
        }
        if refusals.is_empty() && answers < self.answered.len() {
            return Err(answers_lost());
        }
        Ok(refusals)
    }
}

/// Returns whether the batch's begin message has a sequence number of its own in the answered
/// range.
fn begin_is_answered(batch: &nftnl::FinalizedBatch) -> bool {
    // The begin message stands first; its sequence number is 0 where it is not answered.
    batch.iter().next().and_then(|page| page.get(8..12)).is_some_and(|sequence| sequence != [0; 4])
}
