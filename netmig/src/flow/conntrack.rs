//! The kernel's conntrack table by ctnetlink.

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
/// Asks for figures of the whole table.
const GET_STATS: i32 = 5;
/// `CTA_STATS_GLOBAL_ENTRIES`: entries of this network namespace.
const STATS_ENTRIES: u16 = 1;
/// Requests are sent in datagrams of about this many bytes.
const CHUNK: usize = 60 << 10;

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
    /// SiblingAddresses are made in their place again and again.
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
