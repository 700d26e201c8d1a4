//! Captures the packets that a client's host receives, and finds out which copy of a container sent each.
//!
//! Every host that forwards a packet decrements its time to live (RFC 1812, 5.3.1). Packets of a container start with
//! 64. The original's packets are forwarded by its own host. The copy's packets are forwarded by its own host and by
//! the anchor of the connection. Packets of a host itself, such as a reset, are not forwarded.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use socket2::{Domain, Protocol, Socket, Type};

use super::client_report::WireReport;
use super::stop::Stop;

/// The initial time to live (`net.ipv4.ip_default_ttl`).
const TTL: u8 = 64;
/// The receive buffer in bytes.
const BUFFER: usize = 8 << 20;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// The number of packets from which on a reset of a connection counts. A connection that a client has closed at once
/// may legitimately be answered with a reset.
const LASTING: u64 = 20;
/// The flag of a reset, in byte 13 of a TCP header (RFC 9293, 3.1).
const RST: u8 = 4;

/// The packets of one TCP connection.
#[derive(Debug, Default)]
struct Connection {
    packets: u64,
    resets: u64,
}

/// The connections by the client's port.
type Connections = HashMap<u16, Connection>;

/// Returns the resets of connections with at least [`LASTING`] packets.
fn resets(connections: &Connections) -> u64 {
    let lasting = connections.values().filter(|connection| connection.packets > LASTING);
    lasting.map(|connection| connection.resets).sum()
}

/// Captures until stopped. `server` is the address to which the client is connected.
///
/// # Errors
/// The kernel refused the packet socket.
pub fn listen(server: SocketAddrV4, stop: &Stop, ready: impl FnOnce()) -> io::Result<WireReport> {
    let ethertype = i32::from((libc::ETH_P_IP as u16).to_be());
    let socket =
        Socket::new(Domain::from(libc::AF_PACKET), Type::DGRAM, Some(Protocol::from(ethertype)))?;
    socket.set_recv_buffer_size(BUFFER)?;
    socket.set_nonblocking(true)?;
    ready();
    let mut report = WireReport::default();
    let mut connections = Connections::new();
    let mut buffer = [0; 2048];
    loop {
        if wait(&socket, stop)? {
            report.resets = resets(&connections);
            return Ok(report);
        }
        loop {
            match (&socket).read(&mut buffer) {
                Ok(length) => note(&mut report, &mut connections, &buffer[..length], server),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Waits for a packet. Returns whether it is time to end.
fn wait(socket: &Socket, stop: &Stop) -> io::Result<bool> {
    let descriptors: Vec<BorrowedFd<'_>> =
        std::iter::once(socket.as_fd()).chain(stop.descriptors()).collect();
    let mut polled: Vec<PollFd<'_>> =
        descriptors.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    match nix::poll::poll(&mut polled, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => stop.was_asked(),
        Err(error) => Err(error.into()),
    }
}

/// Accounts for one packet, which begins with its IPv4 header (RFC 791, 3.1).
fn note(
    report: &mut WireReport,
    connections: &mut Connections,
    packet: &[u8],
    server: SocketAddrV4,
) {
    let Some(header) = packet.first().map(|first| usize::from(first & 0xf) * 4) else { return };
    let (Some(head), Some(payload)) = (packet.get(..20), packet.get(header..)) else { return };
    let (ttl, protocol) = (head[8], head[9]);
    let source = Ipv4Addr::new(head[12], head[13], head[14], head[15]);
    if !matches!(protocol, TCP | UDP) || payload.len() < 8 {
        return;
    }
    if u16::from_be_bytes([payload[0], payload[1]]) != server.port() {
        return;
    }
    let foreign = |report: &mut WireReport| {
        report.foreign += 1;
        report.first_foreign.get_or_insert((source, ttl));
    };
    if source != *server.ip() {
        foreign(report);
        return;
    }
    if protocol == TCP {
        let client = u16::from_be_bytes([payload[2], payload[3]]);
        let connection = connections.entry(client).or_default();
        connection.packets += 1;
        connection.resets += u64::from(payload.get(13).is_some_and(|flags| flags & RST != 0));
    }
    match TTL.checked_sub(ttl) {
        Some(0) => report.host += 1,
        Some(1) => {
            report.original += 1;
            report.original_after_copy += u64::from(report.copy > 0);
        }
        Some(2) => report.copy += 1,
        _ => foreign(report),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(ttl: u8, source: [u8; 4], port: u16, flags: u8) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x45;
        packet[8] = ttl;
        packet[9] = TCP;
        packet[12..16].copy_from_slice(&source);
        packet[20..22].copy_from_slice(&port.to_be_bytes());
        packet[33] = flags;
        packet
    }

    #[test]
    fn packets_are_told_apart_by_the_hosts_that_forwarded_them() {
        let server = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 7000);
        let ours = server.ip().octets();
        let (mut report, mut connections) = (WireReport::default(), Connections::new());
        let mut hear = |packet: &[u8]| {
            note(&mut report, &mut connections, packet, server);
            report
        };
        for (ttl, flags) in [(63, 0x10), (63, 0x10), (62, 0x10), (64, RST)] {
            hear(&packet(ttl, ours, 7000, flags));
        }
        hear(&packet(63, [192, 0, 2, 2], 7000, 0));
        hear(&packet(63, ours, 80, 0));
        let heard = hear(b"\x45");
        let first_foreign = Some((Ipv4Addr::new(192, 0, 2, 2), 63));
        let expected = WireReport {
            original: 2,
            copy: 1,
            host: 1,
            foreign: 1,
            first_foreign,
            ..WireReport::default()
        };
        assert_eq!(heard, expected);
        assert_eq!(hear(&packet(63, ours, 7000, 0)).original_after_copy, 1);
        assert_eq!(resets(&connections), 0, "too few packets for a connection that lasts");
        for _ in 0..LASTING {
            note(&mut report, &mut connections, &packet(63, ours, 7000, 0x10), server);
        }
        assert_eq!(resets(&connections), 1);
    }
}
