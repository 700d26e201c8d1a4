//! The kernel's conntrack table by ctnetlink (`net/netfilter/nf_conntrack_netlink.c`).

mod change;
mod dump;
mod encode;
mod parse;

use crate::netlink::connection::Answer;
use crate::netlink::message::request;
use crate::netlink::nfnetlink::{Subsystem, attributes, nfgenmsg};
use crate::netlink::{Connection, Malformed, Protocol as Netlink, SocketError};

pub use change::Outcome;
pub use parse::parse;

/// Messages of ctnetlink (`enum cntl_msg_types`).
const NEW: i32 = 0;
const GET: i32 = 1;
const DELETE: i32 = 2;
/// Requests figures of the whole table.
const GET_STATS: i32 = 5;
/// `CTA_STATS_GLOBAL_ENTRIES`: entries of this network namespace.
const STATS_ENTRIES: u16 = 1;
/// Bytes of requests that are sent in one datagram, roughly.
const CHUNK: usize = 60 << 10;

/// Why the conntrack table could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlowError {
    /// The netlink socket could not be opened.
    #[error("cannot open the conntrack table")]
    Open(#[source] SocketError),
    /// The table could not be read.
    #[error("cannot read the conntrack table")]
    Dump(#[source] SocketError),
    /// The kernel's description of an entry could not be parsed.
    #[error("cannot parse an entry of the conntrack table")]
    Entry(#[source] Malformed),
    /// The table was resized during each of several dumps.
    #[error("the conntrack table changed during each of several dumps; try again")]
    Unstable,
    /// No entry could be changed.
    #[error("cannot {act} {count} conntrack entries")]
    Change {
        /// The requested change: mark, create, delete, prolong.
        act: &'static str,
        /// Number of entries to be changed.
        count: usize,
        /// The reason.
        #[source]
        source: SocketError,
    },
    /// Packets recreate conflicting entries again and again.
    #[error(
        "{count} conntrack entries could not be created because conflicting ones keep coming back; the first is that of {flow}"
    )]
    InTheWay {
        /// Number of entries that could not be created.
        count: usize,
        /// The first of them.
        flow: String,
    },
    /// The kernel refused some entries. All others are changed.
    #[error("the kernel refused to {act} {count} conntrack entries; the first is {flow}: {reason}")]
    Refused {
        /// The requested change: mark, create, delete, prolong.
        act: &'static str,
        /// Number of refused entries.
        count: usize,
        /// The first of them.
        flow: String,
        /// The error of the first, with the kernel's text if it gave one.
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

/// The conntrack table of the network namespace in which it was opened.
///
/// All calls block, for at most five seconds; changes have taken effect when they return.
pub struct Conntrack {
    connection: Connection,
    requests: Vec<u8>,
}

impl Conntrack {
    /// Opens the table and prepares all buffers.
    ///
    /// # Errors
    /// [`FlowError::Open`] without CAP_NET_ADMIN, or on a kernel without nfnetlink.
    pub fn open() -> Result<Self, FlowError> {
        let connection = Connection::open(Netlink::Netfilter).map_err(FlowError::Open)?;
        Ok(Self { connection, requests: Vec::with_capacity(CHUNK + 1024) })
    }

    /// Returns the number of entries in the table, of any kind.
    ///
    /// # Errors
    /// [`FlowError::Dump`] or [`FlowError::Entry`] when the table cannot be read.
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
        entries.ok_or(FlowError::Entry(Malformed("conntrack statistics without a count")))
    }
}

fn kind(message: i32) -> u16 {
    Subsystem::Conntrack.kind(message)
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
