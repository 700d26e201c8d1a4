//! Versions of the protocol, and which one two agents speak.

/// The version of the protocol that this agent speaks.
pub const VERSION: u16 = 6;
/// The oldest version that this agent speaks as well: the one before its own, but none before 6, which is the
/// first with a compatible successor.
pub const OLDEST: u16 = 6;
/// Length of a preamble before version 6, in bytes: without the oldest version.
pub(super) const SHORT_PREAMBLE: usize = 8;
/// Length of a preamble in bytes.
pub(super) const PREAMBLE: usize = 10;
/// The first version whose preamble names the oldest version.
const FIRST_WITH_OLDEST: u16 = 6;
const MAGIC: &[u8; 6] = b"NETMIG";

/// The versions that an agent speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Versions {
    pub(super) oldest: u16,
    pub(super) newest: u16,
}

impl Versions {
    /// The versions that this agent speaks.
    pub(super) const OURS: Self = Self { oldest: OLDEST, newest: VERSION };

    /// Returns the preamble that announces these versions.
    pub(super) fn preamble(self) -> [u8; PREAMBLE] {
        let mut bytes = [0; PREAMBLE];
        bytes[..6].copy_from_slice(MAGIC);
        bytes[6..8].copy_from_slice(&self.newest.to_be_bytes());
        bytes[8..].copy_from_slice(&self.oldest.to_be_bytes());
        bytes
    }

    /// Reads the part of a preamble that every version sends; `None` for something else. An agent before
    /// version 6 speaks its own version alone; the oldest version of a later one follows in two more bytes.
    pub(super) fn of_short(bytes: [u8; SHORT_PREAMBLE]) -> Option<Self> {
        let newest = u16::from_be_bytes([bytes[6], bytes[7]]);
        (bytes[..6] == MAGIC[..]).then_some(Self { oldest: newest, newest })
    }

    /// Returns whether the preamble of an agent with these versions names its oldest one.
    pub(super) fn has_oldest(self) -> bool {
        self.newest >= FIRST_WITH_OLDEST
    }

    /// Returns the version that two agents speak, the lower one of their own; `None` if one of them does not
    /// speak it any more. Both agents come to the same result.
    pub(super) fn agree(self, other: Self) -> Option<u16> {
        let lower = self.newest.min(other.newest);
        (lower >= self.oldest && lower >= other.oldest).then_some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(oldest: u16, newest: u16) -> Versions {
        Versions { oldest, newest }
    }

    #[test]
    fn two_agents_speak_the_lower_version_if_both_know_it() {
        for (one, other, agreed) in [
            (versions(6, 6), versions(6, 6), Some(6)),
            (versions(6, 7), versions(6, 6), Some(6)),
            (versions(6, 7), versions(7, 8), Some(7)),
            (versions(7, 8), versions(6, 6), None),
            (versions(6, 6), versions(5, 5), None),
            (versions(6, 6), versions(9, 7), None),
        ] {
            assert_eq!(one.agree(other), agreed, "{one:?} and {other:?}");
            assert_eq!(other.agree(one), agreed, "{other:?} and {one:?}");
        }
    }

    #[test]
    fn an_agent_speaks_its_own_version_and_the_one_before() {
        assert_eq!(OLDEST, (VERSION - 1).max(6));
    }

    #[test]
    fn a_preamble_begins_as_it_always_did() {
        let bytes = versions(6, 7).preamble();
        assert_eq!(bytes, *b"NETMIG\x00\x07\x00\x06");
        let short: [u8; SHORT_PREAMBLE] = bytes[..SHORT_PREAMBLE].try_into().unwrap();
        assert_eq!(Versions::of_short(short), Some(versions(7, 7)));
        assert!(!Versions::of_short(*b"NETMIG\x00\x05").unwrap().has_oldest());
        assert_eq!(Versions::of_short(*b"HTTP/1.1"), None);
    }
}
