//! Netlink: the one place in which this crate writes, sends, receives and reads messages itself.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `attribute` | attributes (type, length, value): reader and writer |
//! | `message` | messages: header, acknowledgements, the end of a dump; requests |
//! | `socket` | a blocking socket in the network namespace of the thread that opens it |
//! | `connection` | batches, single requests and dumps on such a socket, by sequence numbers |
//! | `error` | errors of sockets and messages |
//! | `nfnetlink` | the header that ctnetlink, nf_tables and NFQUEUE share |
//! | `sock_diag` | `inet_diag` requests and answers |
//! | `route` | interfaces, addresses and neighbour entries of rtnetlink |
//! | `rtnetlink` | helpers for the crate of that name |
//!
//! Code that may wait uses the `rtnetlink` crate, which is asynchronous and typed. Code between the
//! first held packet and the last released one uses this module: requests are prepared as bytes
//! beforehand, and the kernel answers a request within the system call that sends it, so blocking
//! costs no time and needs no scheduler. `docs/architecture.md` says which crates were considered.
//!
//! Readers work on byte slices and allocate nothing. They refuse whatever is not exactly as long as
//! it says, so the same functions can be fed arbitrary bytes.

pub(crate) mod attribute;
pub(crate) mod connection;
mod error;
pub(crate) mod message;
pub(crate) mod nfnetlink;
pub(crate) mod route;
pub(crate) mod rtnetlink;
pub(crate) mod sock_diag;
mod socket;

pub(crate) use connection::{Connection, RefusedAt};
pub(crate) use error::Refused;
pub use error::{Malformed, SocketError};
pub use socket::Protocol;
pub(crate) use socket::{Options, Socket};

/// Walks over the messages of a datagram as the sockets here do, and passes the payload of each data
/// message to `each`. For tests with arbitrary bytes.
#[doc(hidden)]
pub fn walk(datagram: &[u8], mut each: impl FnMut(&[u8])) {
    for message in message::Messages::new(datagram) {
        if let Ok(message::Message::Data { payload, .. }) = message {
            each(payload);
        }
    }
}
