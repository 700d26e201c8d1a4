//! Errors of the nftables table.

use super::TABLE;
use crate::netlink::SocketError;

/// Why the table could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The netlink socket could not be opened.
    #[error("cannot open a netlink socket for nftables")]
    Open(#[source] SocketError),
    /// The table could not be read.
    #[error("cannot read the nftables table inet {TABLE}")]
    Read(#[source] SocketError),
    /// nftables refused a change; nothing of it was applied.
    #[error("nftables refused to {act}; nothing was changed")]
    Refused {
        /// The change.
        act: String,
        /// The kernel's answer.
        #[source]
        source: SocketError,
    },
    /// A chain of netmig's name has another hook.
    #[error(
        "chain {chain} of the nftables table inet {TABLE} is not the one this version makes; \
         remove the table (nft delete table inet {TABLE}) when nothing is being moved"
    )]
    ForeignChain {
        /// The chain.
        chain: &'static str,
    },
    /// The kernel supports neither form of queueing.
    #[error(
        "this kernel's nftables cannot queue packets: it has neither nft_queue nor the xtables \
         target NFQUEUE; load the module nft_queue"
    )]
    NoQueueing(#[source] SocketError),
    /// A hold with no or too many addresses and ports.
    #[error("a hold needs 1 to {most} rules, not {asked}; see the container's published ports")]
    NumberOfRules {
        /// Rules needed.
        asked: usize,
        /// Rules allowed.
        most: usize,
    },
    /// A container with too many ports to be forwarded.
    #[error("forwarding needs {asked} rules, more than {most}; move the container without it")]
    NumberOfForwards {
        /// Rules needed.
        asked: usize,
        /// Rules allowed.
        most: usize,
    },
    /// The table does not exist.
    #[error("the nftables table inet {TABLE} is not installed, or was removed by another program")]
    NotInstalled,
    /// A name that libnftnl cannot carry.
    #[error("an nftables name holds a NUL byte")]
    Name(#[from] std::ffi::NulError),
}

impl From<SocketError> for TableError {
    fn from(error: SocketError) -> Self {
        Self::Read(error)
    }
}
