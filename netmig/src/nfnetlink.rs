//! nfnetlink by hand: attributes, messages and a socket on which nothing can hang.
//!
//! Conntrack, nf_tables and NFQUEUE all speak this dialect of netlink. The codec here works on
//! plain byte slices, refuses whatever is not exactly as long as it says, and allocates nothing
//! while it reads: a dump of 50,000 flows is one pass over the receive buffers, and the same
//! functions can be fed arbitrary bytes.

pub(crate) mod attribute;
pub(crate) mod message;
mod socket;

pub use attribute::Malformed;
pub use socket::SocketError;
pub(crate) use socket::{Options, Socket};

/// Walks over a datagram as the sockets here do and hands on the payload of every message that is
/// neither an answer nor an end. For tests with arbitrary bytes.
#[doc(hidden)]
pub fn walk(datagram: &[u8], mut each: impl FnMut(&[u8])) {
    for message in message::Messages::new(datagram) {
        if let Ok(message::Message::Data { payload, .. }) = message {
            each(payload);
        }
    }
}

/// Subsystem numbers: the high byte of an nfnetlink message type
/// (`include/uapi/linux/netfilter/nfnetlink.h`).
pub(crate) mod subsystem {
    /// Conntrack entries (ctnetlink).
    pub(crate) const CONNTRACK: u8 = 1;
    /// Packet queues (NFQUEUE).
    pub(crate) const QUEUE: u8 = 3;
    /// nf_tables.
    pub(crate) const NFTABLES: u8 = 10;
}
