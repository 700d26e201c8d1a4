//! Requests and answers of `inet_diag`, sock_diag(7) (`include/uapi/linux/inet_diag.h`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::attribute::{find, u32_at};
use super::message::{DUMP, HEADER, request};

/// Message types (`include/uapi/linux/sock_diag.h`).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Bytes of `struct inet_diag_req_v2`, and where its extensions, states and identity are.
const REQUEST: usize = 56;
const REQUEST_EXTENSIONS: usize = 2;
const REQUEST_STATES: usize = 4;
const REQUEST_IDENTITY: usize = 8;
/// Bytes of `struct inet_diag_msg`, and where its state, identity and receive queue are. The identity
/// is `struct inet_diag_sockid`: two ports, two addresses, interface and cookie.
const MESSAGE: usize = 72;
const STATE: usize = 1;
const IDENTITY: std::ops::Range<usize> = 4..52;
const RECEIVE_QUEUE: usize = 56;
/// `INET_DIAG_INFO`: the attribute that holds `struct tcp_info`; its bit in a request is one lower.
const INFO: u16 = 2;

/// States of TCP sockets (`include/net/tcp_states.h`).
pub(crate) mod state {
    pub(crate) const ESTABLISHED: u8 = 1;
    pub(crate) const SYN_RECV: u8 = 3;
    pub(crate) const FIN_WAIT_1: u8 = 4;
    pub(crate) const FIN_WAIT_2: u8 = 5;
    pub(crate) const TIME_WAIT: u8 = 6;
    pub(crate) const CLOSE: u8 = 7;
    pub(crate) const CLOSE_WAIT: u8 = 8;
    pub(crate) const LISTEN: u8 = 10;
    pub(crate) const NEW_SYN_RECV: u8 = 12;
}

/// Both families of the sockets that are listed.
pub(crate) const FAMILIES: [i32; 2] = [libc::AF_INET, libc::AF_INET6];

/// Returns the request for all sockets of a family and protocol in one of these states.
pub(crate) fn list(family: i32, protocol: i32, states: &[u8]) -> Vec<u8> {
    with_states(family, protocol, states.iter().fold(0, |mask, state| mask | 1 << state))
}

/// Returns the request for all sockets of a family and protocol in any state.
pub(crate) fn list_all(family: i32, protocol: i32) -> Vec<u8> {
    with_states(family, protocol, u32::MAX)
}

/// Has the answers to a request carry `struct tcp_info` ([`tcp_info`]).
pub(crate) fn with_tcp_info(mut request: Vec<u8>) -> Vec<u8> {
    if let Some(extensions) = request.get_mut(HEADER + REQUEST_EXTENSIONS) {
        *extensions = 1 << (INFO - 1);
    }
    request
}

fn with_states(family: i32, protocol: i32, states: u32) -> Vec<u8> {
    let fixed = fixed(family.to_le_bytes()[0], protocol, states);
    request(SOCK_DIAG_BY_FAMILY, DUMP, &fixed, |_| ())
}

fn fixed(family: u8, protocol: i32, states: u32) -> [u8; REQUEST] {
    let mut fixed = [0; REQUEST];
    fixed[0] = family;
    fixed[1] = protocol.to_le_bytes()[0];
    fixed[REQUEST_STATES..REQUEST_STATES + 4].copy_from_slice(&states.to_ne_bytes());
    fixed
}

/// Returns the request that destroys the TCP socket of an answer. The answer names it by its cookie:
/// by addresses alone the kernel would take the listening socket of a connection that has ended
/// (`inet_lookup`, `include/net/inet_hashtables.h`).
pub(crate) fn destroy(answer: &[u8]) -> Option<Vec<u8>> {
    let identity = answer.get(IDENTITY)?;
    let mut fixed = fixed(*answer.first()?, libc::IPPROTO_TCP, u32::MAX);
    fixed[REQUEST_IDENTITY..REQUEST_IDENTITY + identity.len()].copy_from_slice(identity);
    Some(request(SOCK_DESTROY, 0, &fixed, |_| ()))
}

/// Returns the state of the socket of an answer.
pub(crate) fn state_of(answer: &[u8]) -> Option<u8> {
    answer.get(STATE).copied()
}

/// Returns what waits in the receive queue of the socket of an answer: bytes as the kernel accounts
/// them, or, of a listening socket, connections.
pub(crate) fn receive_queue(answer: &[u8]) -> u64 {
    u32_at(answer, RECEIVE_QUEUE).unwrap_or(0).into()
}

/// Returns the local and the remote end of the socket of an answer.
pub(crate) fn ends(answer: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    Some((end(answer, 4, 8)?, end(answer, 6, 24)?))
}

/// Returns the end whose port and address are at these positions.
fn end(answer: &[u8], port: usize, address: usize) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(answer.get(port..port + 2)?.try_into().ok()?);
    let octets: [u8; 16] = answer.get(address..address + 16)?.try_into().ok()?;
    let address: IpAddr = match i32::from(*answer.first()?) {
        libc::AF_INET => Ipv4Addr::from([octets[0], octets[1], octets[2], octets[3]]).into(),
        libc::AF_INET6 => Ipv6Addr::from(octets).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

/// Returns `struct tcp_info` of an answer, as long as this kernel has it.
pub(crate) fn tcp_info(answer: &[u8]) -> Option<&[u8]> {
    find(answer.get(MESSAGE..)?, INFO)
}
