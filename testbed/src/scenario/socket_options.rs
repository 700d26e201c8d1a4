//! Sockets whose options differ from the defaults.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;
use std::{fs, mem};

use super::check;

/// The file to which the values are written again and again.
pub const FILE: &str = "/run/options";

/// An option: name, level, number, value.
type Set = (&'static str, i32, i32, i32);

const BASE: i32 = libc::SOL_SOCKET;
const TCP: i32 = libc::IPPROTO_TCP;
const UDP: i32 = libc::IPPROTO_UDP;
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;

/// The options of any socket (`asm-generic/socket.h`).
const ANY: &[Set] = &[
    ("SO_PRIORITY", BASE, 12, 5),
    ("SO_RCVLOWAT", BASE, 18, 2),
    ("SO_TIMESTAMP", BASE, 29, 1),
    ("SO_RXQ_OVFL", BASE, 40, 1),
    ("SO_PEEK_OFF", BASE, 42, 0),
    ("SO_SELECT_ERR_QUEUE", BASE, 45, 1),
    ("SO_BUSY_POLL", BASE, 46, 50),
    ("SO_MAX_PACING_RATE", BASE, 47, 1_000_000),
    ("SO_INCOMING_CPU", BASE, 49, 1),
    ("SO_ZEROCOPY", BASE, 60, 1),
    ("SO_PREFER_BUSY_POLL", BASE, 69, 1),
    ("SO_BUSY_POLL_BUDGET", BASE, 70, 16),
    ("SO_RESERVE_MEM", BASE, 73, 4096),
    ("SO_TXREHASH", BASE, 74, 0),
    ("SO_RCVMARK", BASE, 75, 1),
    ("SO_KEEPALIVE", BASE, 9, 1),
    ("SO_OOBINLINE", BASE, 10, 1),
    ("SO_NO_CHECK", BASE, 11, 1),
    ("SO_DONTROUTE", BASE, 5, 1),
    ("SO_MARK", BASE, 36, 7),
    ("SO_BROADCAST", BASE, 6, 1),
];

/// The options of TCP (`linux/tcp.h`).
const OF_TCP: &[Set] = &[
    ("TCP_NODELAY", TCP, 1, 1),
    ("TCP_MAXSEG", TCP, 2, 1000),
    ("TCP_KEEPIDLE", TCP, 4, 77),
    ("TCP_KEEPINTVL", TCP, 5, 7),
    ("TCP_KEEPCNT", TCP, 6, 4),
    ("TCP_SYNCNT", TCP, 7, 3),
    ("TCP_LINGER2", TCP, 8, 17),
    ("TCP_DEFER_ACCEPT", TCP, 9, 15),
    ("TCP_WINDOW_CLAMP", TCP, 10, 20_000),
    ("TCP_QUICKACK", TCP, 12, 0),
    ("TCP_THIN_LINEAR_TIMEOUTS", TCP, 16, 1),
    ("TCP_THIN_DUPACK", TCP, 17, 1),
    ("TCP_USER_TIMEOUT", TCP, 18, 45_000),
    ("TCP_FASTOPEN", TCP, 23, 16),
    ("TCP_NOTSENT_LOWAT", TCP, 25, 16_384),
    ("TCP_SAVE_SYN", TCP, 27, 1),
    ("TCP_FASTOPEN_CONNECT", TCP, 30, 1),
    ("TCP_FASTOPEN_NO_COOKIE", TCP, 34, 1),
    ("TCP_INQ", TCP, 36, 1),
    ("TCP_TX_DELAY", TCP, 37, 10),
    ("TCP_RTO_MAX_MS", TCP, 44, 5000),
    ("TCP_RTO_MIN_US", TCP, 45, 100_000),
    ("TCP_DELACK_MAX_US", TCP, 46, 20_000),
];

/// The options of UDP (`linux/udp.h`).
const OF_UDP: &[Set] = &[
    ("UDP_NO_CHECK6_TX", UDP, 101, 1),
    ("UDP_NO_CHECK6_RX", UDP, 102, 1),
    ("UDP_SEGMENT", UDP, 103, 1200),
    ("UDP_GRO", UDP, 104, 1),
];

/// The options of IPv4 (`linux/in.h`).
const OF_IP: &[Set] = &[
    ("IP_TOS", IP, 1, 0x68),
    ("IP_TTL", IP, 2, 33),
    ("IP_RECVOPTS", IP, 6, 1),
    ("IP_RETOPTS", IP, 7, 1),
    ("IP_PKTINFO", IP, 8, 1),
    ("IP_MTU_DISCOVER", IP, 10, 2),
    ("IP_RECVERR", IP, 11, 1),
    ("IP_RECVTTL", IP, 12, 1),
    ("IP_RECVTOS", IP, 13, 1),
    ("IP_FREEBIND", IP, 15, 1),
    ("IP_PASSSEC", IP, 18, 1),
    ("IP_RECVORIGDSTADDR", IP, 20, 1),
    ("IP_MINTTL", IP, 21, 1),
    ("IP_CHECKSUM", IP, 23, 1),
    ("IP_BIND_ADDRESS_NO_PORT", IP, 24, 1),
    ("IP_RECVFRAGSIZE", IP, 25, 1),
    ("IP_RECVERR_RFC4884", IP, 26, 1),
    ("IP_MULTICAST_TTL", IP, 33, 9),
    ("IP_MULTICAST_LOOP", IP, 34, 0),
    ("IP_MULTICAST_ALL", IP, 49, 0),
    ("IP_LOCAL_PORT_RANGE", IP, 51, (50_000 << 16) | 40_000),
];

/// The options of IPv6 (`linux/in6.h`).
const OF_IPV6: &[Set] = &[
    ("IPV6_UNICAST_HOPS", IPV6, 16, 33),
    ("IPV6_MULTICAST_HOPS", IPV6, 18, 9),
    ("IPV6_MULTICAST_LOOP", IPV6, 19, 0),
    ("IPV6_MTU_DISCOVER", IPV6, 23, 2),
    ("IPV6_MTU", IPV6, 24, 1300),
    ("IPV6_RECVERR", IPV6, 25, 1),
    ("IPV6_MULTICAST_ALL", IPV6, 29, 0),
    ("IPV6_RECVERR_RFC4884", IPV6, 31, 1),
    ("IPV6_FLOWINFO", IPV6, 11, 1),
    ("IPV6_FLOWINFO_SEND", IPV6, 33, 1),
    ("IPV6_RECVPKTINFO", IPV6, 49, 1),
    ("IPV6_RECVHOPLIMIT", IPV6, 51, 1),
    ("IPV6_RECVHOPOPTS", IPV6, 53, 1),
    ("IPV6_RECVRTHDR", IPV6, 56, 1),
    ("IPV6_RECVDSTOPTS", IPV6, 58, 1),
    ("IPV6_RECVPATHMTU", IPV6, 60, 1),
    ("IPV6_DONTFRAG", IPV6, 62, 1),
    ("IPV6_RECVTCLASS", IPV6, 66, 1),
    ("IPV6_TCLASS", IPV6, 67, 0x68),
    ("IPV6_AUTOFLOWLABEL", IPV6, 70, 0),
    ("IPV6_ADDR_PREFERENCES", IPV6, 72, 1),
    ("IPV6_MINHOPCOUNT", IPV6, 73, 1),
    ("IPV6_RECVORIGDSTADDR", IPV6, 74, 1),
    ("IPV6_RECVFRAGSIZE", IPV6, 77, 1),
    ("IPV6_FREEBIND", IPV6, 78, 1),
];

/// The options of unix sockets (`asm-generic/socket.h`).
const OF_UNIX: &[Set] = &[
    ("SO_PASSCRED", BASE, 16, 1),
    ("SO_PASSSEC", BASE, 34, 1),
    ("SO_PEEK_OFF", BASE, 42, 3),
    ("SO_PASSPIDFD", BASE, 76, 1),
    ("SO_PASSRIGHTS", BASE, 83, 0),
];

/// The number of TCP_CONGESTION, whose value is a string.
const CONGESTION: i32 = 13;

/// A socket and the options that are read.
struct Subject {
    name: &'static str,
    socket: OwnedFd,
    options: Vec<Set>,
}

/// Opens the sockets, sets each option that can be set, and writes the values of all to [`FILE`] five times
/// a second.
///
/// # Errors
/// A socket cannot be opened, or the file cannot be written.
pub fn hold() -> io::Result<()> {
    let (subjects, _others) = subjects()?;
    for Subject { socket, options, .. } in &subjects {
        for (_, level, number, value) in options {
            // An option that cannot be set keeps its default and is read as well.
            let _ = set(socket.as_raw_fd(), *level, *number, &value.to_ne_bytes());
        }
        let _ = set(socket.as_raw_fd(), TCP, CONGESTION, b"reno");
    }
    let mut is_ready = false;
    loop {
        let mut all: BTreeMap<String, String> = BTreeMap::new();
        for Subject { name, socket, options } in &subjects {
            let congestion = ("TCP_CONGESTION", TCP, CONGESTION, 0);
            for (option, level, number, _) in options.iter().chain([&congestion]) {
                if let Some(value) = get(socket.as_raw_fd(), *level, *number) {
                    all.insert(format!("{name} {option}"), value);
                }
            }
        }
        fs::write("/run/options.new", serde_json::to_string(&all)?)?;
        fs::rename("/run/options.new", FILE)?;
        if !mem::replace(&mut is_ready, true) {
            println!("ready");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn subjects() -> io::Result<(Vec<Subject>, Vec<OwnedFd>)> {
    let (mut all, mut others) = (Vec::new(), Vec::new());
    let mut add = |name, socket: OwnedFd, tables: &[&[Set]]| {
        all.push(Subject { name, socket, options: tables.concat() });
    };
    let listener = TcpListener::bind("0.0.0.0:7000")?;
    let client = TcpStream::connect("127.0.0.1:7000")?;
    let (server, _) = listener.accept()?;
    add("tcp-client", client.into(), &[ANY, OF_TCP, OF_IP]);
    add("tcp-server", server.into(), &[ANY, OF_TCP, OF_IP]);
    add("tcp-listener", listener.into(), &[ANY, OF_TCP, OF_IP]);
    let listener = TcpListener::bind("[::]:7001")?;
    let client = TcpStream::connect("[::1]:7001")?;
    let (server, _) = listener.accept()?;
    add("tcp6-client", client.into(), &[ANY, OF_TCP, OF_IPV6]);
    others.push(server.into());
    let client = TcpStream::connect("127.0.0.1:7001")?;
    let (server, _) = listener.accept()?;
    others.push(client.into());
    add("tcp6-server-of-ipv4", server.into(), &[ANY, OF_TCP, OF_IP, OF_IPV6]);
    add("tcp6-listener", listener.into(), &[ANY, OF_TCP, OF_IP, OF_IPV6]);
    for (name, own, far, of_family) in [
        ("udp", "0.0.0.0:7002", None, OF_IP),
        ("udp-connected", "127.0.0.1:7003", Some("127.0.0.1:7002"), OF_IP),
        ("udp6", "[::]:7004", None, OF_IPV6),
        ("udp6-connected", "[::1]:7005", Some("[::1]:7004"), OF_IPV6),
    ] {
        let socket = UdpSocket::bind(own)?;
        if let Some(far) = far {
            socket.connect(far.parse::<SocketAddr>().map_err(io::Error::other)?)?;
        }
        add(name, socket.into(), &[ANY, OF_UDP, of_family]);
    }
    let (one, other) = std::os::unix::net::UnixStream::pair()?;
    add("unix-stream", one.into(), &[ANY, OF_UNIX]);
    others.push(other.into());
    let (one, other) = std::os::unix::net::UnixDatagram::pair()?;
    add("unix-datagram", one.into(), &[ANY, OF_UNIX]);
    others.push(other.into());
    Ok((all, others))
}

pub(super) fn set(fd: RawFd, level: i32, number: i32, value: &[u8]) -> io::Result<()> {
    let length = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads as many bytes as the slice has.
    let done = unsafe { libc::setsockopt(fd, level, number, value.as_ptr().cast(), length) };
    check(i64::from(done)).map(drop)
}

/// Returns the value of an option: a number, or a string if it is not four bytes long.
fn get(fd: RawFd, level: i32, number: i32) -> Option<String> {
    let mut value = [0_u8; 16];
    let mut length = value.len() as libc::socklen_t;
    // SAFETY: the kernel writes no more bytes than the buffer has.
    let done =
        unsafe { libc::getsockopt(fd, level, number, value.as_mut_ptr().cast(), &raw mut length) };
    check(i64::from(done)).ok()?;
    let value = value.get(..length as usize)?;
    Some(match <[u8; 4]>::try_from(value) {
        Ok(bytes) => i32::from_ne_bytes(bytes).to_string(),
        Err(_) => String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
    })
}
