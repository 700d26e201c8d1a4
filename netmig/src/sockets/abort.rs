//! Resetting a container's connections: its program and the far end learn of it at once
//! (`SOCK_DESTROY`, `net/core/sock_diag.c`; `tcp_abort`, `net/ipv4/tcp.c`).

use std::collections::HashSet;
use std::net::SocketAddr;

use nix::errno::Errno;

use super::{Error, not_listed};
use crate::netlink::sock_diag::{self, state};
use crate::netlink::{Protocol, RefusedAt};
use crate::netns::Namespace;

/// States of sockets that listen, or are no longer connected.
const NO_CONNECTION: [u8; 3] = [state::TIME_WAIT, state::CLOSE, state::LISTEN];

/// Resets TCP connections in a network namespace, each given by its local and its remote end.
/// Returns their number.
///
/// Each socket is looked up first and named by its cookie.
///
/// # Errors
/// [`Error::Namespace`]; [`Error::List`]; [`Error::Abort`] for the first connection that the kernel
/// refused to reset, as a kernel without `INET_DIAG_DESTROY` does. All others are reset.
pub fn abort(
    namespace: &Namespace,
    connections: &[(SocketAddr, SocketAddr)],
) -> Result<usize, Error> {
    let wanted: HashSet<_> = connections.iter().collect();
    let states: Vec<u8> = (1..=12).filter(|state| !NO_CONNECTION.contains(state)).collect();
    let mut socket = namespace.netlink(Protocol::SockDiag)?;
    let mut requests = Vec::new();
    for family in sock_diag::FAMILIES {
        let mut request = sock_diag::list(family, libc::IPPROTO_TCP, &states);
        let listed = socket.dump(&mut request, |answer| {
            if sock_diag::ends(answer).is_some_and(|ends| wanted.contains(&ends)) {
                requests.extend(sock_diag::destroy(answer));
            }
            Ok(())
        });
        listed.map_err(|error| not_listed(namespace.name(), error))?;
    }
    let mut outcome = Ok(());
    let mut count = 0;
    for mut request in requests {
        match socket.execute(&mut request) {
            Ok(()) => count += 1,
            Err(refused) if has_ended(&refused) => {}
            Err(refused) => outcome = outcome.and(Err(failed(namespace, refused))),
        }
    }
    outcome.map(|()| count)
}

/// Returns whether the socket no longer existed, or another one had its ends.
fn has_ended(refused: &RefusedAt) -> bool {
    matches!(refused.refusal(), Some(Errno::ENOENT | Errno::ESTALE))
}

fn failed(namespace: &Namespace, refused: RefusedAt) -> Error {
    Error::Abort { container: namespace.name().to_owned(), source: refused.source.into() }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Needs CAP_NET_ADMIN; prints that it was skipped without.
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
