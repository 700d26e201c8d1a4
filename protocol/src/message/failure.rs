//! Why the other host gave up.

use serde::{Deserialize, Serialize};
use state::peer_text::PeerText;

/// Why the other host gave up. Its copy of the container, if it had one, no longer exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The class.
    pub code: FailureCode,
    /// A whole sentence for people, with the tail of CRIU's log where that helps.
    pub message: PeerText,
}

/// The class of a failure. It decides what the source does next, and the exit code.
///
/// Its wire form is a number, to which later versions may add: an unknown number is read as
/// [`FailureCode::Internal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "u16", into = "u16")]
pub enum FailureCode {
    /// Something unexpected.
    Internal,
    /// A message that does not belong here, or has an impossible content.
    Protocol,
    /// A step failed: the engine, the runtime, CRIU or the kernel refused.
    Step,
    /// A name, address or port is taken.
    Conflict,
    /// A wait exceeded its deadline.
    Deadline,
    /// No copy of the migration in question exists there, and none was ever activated.
    Unknown,
    /// The agent is stopping.
    Stopping,
    /// The agent has too much to do already.
    Busy,
    /// The peer is paired with the other host, but not allowed to do that.
    NotAllowed,
    /// The token is unknown, expired or used up.
    Token,
    /// The copy was activated, and is gone. What it acknowledged to others is lost with it.
    Lost,
    /// Packets do not get from one host to the other.
    PathBlocked,
}

/// Every code with its number. A number never changes its meaning; 0 is never sent.
const NUMBERS: &[(FailureCode, u16)] = &[
    (FailureCode::Internal, 1),
    (FailureCode::Protocol, 2),
    (FailureCode::Step, 3),
    (FailureCode::Conflict, 4),
    (FailureCode::Deadline, 5),
    (FailureCode::Unknown, 6),
    (FailureCode::Stopping, 7),
    (FailureCode::Busy, 8),
    (FailureCode::NotAllowed, 9),
    (FailureCode::Token, 10),
    (FailureCode::Lost, 11),
    (FailureCode::PathBlocked, 12),
];

impl From<FailureCode> for u16 {
    fn from(code: FailureCode) -> Self {
        let found = NUMBERS.iter().find(|(other, _)| *other == code);
        found.map_or(1, |(_, number)| *number)
    }
}

impl From<u16> for FailureCode {
    fn from(number: u16) -> Self {
        let found = NUMBERS.iter().find(|(_, other)| *other == number);
        found.map_or(Self::Internal, |(code, _)| *code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_keep_their_numbers_and_unknown_ones_are_internal() {
        for (code, number) in NUMBERS {
            assert_eq!((u16::from(*code), FailureCode::from(*number)), (*number, *code));
        }
        assert_eq!(u16::from(FailureCode::Lost), 11);
        for unknown in [0, 13, u16::MAX] {
            assert_eq!(FailureCode::from(unknown), FailureCode::Internal);
        }
    }
}
