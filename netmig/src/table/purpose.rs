//! The purpose of a rule, written into the rule's comment.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::peer_number::PeerNumber;
use crate::tunnel::HardwareAddress;

/// Longest tag: comments hold 128 bytes with their prefix and NUL.
const TAG_LENGTH: usize = 64;

/// The tag of rules that belong together, mostly a migration's ID; unique on its host: 1–64 bytes
/// of `A–Z a–z 0–9 . _ -`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RuleTag(String);

/// A text that is not a tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a tag for nftables rules; use 1 to {TAG_LENGTH} letters, digits, dots, dashes or underscores"
)]
pub struct InvalidTag(String);

impl RuleTag {
    /// Returns the tag of the rules that trace what is sent to the other end of a tunnel.
    pub(super) fn of_output(peer: PeerNumber) -> Self {
        Self(format!("output-{peer}"))
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RuleTag {
    type Error = InvalidTag;

    fn try_from(tag: String) -> Result<Self, InvalidTag> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=TAG_LENGTH).contains(&tag.len()) && tag.bytes().all(allowed) {
            Ok(Self(tag))
        } else {
            Err(InvalidTag(tag.chars().take(TAG_LENGTH + 1).collect()))
        }
    }
}

impl From<RuleTag> for String {
    fn from(tag: RuleTag) -> Self {
        tag.0
    }
}

impl FromStr for RuleTag {
    type Err = InvalidTag;

    fn from_str(tag: &str) -> Result<Self, InvalidTag> {
        Self::try_from(tag.to_owned())
    }
}

impl fmt::Display for RuleTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The purpose of a rule. Its text form is the rule's comment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Purpose {
    /// Steers flows to a peer: `netmig peer 3`.
    Peer(PeerNumber),
    /// Holds packets: `netmig hold TAG`.
    Hold(RuleTag),
    /// Lets packets pass untracked that come by a tunnel for a flow that has become local: `netmig
    /// late TAG`.
    NoTrack(RuleTag),
    /// Forwards new connections to a container at a peer: `netmig forward 3 TAG`.
    Forward(PeerNumber, RuleTag),
    /// Drops frames of a direct tunnel that are not from this sender: `netmig segment 3
    /// 02:00:00:00:00:01`.
    Segment(PeerNumber, HardwareAddress),
    /// Lets flows to a peer pass a chain of others: `netmig open 3 NAME`.
    OpenFirewall(PeerNumber, RuleTag),
    /// Catches the packets of a path trial: `netmig path TAG`.
    PathTrial(RuleTag),
    /// Counts packets of flows: `netmig count TAG`.
    FlowCounter(RuleTag),
    /// Translates addresses to aliases at the tunnels: `netmig stand-in TAG`.
    TunnelNat(RuleTag),
    /// Accepts new connections that a peer forwards: `netmig accept 3 TAG`.
    Accept(PeerNumber, RuleTag),
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(peer) => write!(f, "netmig peer {peer}"),
            Self::Hold(tag) => write!(f, "netmig hold {tag}"),
            Self::OpenFirewall(peer, name) => write!(f, "netmig open {peer} {name}"),
            Self::PathTrial(tag) => write!(f, "netmig path {tag}"),
            Self::FlowCounter(tag) => write!(f, "netmig count {tag}"),
            Self::NoTrack(tag) => write!(f, "netmig late {tag}"),
            Self::TunnelNat(tag) => write!(f, "netmig stand-in {tag}"),
            Self::Forward(peer, tag) => write!(f, "netmig forward {peer} {tag}"),
            Self::Accept(peer, tag) => write!(f, "netmig accept {peer} {tag}"),
            Self::Segment(peer, sender) => write!(f, "netmig segment {peer} {sender}"),
        }
    }
}

impl Purpose {
    /// Parses a rule's comment; `None` if it is not one of netmig's.
    #[must_use]
    pub fn from_comment(comment: &str) -> Option<Self> {
        let (kind, rest) = comment.strip_prefix("netmig ")?.split_once(' ')?;
        let peer = |number: &str| number.parse().ok().and_then(PeerNumber::new);
        let of_peer = |make: fn(PeerNumber, RuleTag) -> Self| {
            let (number, tag) = rest.split_once(' ')?;
            Some(make(peer(number)?, tag.parse().ok()?))
        };
        let purpose = match kind {
            "peer" => Self::Peer(peer(rest)?),
            "hold" => Self::Hold(rest.parse().ok()?),
            "path" => Self::PathTrial(rest.parse().ok()?),
            "count" => Self::FlowCounter(rest.parse().ok()?),
            "late" => Self::NoTrack(rest.parse().ok()?),
            "stand-in" => Self::TunnelNat(rest.parse().ok()?),
            "forward" => of_peer(Self::Forward)?,
            "accept" => of_peer(Self::Accept)?,
            "open" => of_peer(Self::OpenFirewall)?,
            "segment" => {
                let (number, sender) = rest.split_once(' ')?;
                Self::Segment(peer(number)?, sender.parse().ok()?)
            }
            _ => return None,
        };
        // Only the canonical spelling, so that every purpose has one text.
        (purpose.to_string() == comment).then_some(purpose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_survive_their_text_form() {
        let tag: RuleTag = "web-1.2_X".parse().unwrap();
        let peer = Purpose::Peer(PeerNumber::new(255).unwrap());
        let number = PeerNumber::new(7).unwrap();
        let longest: RuleTag = "f".repeat(TAG_LENGTH).parse().unwrap();
        let of_peers = [
            Purpose::TunnelNat(longest.clone()),
            Purpose::PathTrial(longest.clone()),
            Purpose::FlowCounter(longest.clone()),
            Purpose::OpenFirewall(number, longest.clone()),
            Purpose::Forward(number, tag.clone()),
            Purpose::Accept(number, longest),
            Purpose::Segment(number, HardwareAddress([2, 0, 0xab, 1, 0, 255])),
        ];
        for purpose in
            [peer, Purpose::Hold(tag.clone()), Purpose::NoTrack(tag)].into_iter().chain(of_peers)
        {
            assert!(purpose.to_string().len() < 128, "a comment's length");
            assert_eq!(Purpose::from_comment(&purpose.to_string()), Some(purpose));
        }
    }

    #[test]
    fn other_comments_are_nobodys() {
        for comment in
            ["", "netmig", "netmig peer 0", "netmig peer 256", "netmig peer +3", "netmig peer 03"]
        {
            assert_eq!(Purpose::from_comment(comment), None, "{comment}");
        }
        for comment in [
            "netmig hold ",
            "netmig hold a b",
            "peer 3",
            "netmig zone 3",
            "netmig forward 03 a",
            "netmig forward 3",
            "netmig accept 3 ",
            "netmig segment 3 02:00:AB:00:00:01",
        ] {
            assert_eq!(Purpose::from_comment(comment), None, "{comment}");
        }
    }

    #[test]
    fn tags_are_bounded_and_plain() {
        assert!("x".repeat(64).parse::<RuleTag>().is_ok());
        for bad in [String::new(), "x".repeat(65), "a/b".into(), "a\0".into(), "é".into()] {
            assert!(bad.parse::<RuleTag>().is_err(), "{bad:?}");
        }
    }
}
