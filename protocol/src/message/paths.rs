//! Trying the ways of flows before they are relied on.

use netmig::path_trial::{DropRule, Fate};
use serde::{Deserialize, Serialize};

use state::peer_text::{PeerText, is_plain};

/// How often a source may begin to try the ways of one container's flows.
pub const MOST_TRIALS: usize = 9;
/// Most of what may have dropped packets.
const MOST_SUSPECTS: usize = 8;
/// Longest name of a table or chain, and longest sentence, in bytes.
const NAME: usize = 512;
const SENTENCE: usize = 1024;

/// What became of a flow's packets at the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriedPath {
    /// Of those for the container, which have come by the way from the source.
    pub towards: Fate,
    /// Of those from the container, which have come by its bridge.
    pub from: Fate,
    /// What may have dropped them, where no rule of nftables has.
    pub suspects: Vec<PeerText>,
}

impl TriedPath {
    /// Whether an agent may have said so: what it names is short, and can be shown to people.
    #[must_use]
    pub fn is_plausible(&self) -> bool {
        let is_name = |name: &str| name.len() <= NAME && name.chars().all(is_plain);
        let is_named = |fate: &Fate| match fate {
            Fate::Dropped(DropRule { table, chain, .. }) => is_name(table) && is_name(chain),
            _ => true,
        };
        let is_sentence = |text: &PeerText| text.len() <= SENTENCE;
        is_named(&self.towards)
            && is_named(&self.from)
            && self.suspects.len() <= MOST_SUSPECTS
            && self.suspects.iter().all(is_sentence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped(table: &str) -> TriedPath {
        let barrier =
            DropRule { family: 1, table: table.to_owned(), chain: "guard".to_owned(), rule: None };
        TriedPath { towards: Fate::Arrived, from: Fate::Dropped(barrier), suspects: Vec::new() }
    }

    #[test]
    fn names_and_sentences_that_no_agent_says_are_none() {
        assert!(dropped("fw").is_plausible());
        assert!(!dropped(&"x".repeat(NAME + 1)).is_plausible());
        for strange in ["\u{1b}[2J", "a\nb", "\u{9b}1m", "\u{202e}wf"] {
            assert!(!dropped(strange).is_plausible());
        }
        let with = |suspects: Vec<PeerText>| TriedPath { suspects, ..dropped("fw") }.is_plausible();
        assert!(with(vec!["a missing route".into(); MOST_SUSPECTS]));
        assert!(!with(vec![PeerText::default(); MOST_SUSPECTS + 1]));
        assert!(!with(vec!["y".repeat(SENTENCE + 1).into()]));
    }
}
