//! Ending a container's connections as a reset does: its program learns of it at once, and so does the far
//! end (`SOCK_DESTROY`, `net/core/sock_diag.c`; `tcp_abort`, `net/ipv4/tcp.c`).

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;

use super::connections::ends;
use super::{Error, REQUEST};
use crate::netns::Namespace;
use crate::netns::message::Message;
use crate::netns::socket::Protocol;

/// `SOCK_DESTROY`, `include/uapi/linux/sock_diag.h`.
const SOCK_DESTROY: u16 = 21;
/// States of sockets that listen, or are no connection any more (`include/net/tcp_states.h`).
const NO_CONNECTION: [u8; 3] = [6, 7, 10];
/// `struct inet_diag_sockid` in `struct inet_diag_msg`, and in `struct inet_diag_req_v2`: 48 bytes that name one
/// socket, the last of them a cookie.
const IDENTITY: (usize, usize) = (4, 52);
const WANTED: usize = 8;

/// Resets TCP connections in a network namespace, each given by its own end and its far end; returns how many
/// there were.
///
/// Each is found first, and named by its cookie: of a connection that has ended the kernel would take the
/// listening socket instead (`inet_lookup`, `include/net/inet_hashtables.h`).
///
/// # Errors
/// [`Error::Namespace`]; [`Error::List`]; [`Error::Abort`], for one where the kernel was built without
/// `INET_DIAG_DESTROY`. All others are reset nevertheless.
pub fn abort(
    namespace: &Namespace,
    connections: &[(SocketAddr, SocketAddr)],
) -> Result<usize, Error> {
    let wanted: HashSet<_> = connections.iter().collect();
    let states: Vec<u8> = (1..=12).filter(|state| !NO_CONNECTION.contains(state)).collect();
    let mut socket = namespace.socket(Protocol::SocketDiagnosis)?;
    let mut requests = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = super::connections::request(family, libc::IPPROTO_TCP, &states);
        let listed = socket.dump_each(&mut request, |message| {
            if ends(message.payload).is_some_and(|ends| wanted.contains(&ends)) {
                requests.extend(destroying(message.payload));
            }
        });
        let container = || namespace.name().to_owned();
        listed.map_err(|source| Error::List { container: container(), source })?;
    }
    let mut outcome = Ok(());
    let mut count = 0;
    for mut request in requests {
        match socket.execute(&mut request) {
            Ok(()) => count += 1,
            Err(refused) if has_ended(&refused.source) => {}
            Err(refused) => outcome = outcome.and(Err(failed(namespace, refused.source))),
        }
    }
    outcome.map(|()| count)
}

/// Whether a socket was not there any more, or another one had its ends.
fn has_ended(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE))
}

fn failed(namespace: &Namespace, source: io::Error) -> Error {
    Error::Abort { container: namespace.name().to_owned(), source }
}

/// The request for the socket of which a message of a list tells.
fn destroying(message: &[u8]) -> Option<Vec<u8>> {
    let identity = message.get(IDENTITY.0..IDENTITY.1)?;
    let mut payload = [0; REQUEST];
    payload[0] = *message.first()?;
    payload[1] = u8::try_from(libc::IPPROTO_TCP).unwrap_or(0);
    payload[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    payload[WANTED..WANTED + identity.len()].copy_from_slice(identity);
    Some(Message::new(SOCK_DESTROY, 0, &payload).finish())
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
            assert_eq!(abort(&here, &[own, (own.1, own.0)]).unwrap(), 0, "it has gone");
            let again = TcpStream::connect(listener.local_addr().unwrap());
            assert!(again.is_ok(), "the listening socket stays");
        }
    }
}
