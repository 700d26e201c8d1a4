//! Where a socket for echo requests (icmp(7), `ping_group_range`) is bound and connected. CRIU 4.2 makes a new one in its
//! place, so a program would go on with another identifier, or with a socket that is connected to nobody.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::fs::MetadataExt;

use super::option_table::Kind;
use super::socket_settings::Value;

/// The names of the two calls (bind(2), connect(2)), in place of an option's.
const BIND: &str = "bind";
const CONNECT: &str = "connect";
/// Longest address, in bytes: that of IPv6.
pub(super) const LONGEST: usize = size_of::<libc::sockaddr_in6>();
/// Where the port and the address stand in the addresses of both families.
const PORT: std::ops::Range<usize> = 2..4;
const ADDRESS_OF_FOUR: std::ops::Range<usize> = 4..8;
const ADDRESS_OF_SIX: std::ops::Range<usize> = 8..24;

/// The state of a connected socket (`include/net/tcp_states.h`).
const CONNECTED: &str = "01";

/// Returns the far ends of the connected sockets for echo requests in the network namespace of the calling thread, by the
/// sockets' inodes. getpeername(2) does not tell of a socket that is connected to port 0, as these are.
pub(super) fn far_ends() -> HashMap<u64, Vec<u8>> {
    let read =
        |file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
    let mut all = connected(&read("icmp"), libc::AF_INET);
    all.extend(connected(&read("icmp6"), libc::AF_INET6));
    all
}

/// Reads lines of number, own end, far end, state, …, inode as the tenth word (`ping_v4_format_sock`). An address is printed
/// in words of this processor.
fn connected(text: &str, family: i32) -> HashMap<u64, Vec<u8>> {
    let far_end = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (address, port) = words.get(2)?.split_once(':')?;
        if *words.get(3)? != CONNECTED {
            return None;
        }
        let mut end = u16::try_from(family).ok()?.to_ne_bytes().to_vec();
        end.extend(u16::from_str_radix(port, 16).ok()?.to_be_bytes());
        if family == libc::AF_INET6 {
            end.extend([0; 4]);
        }
        let address = address.as_bytes().chunks(8).map(|word| {
            let word = u32::from_str_radix(str::from_utf8(word).ok()?, 16).ok()?;
            Some(word.to_ne_bytes())
        });
        end.extend(address.collect::<Option<Vec<_>>>()?.concat());
        let length = match family {
            libc::AF_INET => size_of::<libc::sockaddr_in>(),
            _ => size_of::<libc::sockaddr_in6>(),
        };
        end.resize(length, 0);
        Some((words.get(9)?.parse().ok()?, end))
    };
    text.lines().skip(1).filter_map(far_end).collect()
}

/// Returns whether a socket is one for echo requests.
fn is_echo(kind: &Kind) -> bool {
    let protocol = match kind.family {
        libc::AF_INET => libc::IPPROTO_ICMP,
        libc::AF_INET6 => libc::IPPROTO_ICMPV6,
        _ => return false,
    };
    kind.kind == libc::SOCK_DGRAM && kind.protocol == protocol
}

/// Returns whether a value is one of these calls.
pub(super) fn is_call(name: &str) -> bool {
    matches!(name, BIND | CONNECT)
}

/// Returns the calls that make a new socket like this one.
pub(super) fn calls(socket: &OwnedFd, kind: &Kind, far_ends: &HashMap<u64, Vec<u8>>) -> Vec<Value> {
    if !is_echo(kind) {
        return Vec::new();
    }
    let Some(mut own) = own_end(socket) else { return Vec::new() };
    let inode = fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd()));
    let peer = inode.ok().and_then(|socket| far_ends.get(&socket.st_ino()).cloned());
    if own.get(PORT).is_none_or(|identifier| identifier == [0, 0]) {
        return Vec::new();
    }
    // The kernel has chosen the address of a connected socket, and chooses it anew.
    if peer.is_some() {
        let address = if kind.family == libc::AF_INET { ADDRESS_OF_FOUR } else { ADDRESS_OF_SIX };
        if let Some(address) = own.get_mut(address) {
            address.fill(0);
        }
    }
    let bind = Value { option: BIND.to_owned(), value: own };
    let connect = peer.map(|value| Value { option: CONNECT.to_owned(), value });
    std::iter::once(bind).chain(connect).collect()
}

/// Makes one of the calls.
///
/// # Errors
/// The socket is none for echo requests, the value is no address of its family, or the kernel refuses: the identifier
/// or the address is taken, or not there.
pub(super) fn call(
    socket: &OwnedFd,
    kind: &Kind,
    Value { option, value }: &Value,
) -> io::Result<()> {
    let is_address = value
        .first_chunk::<2>()
        .is_some_and(|family| i32::from(u16::from_ne_bytes(*family)) == kind.family);
    if !is_echo(kind) || !is_address || value.len() > LONGEST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    let (socket, address) = (socket.as_raw_fd(), value.as_ptr().cast());
    let function: Call = if option == BIND { libc::bind } else { libc::connect };
    // SAFETY: the kernel reads as many bytes as the value has.
    let done = unsafe { function(socket, address, length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A call that takes an address: bind(2), connect(2).
type Call = unsafe extern "C" fn(i32, *const libc::sockaddr, libc::socklen_t) -> i32;
/// Returns the address to which a socket is bound, with its identifier as the port.
fn own_end(socket: &OwnedFd) -> Option<Vec<u8>> {
    let mut address = vec![0_u8; LONGEST];
    let mut length = libc::socklen_t::try_from(LONGEST).ok()?;
    // SAFETY: the kernel writes no more bytes than the buffer has, and their number.
    let done = unsafe {
        libc::getsockname(socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length)
    };
    address.truncate(length as usize);
    (done == 0).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_ends_are_read() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
                     76: 0200580A:004C 030200C0:0000 01 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 0\n\
                     77: 00000000:004D 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2 0000000000000000 0\n";
        let all = connected(text, libc::AF_INET);
        let mut expected = libc::AF_INET.to_ne_bytes()[..2].to_vec();
        expected.extend([0, 0, 192, 0, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0]);
        if cfg!(target_endian = "little") {
            assert_eq!(all, HashMap::from([(4711, expected)]));
        }
    }

    #[test]
    fn nothing_else_is_bound_or_connected() {
        let socket = OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let kind = Kind::of(&socket).unwrap();
        assert_eq!(calls(&socket, &kind, &HashMap::new()), []);
        let value = own_end(&socket).unwrap();
        let refused = call(&socket, &kind, &Value { option: BIND.to_owned(), value });
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
