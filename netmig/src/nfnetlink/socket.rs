//! A blocking nfnetlink socket with large buffers, extended errors and a receive timeout.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket as NetlinkSocket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::attribute::Malformed;
use super::message::{Message, Messages, Refused};

/// Largest datagram taken. The kernel makes dump datagrams as large as the largest buffer it was
/// offered, up to 32 KiB (`net/netlink/af_netlink.c`, `netlink_dump`).
const DATAGRAM: usize = 64 << 10;
/// Room for a whole chunk of requests.
const SEND_BUFFER: usize = 4 << 20;
/// No answer of the kernel takes this long: it answers within the call that asks.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the kernel could not be talked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The socket could not be made.
    #[error("cannot open a netfilter netlink socket; root (CAP_NET_ADMIN) is needed")]
    Open(#[source] io::Error),
    /// An option was refused.
    #[error("cannot set {option} on a netfilter netlink socket")]
    Option {
        /// The option's name.
        option: &'static str,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// A request could not be sent.
    #[error("cannot send a request to netfilter")]
    Send(#[source] Errno),
    /// An answer could not be received.
    #[error("cannot receive an answer from netfilter")]
    Receive(#[source] Errno),
    /// Nothing came within the socket's receive timeout.
    #[error("netfilter did not answer within {0:?}")]
    Timeout(Duration),
    /// The kernel had to throw answers away because the receive buffer was full.
    #[error("the receive buffer of a netfilter socket ran over and answers were lost")]
    Overrun,
    /// A datagram did not fit.
    #[error("netfilter sent a datagram of {0} bytes, more than this program takes")]
    TooLong(usize),
    /// An answer could not be understood.
    #[error("an answer from netfilter could not be read")]
    Malformed(#[from] Malformed),
    /// A request was refused.
    #[error("netfilter refused a request ({reason})")]
    Refused {
        /// The kernel's own words, or "no reason given".
        reason: String,
        /// The error number.
        #[source]
        source: Errno,
    },
}

impl SocketError {
    /// The error number with which the kernel refused, if it did.
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

/// What differs between the users of a socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Receive buffer in bytes, beyond the system's limit if need be.
    pub(crate) receive_buffer: usize,
    /// How long a receive may wait.
    pub(crate) timeout: Duration,
    /// Lose messages silently rather than report an overrun (`NETLINK_NO_ENOBUFS`).
    pub(crate) no_enobufs: bool,
    /// Multicast groups to listen to.
    pub(crate) groups: &'static [u32],
}

impl Default for Options {
    fn default() -> Self {
        Self { receive_buffer: 8 << 20, timeout: ANSWER_TIMEOUT, no_enobufs: false, groups: &[] }
    }
}

/// A socket bound to the network namespace of the thread that opened it.
pub(crate) struct Socket {
    inner: NetlinkSocket,
    timeout: Duration,
}

impl Socket {
    pub(crate) fn open(options: Options) -> Result<Self, SocketError> {
        let mut inner = NetlinkSocket::new(NETLINK_NETFILTER).map_err(SocketError::Open)?;
        inner.bind_auto().map_err(SocketError::Open)?;
        inner.connect(&SocketAddr::new(0, 0)).map_err(SocketError::Open)?;
        let set = |option, result: io::Result<()>| {
            result.map_err(|source| SocketError::Option { option, source })
        };
        set("NETLINK_EXT_ACK", inner.set_ext_ack(true))?;
        set("NETLINK_CAP_ACK", inner.set_cap_ack(true))?;
        if options.no_enobufs {
            set("NETLINK_NO_ENOBUFS", inner.set_no_enobufs(true))?;
        }
        for group in options.groups {
            set("NETLINK_ADD_MEMBERSHIP", inner.add_membership(*group))?;
        }
        let fd = inner.as_fd();
        let timeout = TimeVal::new(
            options.timeout.as_secs().try_into().unwrap_or(i64::MAX),
            options.timeout.subsec_micros().into(),
        );
        set(
            "SO_RCVBUFFORCE",
            setsockopt(&fd, sockopt::RcvBufForce, &options.receive_buffer).map_err(io::Error::from),
        )?;
        set(
            "SO_SNDBUFFORCE",
            setsockopt(&fd, sockopt::SndBufForce, &SEND_BUFFER).map_err(io::Error::from),
        )?;
        set(
            "SO_RCVTIMEO",
            setsockopt(&fd, sockopt::ReceiveTimeout, &timeout).map_err(io::Error::from),
        )?;
        Ok(Self { inner, timeout: options.timeout })
    }

    /// A buffer that takes any datagram.
    pub(crate) fn buffer() -> Vec<u8> {
        vec![0; DATAGRAM]
    }

    /// Sends one datagram of requests; netfilter has carried them out when this returns.
    pub(crate) fn send(&self, requests: &[u8]) -> Result<(), SocketError> {
        loop {
            match send(self.inner.as_raw_fd(), requests, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(SocketError::Send(errno)),
            }
        }
    }

    /// Receives one datagram, waiting no longer than the timeout.
    pub(crate) fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Messages<'a>, SocketError> {
        match self.receive_with(buffer, MsgFlags::empty())? {
            Some(length) => Ok(Messages::new(&buffer[..length])),
            None => Err(SocketError::Timeout(self.timeout)),
        }
    }

    /// Receives one datagram that is already there, or none.
    pub(crate) fn poll<'a>(
        &self,
        buffer: &'a mut [u8],
    ) -> Result<Option<Messages<'a>>, SocketError> {
        let length = self.receive_with(buffer, MsgFlags::MSG_DONTWAIT)?;
        Ok(length.map(|length| Messages::new(&buffer[..length])))
    }

    fn receive_with(
        &self,
        buffer: &mut [u8],
        flags: MsgFlags,
    ) -> Result<Option<usize>, SocketError> {
        loop {
            // MSG_TRUNC: the datagram's real length, so that a cut-off one is noticed.
            match recv(self.inner.as_raw_fd(), buffer, flags | MsgFlags::MSG_TRUNC) {
                Ok(length) if length > buffer.len() => return Err(SocketError::TooLong(length)),
                Ok(length) => return Ok(Some(length)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::ENOBUFS) => return Err(SocketError::Overrun),
                Err(errno) => return Err(SocketError::Receive(errno)),
            }
        }
    }

    /// Sends one request and waits for its acknowledgement.
    pub(crate) fn request(&self, request: &[u8], sequence: u32) -> Result<(), SocketError> {
        let mut buffer = Self::buffer();
        self.send(request)?;
        loop {
            for message in self.receive(&mut buffer)? {
                match message? {
                    Message::Ack { sequence: of } if of == sequence => return Ok(()),
                    Message::Refused { sequence: of, refused } if of == sequence => {
                        return Err(refused.into());
                    }
                    _ => {}
                }
            }
        }
    }

    /// Sends a dump request and hands every answer's payload to `each`.
    ///
    /// Returns whether the table stayed the same throughout; if not, entries may be missing or
    /// given twice, and the dump should be repeated.
    pub(crate) fn dump<E: From<SocketError>>(
        &self,
        request: &[u8],
        sequence: u32,
        buffer: &mut [u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<bool, E> {
        self.send(request)?;
        let mut consistent = true;
        loop {
            for message in self.receive(buffer)? {
                match message.map_err(SocketError::from)? {
                    Message::Data { flags, sequence: of, payload, .. } if of == sequence => {
                        consistent &= flags & super::message::DUMP_INTERRUPTED == 0;
                        each(payload)?;
                    }
                    Message::Done { sequence: of, interrupted, refused } if of == sequence => {
                        return match refused {
                            Some(errno) => {
                                Err(SocketError::from(Refused { errno, reason: String::new() })
                                    .into())
                            }
                            None => Ok(consistent && !interrupted),
                        };
                    }
                    Message::Refused { sequence: of, refused } if of == sequence => {
                        return Err(SocketError::from(refused).into());
                    }
                    Message::Overrun => return Err(SocketError::Overrun.into()),
                    _ => {}
                }
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}
