//! Sockets of families and protocols that CRIU does not support, and the files of unix sockets.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use socket2::{Domain, Protocol, Socket, Type};

use super::socket_options::set;
use super::{Held, Setup, descriptor, held};

/// UDP_CORK (udp(7)).
const UDP_CORK: i32 = 1;
/// IPPROTO_MPTCP (`linux/in.h`).
const MPTCP: i32 = 262;

pub(super) const ALL: &[(&str, Setup)] = &[
    ("mptcp-listener", mptcp_listener),
    ("mptcp-connection", mptcp_connection),
    ("packet-socket", || raw(libc::AF_PACKET, libc::SOCK_RAW, 0)),
    ("netlink-socket", || raw(libc::AF_NETLINK, libc::SOCK_RAW, 0)),
    ("vsock", || raw(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    ("alg-socket", || raw(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
    ("xdp-socket", || raw(libc::AF_XDP, libc::SOCK_RAW, 0)),
    ("can-socket", || raw(libc::AF_CAN, libc::SOCK_RAW, 1)),
    ("key-socket", || raw(libc::AF_KEY, libc::SOCK_RAW, 2)),
    ("qipcrtr-socket", || raw(42, libc::SOCK_DGRAM, 0)),
    ("tipc-socket", || raw(libc::AF_TIPC, libc::SOCK_DGRAM, 0)),
    ("sctp-socket", || raw(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP)),
    ("udplite-socket", || raw(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)),
    ("ping-socket", || raw(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP)),
    ("raw-socket", || raw(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)),
    ("smc-socket", || raw(43, libc::SOCK_STREAM, 0)),
    ("udp-corked", udp_corked),
    ("udp-unread", udp_unread),
    ("unix-renamed", unix_renamed),
    ("unix-renamed-datagram", unix_renamed_datagram),
    ("unix-abandoned", unix_abandoned),
    ("unix-deleted", unix_deleted),
    ("unix-replaced", unix_replaced),
    ("unix-linked", unix_linked),
    ("unix-relative", unix_relative),
    ("unix-pending", unix_pending),
    ("kernel-tls", kernel_tls),
];

fn raw(family: i32, kind: i32, protocol: i32) -> io::Result<Held> {
    // SAFETY: socket(2) takes numbers alone.
    held(descriptor(i64::from(unsafe { libc::socket(family, kind, protocol) }))?)
}

fn mptcp() -> io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(MPTCP)))
}

fn mptcp_listener() -> io::Result<Held> {
    let socket = mptcp()?;
    socket
        .bind(&"0.0.0.0:7100".parse::<std::net::SocketAddr>().map_err(io::Error::other)?.into())?;
    socket.listen(8)?;
    held(socket)
}

fn mptcp_connection() -> io::Result<Held> {
    let listener = std::net::TcpListener::bind("127.0.0.1:7100")?;
    let socket = mptcp()?;
    socket.connect(&listener.local_addr()?.into())?;
    let accepted = listener.accept()?;
    held((listener, socket, accepted))
}

fn udp_corked() -> io::Result<Held> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:7101")?;
    socket.connect("127.0.0.1:7102")?;
    let socket = OwnedFd::from(socket);
    let on = 1_i32.to_ne_bytes();
    set(socket.as_raw_fd(), libc::IPPROTO_UDP, UDP_CORK, &on)?;
    let socket = std::net::UdpSocket::from(socket);
    socket.send(b"half")?;
    held(socket)
}

/// Receives datagrams and reads none of them.
fn udp_unread() -> io::Result<Held> {
    let receiver = std::net::UdpSocket::bind("127.0.0.1:7103")?;
    let sender = std::net::UdpSocket::bind("127.0.0.1:0")?;
    for _ in 0..3 {
        sender.send_to(b"unread", receiver.local_addr()?)?;
    }
    held((receiver, sender))
}

/// Renames the file of a listening socket, as many daemons do so that no client finds it too early.
fn unix_renamed() -> io::Result<Held> {
    let listener = UnixListener::bind("/run/new.sock")?;
    fs::rename("/run/new.sock", "/run/web.sock")?;
    let client = UnixStream::connect("/run/web.sock")?;
    held((listener.accept()?, client, listener))
}

fn unix_renamed_datagram() -> io::Result<Held> {
    let socket = UnixDatagram::bind("/run/new.sock")?;
    fs::rename("/run/new.sock", "/run/web.sock")?;
    held(socket)
}

/// Leaves the file of a closed socket.
fn unix_abandoned() -> io::Result<Held> {
    drop(UnixListener::bind("/run/old.sock")?);
    held(())
}

/// Has a socket whose file was removed.
fn unix_deleted() -> io::Result<Held> {
    let listener = UnixListener::bind("/run/gone.sock")?;
    fs::remove_file("/run/gone.sock")?;
    held(listener)
}

/// Has two sockets that were bound to one name. The file belongs to the second.
fn unix_replaced() -> io::Result<Held> {
    let first = UnixListener::bind("/run/twice.sock")?;
    fs::remove_file("/run/twice.sock")?;
    held((first, UnixListener::bind("/run/twice.sock")?))
}

/// Has a socket whose file has a second name.
fn unix_linked() -> io::Result<Held> {
    let listener = UnixListener::bind("/run/one.sock")?;
    fs::hard_link("/run/one.sock", "/run/two.sock")?;
    held(listener)
}

/// Has a socket that was bound to a relative path.
fn unix_relative() -> io::Result<Held> {
    std::env::set_current_dir("/run")?;
    held(UnixListener::bind("relative.sock")?)
}

/// Has a connection that was not accepted.
fn unix_pending() -> io::Result<Held> {
    let listener = UnixListener::bind("/run/pending.sock")?;
    held((UnixStream::connect("/run/pending.sock")?, listener))
}

/// Has a connection with kernel TLS.
fn kernel_tls() -> io::Result<Held> {
    let listener = std::net::TcpListener::bind("127.0.0.1:7103")?;
    let client = std::net::TcpStream::connect("127.0.0.1:7103")?;
    let accepted = listener.accept()?;
    set(client.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_ULP, b"tls")?;
    held((listener, client, accepted))
}
