//! The header and numbers that the netfilter subsystems share (`include/uapi/linux/netfilter/nfnetlink.h`).

use super::Malformed;
use super::attribute::Attributes;

/// Length of `struct nfgenmsg`: address family, version, resource in network byte order.
pub(crate) const NFGENMSG: usize = 4;

/// A subsystem of netfilter: the high byte of a message's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subsystem {
    /// Conntrack entries (ctnetlink).
    Conntrack = 1,
    /// Packet queues (NFQUEUE).
    Queue = 3,
    /// nf_tables.
    NfTables = 10,
}

impl Subsystem {
    /// Returns the type of one of the subsystem's messages. libc has these numbers as `int`.
    pub(crate) fn kind(self, message: i32) -> u16 {
        u16::from_be_bytes([self as u8, message.to_le_bytes()[0]])
    }

    /// Returns the number of the message if `kind` is a type of this subsystem.
    pub(crate) fn message_of(self, kind: u16) -> Option<i32> {
        let [of, message] = kind.to_be_bytes();
        (of == self as u8).then_some(i32::from(message))
    }
}

/// Returns a message's nfnetlink header: the address family, 0 for any, and the subsystem's resource,
/// which is the number of a packet queue.
pub(crate) fn nfgenmsg(family: u8, resource: u16) -> [u8; NFGENMSG] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// Returns the attributes of a payload that begins with the nfnetlink header.
pub(crate) fn attributes(payload: &[u8]) -> Result<Attributes<'_>, Malformed> {
    let attributes = payload.get(NFGENMSG..).map(Attributes::new);
    attributes.ok_or(Malformed("a message without its nfnetlink header"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_names_subsystem_and_message() {
        let kind = Subsystem::Queue.kind(libc::NFQNL_MSG_VERDICT_BATCH);
        assert_eq!(kind, 0x0303);
        assert_eq!(Subsystem::Queue.message_of(kind), Some(3));
        assert_eq!(Subsystem::Conntrack.message_of(kind), None);
        assert_eq!(nfgenmsg(2, 258), [2, 0, 1, 2]);
        assert!(attributes(&[2, 0, 0]).is_err());
    }
}
