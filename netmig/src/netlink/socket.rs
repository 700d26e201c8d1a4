//! A blocking netlink socket with a receive timeout and extended errors.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rtnetlink::sys::protocols::{
    NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_XFRM,
};
use rtnetlink::sys::{Socket as NetlinkSocket, SocketAddr};

use super::SocketError;
use super::message::Messages;

/// Largest datagram accepted. The kernel makes the datagrams of a dump as large as the largest buffer
/// it was offered, up to 32 KiB (`netlink_dump`, `net/netlink/af_netlink.c`).
const DATAGRAM: usize = 64 << 10;
/// Send buffer for a netfilter socket: a batch of requests is one datagram.
const SEND_BUFFER: usize = 4 << 20;
/// Receive buffer for a netfilter socket: every refusal of a batch is one datagram.
const RECEIVE_BUFFER: usize = 8 << 20;
/// The kernel answers within the call that sends the request, unless another process holds the
/// network configuration lock for something large, as the removal of a thousand interfaces.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The netlink families used here, netlink(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Interfaces, addresses, routes, policy rules, neighbours.
    Route,
    /// Sockets and their queues, sock_diag(7).
    SockDiag,
    /// Policies and security associations of IPsec.
    Xfrm,
    /// Conntrack, nf_tables, NFQUEUE.
    Netfilter,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Route => "rtnetlink",
            Self::SockDiag => "sock_diag",
            Self::Xfrm => "xfrm",
            Self::Netfilter => "netfilter",
        })
    }
}

/// How a socket is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Receive buffer in bytes, beyond the system's limit if necessary; `None` is the system's default.
    pub(crate) receive_buffer: Option<usize>,
    /// How long a receive may wait.
    pub(crate) timeout: Duration,
    /// Lose messages silently rather than report an overrun (`NETLINK_NO_ENOBUFS`).
    pub(crate) no_enobufs: bool,
    /// Multicast groups to join.
    pub(crate) groups: &'static [u32],
}

impl Options {
    /// Returns the options for requests to a family.
    pub(crate) fn of(protocol: Protocol) -> Self {
        let receive_buffer = (protocol == Protocol::Netfilter).then_some(RECEIVE_BUFFER);
        Self { receive_buffer, timeout: ANSWER_TIMEOUT, no_enobufs: false, groups: &[] }
    }
}

/// A socket in the network namespace of the thread that opened it, in which it stays.
pub(crate) struct Socket {
    inner: NetlinkSocket,
    timeout: Duration,
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread.
    pub(crate) fn open(protocol: Protocol, options: Options) -> Result<Self, SocketError> {
        let open = |source| SocketError::Open { protocol, source };
        let number = match protocol {
            Protocol::Route => NETLINK_ROUTE,
            Protocol::SockDiag => NETLINK_SOCK_DIAG,
            Protocol::Xfrm => NETLINK_XFRM,
            Protocol::Netfilter => NETLINK_NETFILTER,
        };
        let mut inner = NetlinkSocket::new(number).map_err(open)?;
        inner.bind_auto().map_err(open)?;
        inner.connect(&SocketAddr::new(0, 0)).map_err(open)?;
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
        if let Some(size) = options.receive_buffer {
            let forced = setsockopt(&fd, sockopt::RcvBufForce, &size);
            set("SO_RCVBUFFORCE", forced.map_err(io::Error::from))?;
            let forced = setsockopt(&fd, sockopt::SndBufForce, &SEND_BUFFER);
            set("SO_SNDBUFFORCE", forced.map_err(io::Error::from))?;
        }
        let timeout = TimeVal::new(
            options.timeout.as_secs().try_into().unwrap_or(i64::MAX),
            options.timeout.subsec_micros().into(),
        );
        let limited = setsockopt(&fd, sockopt::ReceiveTimeout, &timeout);
        set("SO_RCVTIMEO", limited.map_err(io::Error::from))?;
        let limited = setsockopt(&fd, sockopt::SendTimeout, &timeout);
        set("SO_SNDTIMEO", limited.map_err(io::Error::from))?;
        Ok(Self { inner, timeout: options.timeout })
    }

    /// Returns a buffer that holds any datagram.
    pub(crate) fn buffer() -> Vec<u8> {
        vec![0; DATAGRAM]
    }

    /// Sends one datagram of requests. The kernel has carried them out when this returns.
    pub(crate) fn send(&self, requests: &[u8]) -> Result<(), SocketError> {
        loop {
            match send(self.inner.as_raw_fd(), requests, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(SocketError::Timeout(self.timeout)),
                Err(errno) => return Err(SocketError::Send(errno)),
            }
        }
    }

    /// Receives one datagram and waits for it no longer than the timeout.
    pub(crate) fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Messages<'a>, SocketError> {
        match self.receive_with(buffer, MsgFlags::empty())? {
            Some(length) => Ok(Messages::new(&buffer[..length])),
            None => Err(SocketError::Timeout(self.timeout)),
        }
    }

    /// Receives one datagram if there is one.
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
            // MSG_TRUNC returns the datagram's real length, so that a truncated one is noticed.
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
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Socket").field(&self.inner.as_raw_fd()).finish()
    }
}
