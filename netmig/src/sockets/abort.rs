//! Ending a container's connections as a reset does: its program learns of it at once, and so does the far
//! end (`SOCK_DESTROY`, `net/core/sock_diag.c`; `tcp_abort`, `net/ipv4/tcp.c`).

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::{Error, REQUEST};
use crate::netns::Namespace;
use crate::netns::message::Message;
use crate::netns::socket::Protocol;

/// `SOCK_DESTROY`, `include/uapi/linux/sock_diag.h`.
const SOCK_DESTROY: u16 = 21;
/// `INET_DIAG_NOCOOKIE`: the socket with these ends, whichever it is.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// Resets TCP connections in a network namespace, each given by its own end and its far end; returns how many
/// there were.
///
/// # Errors
/// [`Error::Namespace`]; [`Error::Abort`], for one where the kernel was built without `INET_DIAG_DESTROY`.
/// All others are reset nevertheless.
pub fn abort(
    namespace: &Namespace,
    connections: &[(SocketAddr, SocketAddr)],
) -> Result<usize, Error> {
    let mut socket = namespace.socket(Protocol::SocketDiagnosis)?;
    let mut outcome = Ok(());
    let mut count = 0;
    for (own, far) in connections {
        match socket.execute(&mut request(*own, *far)) {
            Ok(()) => count += 1,
            // It has ended by itself.
            Err(refused) if refused.source.raw_os_error() == Some(libc::ENOENT) => {}
            Err(refused) => outcome = outcome.and(Err(failed(namespace, refused.source))),
        }
    }
    outcome.map(|()| count)
}

fn failed(namespace: &Namespace, source: io::Error) -> Error {
    Error::Abort { container: namespace.name().to_owned(), source }
}

/// `struct inet_diag_req_v2`: family, protocol, extensions, a byte, states, then the two ports and the two
/// addresses, 16 bytes each, interface and cookie.
fn request(own: SocketAddr, far: SocketAddr) -> Vec<u8> {
    let mut payload = [0; REQUEST];
    let family = if own.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    payload[0] = u8::try_from(family).unwrap_or(0);
    payload[1] = u8::try_from(libc::IPPROTO_TCP).unwrap_or(0);
    payload[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    payload[8..10].copy_from_slice(&own.port().to_be_bytes());
    payload[10..12].copy_from_slice(&far.port().to_be_bytes());
    for (end, at) in [(own, 12), (far, 28)] {
        match end.ip() {
            IpAddr::V4(v4) => payload[at..at + 4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => payload[at..at + 16].copy_from_slice(&v6.octets()),
        }
    }
    payload[48..56].copy_from_slice(&NO_COOKIE);
    Message::new(SOCK_DESTROY, 0, &payload).finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Needs CAP_NET_ADMIN; says so where it has none.
    #[test]
    fn both_ends_of_a_connection_are_reset() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: not root");
            return;
        }
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(any) else { continue };
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut served, _) = listener.accept().unwrap();
            let own = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            let here = Namespace::of_pid(std::process::id().try_into().unwrap()).unwrap();
            match abort(&here, &[own]) {
                Err(error) => return println!("skipped: {error}: {:?}", error),
                Ok(count) => assert_eq!(count, 1),
            }
            assert!(client.read(&mut [0; 1]).is_err());
            assert!(served.read(&mut [0; 1]).is_err());
            assert_eq!(abort(&here, &[own]).unwrap(), 0, "it has gone");
        }
    }
}
