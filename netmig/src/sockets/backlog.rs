//! Connections that a container's listeners have not accepted yet.
//!
//! CRIU does not dump a listener with such connections (`criu/sk-inet.c`, `criu/sk-unix.c`: "In-flight
//! connection"), and loses those whose handshake is not complete without a word: their far ends are reset.
//! sock_diag(7) reports how many wait at a listener (`idiag_rqueue`, `UNIX_DIAG_RQLEN`), and each handshake
//! that is under way as a socket in the state SYN_RECV.

use super::connections::{LISTEN, request};
use super::{Error, RQUEUE, SOCK_DIAG_BY_FAMILY};
use crate::netns::Namespace;
use crate::netns::message::{Message, attribute, u32_at};
use crate::netns::socket::{KernelSocket, Protocol};

const NLM_F_DUMP: u16 = 0x300;
/// `include/net/tcp_states.h`: under what the kernel reports handshakes, and in which it keeps them.
const SYN_RECV: u8 = 3;
const NEW_SYN_RECV: u8 = 12;
/// `UDIAG_SHOW_RQLEN` and `UNIX_DIAG_RQLEN` (`include/uapi/linux/unix_diag.h`).
const SHOW_RQLEN: u32 = 0x10;
const RQLEN: u16 = 4;
/// Bytes of `struct unix_diag_msg`.
const UNIX_MESSAGE: usize = 16;

/// The listeners of one network namespace, ready to be asked often.
#[derive(Debug)]
pub struct Backlogs {
    socket: KernelSocket,
    inet: [Vec<u8>; 2],
    unix: Option<Vec<u8>>,
    container: String,
}

/// What waited at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// TCP connections whose handshake is under way.
    pub half_open: u64,
    /// Connections, TCP and unix, that wait to be accepted.
    pub unaccepted: u64,
}

impl Backlog {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl Backlogs {
    /// Prepares for the sockets in `namespace`.
    ///
    /// # Errors
    /// [`Error::Namespace`].
    pub fn open(namespace: &Namespace) -> Result<Self, Error> {
        let socket = namespace.socket(Protocol::SocketDiagnosis)?;
        Ok(Self::of(socket, namespace.name()))
    }

    fn of(mut socket: KernelSocket, container: &str) -> Self {
        let states = [LISTEN, SYN_RECV, NEW_SYN_RECV];
        let inet = [libc::AF_INET, libc::AF_INET6]
            .map(|family| request(family, libc::IPPROTO_TCP, &states));
        let mut unix = unix_request();
        // A kernel without unix_diag cannot tell.
        let unix = socket.dump_each(&mut unix, |_| ()).is_ok().then_some(unix);
        Self { socket, inet, unix, container: container.to_owned() }
    }

    /// Counts what waits.
    ///
    /// # Errors
    /// [`Error::List`].
    pub fn look(&mut self) -> Result<Backlog, Error> {
        let mut backlog = Backlog::default();
        for request in &mut self.inet {
            let count = |message: &[u8]| {
                if message.get(1) == Some(&LISTEN) {
                    backlog.unaccepted += u64::from(u32_at(message, RQUEUE).unwrap_or(0));
                } else {
                    backlog.half_open += 1;
                }
            };
            dump(&mut self.socket, request, &self.container, count)?;
        }
        if let Some(request) = &mut self.unix {
            dump(&mut self.socket, request, &self.container, |message| {
                let lengths = message.get(UNIX_MESSAGE..).and_then(|all| attribute(all, RQLEN));
                let waiting = lengths.and_then(|lengths| u32_at(lengths, 0)).unwrap_or(0);
                backlog.unaccepted += u64::from(waiting);
            })?;
        }
        Ok(backlog)
    }
}

fn dump(
    socket: &mut KernelSocket,
    request: &mut [u8],
    container: &str,
    mut each: impl FnMut(&[u8]),
) -> Result<(), Error> {
    socket
        .dump_each(request, |message| each(message.payload))
        .map(drop)
        .map_err(|source| Error::List { container: container.to_owned(), source })
}

/// `struct unix_diag_req` for all listeners.
fn unix_request() -> Vec<u8> {
    let mut payload = [0; 24];
    payload[0] = u8::try_from(libc::AF_UNIX).unwrap_or(0);
    payload[4..8].copy_from_slice(&(1u32 << LISTEN).to_ne_bytes());
    payload[12..16].copy_from_slice(&SHOW_RQLEN.to_ne_bytes());
    Message::new(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &payload).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    /// The namespace of the tests is shared, so look only for what this test adds.
    #[test]
    fn connections_count_until_they_are_accepted() {
        let socket = KernelSocket::open(Protocol::SocketDiagnosis).unwrap();
        let mut backlogs = Backlogs::of(socket, "the tests");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let unix = UnixListener::bind(&path).unwrap();
        let tcp = TcpListener::bind("[::1]:0").unwrap();
        let before = backlogs.look().unwrap().unaccepted;
        let clients: Vec<_> = (0..20)
            .map(|_| {
                let tcp = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
                (tcp, UnixStream::connect(&path).unwrap())
            })
            .collect();
        let full = backlogs.look().unwrap().unaccepted;
        assert!(full >= before + 35, "{before}, then {full}");
        for _ in &clients {
            tcp.accept().unwrap();
            unix.accept().unwrap();
        }
        assert!(backlogs.look().unwrap().unaccepted + 35 <= full);
    }
}
