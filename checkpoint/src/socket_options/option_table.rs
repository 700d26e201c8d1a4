//! The options that CRIU 4.2 leaves at their defaults, as a table.
//!
//! The table comes from an experiment: every option that can be set and read was set in a container and read after a move
//! (`fidelity-socket-options` of the testbed). CRIU itself restores buffer sizes, SO_KEEPALIVE and its times,
//! SO_PRIORITY, SO_MARK, TCP_NODELAY, TCP_CORK, IPV6_V6ONLY, and of IPv4 sockets IP_TOS, IP_TTL, IP_PKTINFO and
//! IP_FREEBIND. The table leaves out values that the kernel changes by itself (SO_INCOMING_CPU, TCP_QUICKACK, TCP_MAXSEG
//! of connections).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Longest value, in bytes.
pub const LONGEST: usize = 16;

const SOCKET: i32 = libc::SOL_SOCKET;
const TCP: i32 = libc::IPPROTO_TCP;
const UDP: i32 = libc::IPPROTO_UDP;
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;
/// TCP_WINDOW_CLAMP (linux/tcp.h).
const WINDOW_CLAMP: i32 = 10;

/// Which sockets have an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// All of IPv4, IPv6 and unix sockets.
    All,
    /// IPv4 and IPv6 sockets; one of IPv6 may speak IPv4, too.
    Internet,
    /// IPv6 sockets.
    Six,
    /// IPv4 and IPv6 sockets that send datagrams.
    Datagrams,
    /// IPv6 sockets that send datagrams.
    DatagramsOfSix,
    /// TCP sockets.
    Tcp,
    /// TCP sockets that listen.
    Listeners,
    /// UDP sockets.
    Udp,
    /// Unix sockets.
    Unix,
}

/// An option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOption {
    /// Its name in C.
    pub name: &'static str,
    /// Its level (getsockopt(2)).
    pub level: i32,
    /// Its number.
    pub number: i32,
    /// Which sockets have it.
    pub of: Of,
}

const fn option(name: &'static str, level: i32, number: i32, of: Of) -> SocketOption {
    SocketOption { name, level, number, of }
}

/// All of them (asm-generic/socket.h, linux/tcp.h, linux/udp.h, linux/in.h, linux/in6.h).
pub const OPTIONS: &[SocketOption] = &[
    option("SO_TIMESTAMP", SOCKET, 29, Of::All),
    option("SO_TIMESTAMPNS", SOCKET, 35, Of::All),
    option("SO_LOCK_FILTER", SOCKET, 44, Of::All),
    option("SO_RXQ_OVFL", SOCKET, 40, Of::All),
    option("SO_SELECT_ERR_QUEUE", SOCKET, 45, Of::All),
    option("SO_BUSY_POLL", SOCKET, 46, Of::All),
    option("SO_MAX_PACING_RATE", SOCKET, 47, Of::All),
    option("SO_ZEROCOPY", SOCKET, 60, Of::Internet),
    option("SO_TXREHASH", SOCKET, 74, Of::Tcp),
    option("SO_RCVMARK", SOCKET, 75, Of::All),
    option("SO_PEEK_OFF", SOCKET, 42, Of::All),
    option("SO_PASSPIDFD", SOCKET, 76, Of::Unix),
    option("SO_PASSRIGHTS", SOCKET, 83, Of::Unix),
    option("TCP_CONGESTION", TCP, 13, Of::Tcp),
    option("TCP_USER_TIMEOUT", TCP, 18, Of::Tcp),
    option("TCP_NOTSENT_LOWAT", TCP, 25, Of::Tcp),
    option("TCP_WINDOW_CLAMP", TCP, WINDOW_CLAMP, Of::Tcp),
    option("TCP_SYNCNT", TCP, 7, Of::Tcp),
    option("TCP_LINGER2", TCP, 8, Of::Tcp),
    option("TCP_THIN_LINEAR_TIMEOUTS", TCP, 16, Of::Tcp),
    option("TCP_INQ", TCP, 36, Of::Tcp),
    option("TCP_TX_DELAY", TCP, 37, Of::Tcp),
    option("TCP_RTO_MAX_MS", TCP, 44, Of::Tcp),
    option("TCP_RTO_MIN_US", TCP, 45, Of::Tcp),
    option("TCP_DELACK_MAX_US", TCP, 46, Of::Tcp),
    option("TCP_SAVE_SYN", TCP, 27, Of::Listeners),
    option("TCP_MAXSEG", TCP, 2, Of::Listeners),
    option("TCP_DEFER_ACCEPT", TCP, 9, Of::Tcp),
    option("TCP_FASTOPEN", TCP, 23, Of::Listeners),
    option("TCP_FASTOPEN_NO_COOKIE", TCP, 34, Of::Listeners),
    option("UDP_ENCAP", UDP, 100, Of::Udp),
    option("UDP_NO_CHECK6_TX", UDP, 101, Of::Udp),
    option("UDP_NO_CHECK6_RX", UDP, 102, Of::Udp),
    option("UDP_SEGMENT", UDP, 103, Of::Udp),
    option("UDP_GRO", UDP, 104, Of::Udp),
    option("IP_TOS", IP, 1, Of::Internet),
    option("IP_TTL", IP, 2, Of::Internet),
    option("IP_RECVOPTS", IP, 6, Of::Internet),
    option("IP_RETOPTS", IP, 7, Of::Internet),
    option("IP_PKTINFO", IP, 8, Of::Internet),
    option("IP_MTU_DISCOVER", IP, 10, Of::Internet),
    option("IP_RECVERR", IP, 11, Of::Internet),
    option("IP_RECVTTL", IP, 12, Of::Internet),
    option("IP_RECVTOS", IP, 13, Of::Internet),
    option("IP_PASSSEC", IP, 18, Of::Internet),
    option("IP_RECVORIGDSTADDR", IP, 20, Of::Internet),
    option("IP_MINTTL", IP, 21, Of::Internet),
    option("IP_CHECKSUM", IP, 23, Of::Internet),
    option("IP_BIND_ADDRESS_NO_PORT", IP, 24, Of::Internet),
    option("IP_RECVFRAGSIZE", IP, 25, Of::Datagrams),
    option("IP_RECVERR_RFC4884", IP, 26, Of::Internet),
    option("IP_LOCAL_PORT_RANGE", IP, 51, Of::Internet),
    option("IP_MULTICAST_IF", IP, 32, Of::Datagrams),
    option("IP_MULTICAST_TTL", IP, 33, Of::Datagrams),
    option("IP_MULTICAST_LOOP", IP, 34, Of::Datagrams),
    option("IP_MULTICAST_ALL", IP, 49, Of::Datagrams),
    option("IPV6_FLOWINFO", IPV6, 11, Of::Six),
    option("IPV6_UNICAST_HOPS", IPV6, 16, Of::Six),
    option("IPV6_MULTICAST_IF", IPV6, 17, Of::DatagramsOfSix),
    option("IPV6_MULTICAST_HOPS", IPV6, 18, Of::DatagramsOfSix),
    option("IPV6_MULTICAST_LOOP", IPV6, 19, Of::DatagramsOfSix),
    option("IPV6_MULTICAST_ALL", IPV6, 29, Of::DatagramsOfSix),
    option("IPV6_MTU_DISCOVER", IPV6, 23, Of::Six),
    option("IPV6_RECVERR", IPV6, 25, Of::Six),
    option("IPV6_RECVERR_RFC4884", IPV6, 31, Of::Six),
    option("IPV6_FLOWINFO_SEND", IPV6, 33, Of::Six),
    option("IPV6_RECVHOPLIMIT", IPV6, 51, Of::Six),
    option("IPV6_RECVHOPOPTS", IPV6, 53, Of::Six),
    option("IPV6_RECVRTHDR", IPV6, 56, Of::Six),
    option("IPV6_RECVDSTOPTS", IPV6, 58, Of::Six),
    option("IPV6_RECVPATHMTU", IPV6, 60, Of::Six),
    option("IPV6_DONTFRAG", IPV6, 62, Of::Six),
    option("IPV6_RECVTCLASS", IPV6, 66, Of::Six),
    option("IPV6_TCLASS", IPV6, 67, Of::Six),
    option("IPV6_AUTOFLOWLABEL", IPV6, 70, Of::Six),
    option("IPV6_ADDR_PREFERENCES", IPV6, 72, Of::Six),
    option("IPV6_MINHOPCOUNT", IPV6, 73, Of::Six),
    option("IPV6_RECVORIGDSTADDR", IPV6, 74, Of::Six),
    option("IPV6_RECVFRAGSIZE", IPV6, 77, Of::Six),
];

/// What a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind {
    /// Its family (socket(7), SO_DOMAIN).
    pub family: i32,
    /// Its type (SO_TYPE).
    pub kind: i32,
    /// Its protocol (SO_PROTOCOL).
    pub protocol: i32,
    /// Whether it listens (SO_ACCEPTCONN).
    pub listens: bool,
}

impl Kind {
    /// Returns what a socket is; `None` of families that have none of the options, and of what is no socket.
    #[must_use]
    pub fn of(socket: &OwnedFd) -> Option<Self> {
        let family = number(socket, SOCKET, libc::SO_DOMAIN)?;
        if !matches!(family, libc::AF_INET | libc::AF_INET6 | libc::AF_UNIX) {
            return None;
        }
        Some(Self {
            family,
            kind: number(socket, SOCKET, libc::SO_TYPE)?,
            protocol: number(socket, SOCKET, libc::SO_PROTOCOL)?,
            listens: number(socket, SOCKET, libc::SO_ACCEPTCONN)? != 0,
        })
    }
}

impl SocketOption {
    /// Returns the option of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static Self> {
        OPTIONS.iter().find(|option| option.name == name)
    }

    /// Returns whether sockets of a kind have it.
    #[must_use]
    pub fn is_of(&self, kind: &Kind) -> bool {
        let is_six = kind.family == libc::AF_INET6;
        let is_internet = is_six || kind.family == libc::AF_INET;
        let is_tcp = is_internet && kind.protocol == TCP && kind.kind == libc::SOCK_STREAM;
        let sends_datagrams = is_internet && kind.kind != libc::SOCK_STREAM;
        match self.of {
            Of::All => true,
            Of::Internet => is_internet,
            Of::Six => is_six,
            Of::Datagrams => sends_datagrams,
            Of::DatagramsOfSix => is_six && sends_datagrams,
            Of::Tcp => is_tcp,
            Of::Listeners => is_tcp && kind.listens,
            Of::Udp => sends_datagrams && kind.protocol == UDP,
            Of::Unix => kind.family == libc::AF_UNIX,
        }
    }

    /// Returns its value; `None` where this socket or this kernel has none.
    #[must_use]
    pub fn read(&self, socket: &OwnedFd) -> Option<Vec<u8>> {
        let mut value = [0_u8; LONGEST];
        let mut length = LONGEST as libc::socklen_t;
        // SAFETY: the kernel writes no more bytes than the buffer has, and their number.
        let done = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                self.level,
                self.number,
                value.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let value = (done == 0).then_some(value)?;
        value.get(..length as usize).map(<[u8]>::to_vec)
    }

    /// Sets it.
    ///
    /// # Errors
    /// The kernel refuses the value, or has no such option.
    pub fn write(&self, socket: &OwnedFd, value: &[u8]) -> io::Result<()> {
        // SAFETY: the kernel reads as many bytes as the slice has.
        let done = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                self.level,
                self.number,
                value.as_ptr().cast(),
                value.len() as libc::socklen_t,
            )
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Returns whether a value that differs from the default was set by the program. The kernel sets the largest
    /// window of a connection to about half of its buffer; a program that limits the window sets less.
    #[must_use]
    pub(super) fn is_chosen(&self, socket: &OwnedFd, kind: &Kind, value: &[u8]) -> bool {
        if (self.level, self.number) != (TCP, WINDOW_CLAMP) || kind.listens {
            return true;
        }
        let clamp = value.try_into().map(i32::from_ne_bytes);
        let buffer = number(socket, SOCKET, libc::SO_RCVBUF);
        matches!((clamp, buffer), (Ok(clamp), Some(buffer)) if clamp < buffer / 4)
    }
}

fn number(socket: &OwnedFd, level: i32, number: i32) -> Option<i32> {
    let value = option("", level, number, Of::All).read(socket)?;
    value.as_slice().try_into().ok().map(i32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn names_and_numbers_are_unique() {
        let names: BTreeSet<_> = OPTIONS.iter().map(|option| option.name).collect();
        let numbers: BTreeSet<_> = OPTIONS.iter().map(|o| (o.level, o.number)).collect();
        assert_eq!((names.len(), numbers.len()), (OPTIONS.len(), OPTIONS.len()));
    }

    #[test]
    fn what_is_set_is_read() {
        let listener = OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
        let kind = Kind::of(&listener).unwrap();
        assert!(kind.listens && kind.family == libc::AF_INET);
        let timeout = SocketOption::by_name("TCP_USER_TIMEOUT").unwrap();
        assert!(timeout.is_of(&kind));
        timeout.write(&listener, &45_000_i32.to_ne_bytes()).unwrap();
        assert_eq!(timeout.read(&listener), Some(45_000_i32.to_ne_bytes().to_vec()));
        assert!(timeout.write(&listener, &[]).is_err());
        let socket = OwnedFd::from(UdpSocket::bind("[::1]:0").unwrap());
        let kind = Kind::of(&socket).unwrap();
        assert!(!timeout.is_of(&kind));
        assert!(SocketOption::by_name("IPV6_TCLASS").unwrap().is_of(&kind));
        assert!(SocketOption::by_name("SO_ATTACH_FILTER").is_none());
    }
}
