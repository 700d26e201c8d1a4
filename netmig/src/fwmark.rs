//! Which bits of packet marks (fwmarks) name a peer on this host.
//!
//! Packet marks belong to the whole host. Other software uses bits of them for its own policy
//! rules, and no two programs may use the same bits. So the position of netmig's eight bits can be
//! chosen ([`MarkBits::use_here`]). All code that sets or reads a packet mark asks
//! [`MarkBits::in_use`].
//!
//! The bits of connmarks are fixed ([`crate::peer_number`]): no policy rule reads connmarks, and
//! hosts send them to each other when a container moves on.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};

use crate::peer_number::PeerNumber;

/// Width of a peer's number, in bits.
const WIDTH: u8 = 8;

/// The lowest bit in use. Each process sets it when it starts.
static IN_USE: AtomicU8 = AtomicU8::new(MarkBits::DEFAULT.0);

/// Eight adjacent bits of a packet mark, named by the lowest of them: 0 to 24.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MarkBits(u8);

/// A text that does not name such bits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not name bits of packet marks; write eight adjacent bits of 32, such as 8-15")]
pub struct InvalidBits(String);

impl MarkBits {
    /// The bits of a host on which nobody has chosen others.
    pub const DEFAULT: Self = Self(16);

    /// Whole bytes, in the order in which they are suggested.
    const BYTES: [Self; 4] = [Self(16), Self(8), Self(24), Self(0)];

    /// Returns the bits that this process uses.
    #[must_use]
    pub fn in_use() -> Self {
        Self(IN_USE.load(Ordering::Relaxed))
    }

    /// Makes this process use these bits. No rules with other bits may exist.
    pub fn use_here(self) {
        IN_USE.store(self.0, Ordering::Relaxed);
    }

    /// Returns the bits as a mask.
    #[must_use]
    pub fn mask(self) -> u32 {
        u32::from(u8::MAX) << self.0
    }

    /// Returns the mark that selects the routing table of a peer.
    #[must_use]
    pub fn mark(self, peer: PeerNumber) -> u32 {
        u32::from(peer.get()) << self.0
    }

    /// Returns bits for which `suit` is true, whole bytes first.
    pub fn find(suit: impl Fn(Self) -> bool) -> Option<Self> {
        Self::BYTES.into_iter().chain((0..=32 - WIDTH).map(Self)).find(|bits| suit(*bits))
    }
}

impl fmt::Display for MarkBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.0 + WIDTH - 1)
    }
}

impl FromStr for MarkBits {
    type Err = InvalidBits;

    fn from_str(text: &str) -> Result<Self, InvalidBits> {
        let number = |text: &str| text.parse::<u8>().ok();
        let bits = text.split_once('-').and_then(|(first, last)| {
            let (first, last) = (number(first)?, number(last)?);
            (last < 32 && first.checked_add(WIDTH - 1) == Some(last)).then_some(Self(first))
        });
        // Only the canonical spelling.
        bits.filter(|bits| bits.to_string() == text).ok_or_else(|| {
            /// Characters of an invalid text that a message shows.
            const SHOWN: usize = 16;
            InvalidBits(text.chars().take(SHOWN).collect())
        })
    }
}

impl TryFrom<String> for MarkBits {
    type Error = InvalidBits;

    fn try_from(text: String) -> Result<Self, InvalidBits> {
        text.parse()
    }
}

impl From<MarkBits> for String {
    fn from(bits: MarkBits) -> Self {
        bits.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stays_within_its_bits() {
        for first in 0..=24 {
            let bits = MarkBits(first);
            assert_eq!(bits.to_string().parse(), Ok(bits));
            assert_eq!(bits.mask().count_ones(), 8);
            let marks = (1..=255).map(|n| bits.mark(PeerNumber::new(n).unwrap()));
            assert!(marks.into_iter().all(|mark| mark != 0 && mark & !bits.mask() == 0));
        }
        assert_eq!("8-15".parse::<MarkBits>().unwrap().mask(), 0xff00);
        assert_eq!(MarkBits::DEFAULT.mask(), 0x00ff_0000);
    }

    #[test]
    fn other_texts_are_no_bits() {
        for text in ["", "8", "8-", "8-16", "25-32", "-1-6", "08-15", "+8-15", "300-307", "8-15 "] {
            assert!(text.parse::<MarkBits>().is_err(), "{text}");
        }
        assert!("x".repeat(999).parse::<MarkBits>().unwrap_err().0.len() < 99);
    }

    #[test]
    fn the_usual_bits_are_found_first_and_any_others_after() {
        assert_eq!(MarkBits::find(|_| true), Some(MarkBits::DEFAULT));
        let tailscale = |bits: MarkBits| bits.mask() & 0x00ff_0000 == 0;
        assert_eq!(MarkBits::find(tailscale), "8-15".parse().ok());
        assert_eq!(MarkBits::find(|bits| bits.mask() & 0xf0ff_0f0f == 0), None);
        assert_eq!(MarkBits::find(|bits| bits.mask() & 0xfff0_0fff == 0), "12-19".parse().ok());
    }
}
