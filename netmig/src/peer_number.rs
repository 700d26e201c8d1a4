//! Numbers of peer hosts, and every mark, table and name derived from them.
//!
//! Each host numbers the peers it knows from 1 to 255. Everything that netmig puts into the kernel
//! for a peer is a function of that number, so a fresh process can find and remove it:
//!
//! | object | value for peer *P* |
//! | --- | --- |
//! | connmark, next hop of the original direction | `P << 16`, mask `0x00ff0000` |
//! | connmark, next hop of the reply direction | `P << 24`, mask `0xff000000` |
//! | packet mark (fwmark) | `P << 16`, mask `0x00ff0000`, or at other bits ([`crate::fwmark`]) |
//! | routing table, and preference of the policy rule that selects it | `3000 + P` |
//! | tunnel interface | `netmigP` |
//!
//! A zero in a connmark byte means this host: the packets are delivered locally.

use std::fmt;
use std::num::NonZeroU8;

use serde::{Deserialize, Serialize};

/// Bits of a connmark that hold the next hop of a flow's original direction.
pub const ORIGINAL_MASK: u32 = 0x00ff_0000;
/// Bits of a connmark that hold the next hop of a flow's reply direction.
pub const REPLY_MASK: u32 = 0xff00_0000;
/// The routing table of peer *P* is this plus *P*; so is the preference of its policy rule.
pub const TABLE_BASE: u32 = 3000;
/// Prefix of the tunnel interfaces' names.
pub const INTERFACE_PREFIX: &str = "netmig";

/// The number of a peer host on this host, 1–255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerNumber(NonZeroU8);

impl PeerNumber {
    /// Returns the number; `None` for 0, which stands for this host.
    #[must_use]
    pub fn new(number: u8) -> Option<Self> {
        NonZeroU8::new(number).map(Self)
    }

    /// Returns the plain number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0.get()
    }

    /// Returns the connmark value that steers a flow's original direction to this peer.
    #[must_use]
    pub fn original_mark(self) -> u32 {
        u32::from(self.get()) << 16
    }

    /// Returns the connmark value that steers a flow's reply direction to this peer.
    #[must_use]
    pub fn reply_mark(self) -> u32 {
        u32::from(self.get()) << 24
    }

    /// Returns the peer to which a connmark steers the original direction; `None` for this host.
    #[must_use]
    pub fn of_original(mark: u32) -> Option<Self> {
        Self::new(mark.to_be_bytes()[1])
    }

    /// Returns the peer to which a connmark steers the reply direction; `None` for this host.
    #[must_use]
    pub fn of_reply(mark: u32) -> Option<Self> {
        Self::new(mark.to_be_bytes()[0])
    }

    /// Returns the number of the peer's routing table, which is also the preference of its policy
    /// rule.
    #[must_use]
    pub fn table(self) -> u32 {
        TABLE_BASE + u32::from(self.get())
    }

    /// Returns the peer to which a tunnel interface leads; `None` for any other interface.
    #[must_use]
    pub fn of_interface(name: &str) -> Option<Self> {
        let peer = Self::new(name.strip_prefix(INTERFACE_PREFIX)?.parse().ok()?)?;
        (peer.interface() == name).then_some(peer)
    }

    /// Returns the name of the tunnel interface to this peer.
    #[must_use]
    pub fn interface(self) -> String {
        format!("{INTERFACE_PREFIX}{}", self.get())
    }
}

impl fmt::Display for PeerNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_this_host_and_no_peer() {
        assert_eq!(PeerNumber::new(0), None);
    }

    #[test]
    fn marks_stay_inside_their_masks() {
        for n in 1..=255 {
            let peer = PeerNumber::new(n).unwrap();
            assert_eq!(peer.original_mark() & !ORIGINAL_MASK, 0);
            assert_eq!(peer.reply_mark() & !REPLY_MASK, 0);
            let both = peer.original_mark() | 0xffff;
            assert_eq!(
                (PeerNumber::of_original(both), PeerNumber::of_reply(both)),
                (Some(peer), None)
            );
            let both = peer.reply_mark() | 0xffff;
            assert_eq!(
                (PeerNumber::of_original(both), PeerNumber::of_reply(both)),
                (None, Some(peer))
            );
            assert!(peer.interface().len() <= 15, "interface names hold 15 bytes");
        }
    }
}
