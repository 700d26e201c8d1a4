//! Errors of netlink sockets and messages.

use std::io;
use std::time::Duration;

use nix::errno::Errno;

use super::socket::Protocol;

/// Bytes that do not have the shape they claim to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed netlink data: {0}")]
pub struct Malformed(pub(crate) &'static str);

/// The kernel's refusal of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) errno: Errno,
    /// The text of the extended acknowledgement; empty if the kernel gave none.
    pub(crate) reason: String,
}

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The socket could not be opened.
    #[error("cannot open a netlink socket of family {protocol}; netmig needs CAP_NET_ADMIN")]
    Open {
        /// The netlink family.
        protocol: Protocol,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a socket option.
    #[error("cannot set {option} on a netlink socket")]
    Option {
        /// The option's name.
        option: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A request could not be sent.
    #[error("cannot send a netlink request")]
    Send(#[source] Errno),
    /// An answer could not be received.
    #[error("cannot receive a netlink answer")]
    Receive(#[source] Errno),
    /// No answer came within the socket's receive timeout.
    #[error("the kernel did not answer a netlink request within {0:?}")]
    Timeout(Duration),
    /// The kernel dropped answers because the receive buffer was full.
    #[error("the receive buffer of a netlink socket overflowed and answers were lost")]
    Overrun,
    /// A datagram was larger than the receive buffer.
    #[error("the kernel sent a netlink datagram of {0} bytes, more than netmig accepts")]
    TooLong(usize),
    /// An answer could not be parsed.
    #[error("cannot parse a netlink answer")]
    Malformed(#[from] Malformed),
    /// The objects changed during each of several dumps.
    #[error("the objects changed during each of several netlink dumps; try again")]
    Unstable,
    /// The kernel refused a request.
    #[error("the kernel refused a netlink request ({reason})")]
    Refused {
        /// The kernel's own text, or "no reason given".
        reason: String,
        /// The error number.
        #[source]
        source: Errno,
    },
}

impl SocketError {
    /// Returns the error number with which the kernel refused the request, if it did.
    pub(crate) fn refusal(&self) -> Option<Errno> {
        match self {
            Self::Refused { source, .. } => Some(*source),
            _ => None,
        }
    }
}

impl From<Refused> for SocketError {
    fn from(refused: Refused) -> Self {
        let reason =
            if refused.reason.is_empty() { "no reason given".into() } else { refused.reason };
        Self::Refused { reason, source: refused.errno }
    }
}

/// A refusal becomes its error number, as `std` represents the answers of system calls.
impl From<SocketError> for io::Error {
    fn from(error: SocketError) -> Self {
        match error {
            SocketError::Refused { source, .. }
            | SocketError::Send(source)
            | SocketError::Receive(source) => source.into(),
            SocketError::Open { source, .. } | SocketError::Option { source, .. } => source,
            SocketError::Timeout(_) => Self::new(io::ErrorKind::TimedOut, error),
            SocketError::Unstable => Self::new(io::ErrorKind::Interrupted, error),
            other => Self::other(other),
        }
    }
}
