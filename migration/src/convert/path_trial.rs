//! What became of packets that tried the ways of flows. It is shown to people.

use netmig::path_trial::{DropRule, Fate};
use protocol::message as wire;

use state::peer_text::{PeerText, is_plain as is_plain_character};

use super::{Refused, Wire, same_variants};

/// Most suspects that a destination names.
const MAX_SUSPECTS: usize = 8;
/// Longest name of a table or chain, and longest sentence, in bytes.
const MAX_NAME: usize = 512;
const MAX_SENTENCE: usize = 1024;

/// What became of a flow's packets at the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TriedPath {
    /// Packets for the container, which came by the way from the source.
    pub towards: Fate,
    /// Packets from the container, which came by its bridge.
    pub from: Fate,
    /// What may have dropped them, where no rule of nftables did.
    pub suspects: Vec<PeerText>,
}

same_variants! {
    Fate => wire::Fate { Unseen, Stuck, Forwarded, Arrived, Dropped(barrier) }
}

impl Wire for DropRule {
    type Form = wire::DropRule;

    fn into_wire(self) -> wire::DropRule {
        let Self { family, table, chain, rule } = self;
        wire::DropRule { family, table, chain, rule }
    }

    fn from_wire(form: wire::DropRule) -> Result<Self, Refused> {
        let wire::DropRule { family, table, chain, rule } = form;
        if !is_plain(&table, MAX_NAME) || !is_plain(&chain, MAX_NAME) {
            return Err(Refused::Impossible("the name of a table or chain"));
        }
        Ok(Self { family, table, chain, rule })
    }
}

impl Wire for TriedPath {
    type Form = wire::TriedPath;

    fn into_wire(self) -> wire::TriedPath {
        let Self { towards, from, suspects } = self;
        wire::TriedPath { towards: towards.into_wire(), from: from.into_wire(), suspects }
    }

    fn from_wire(form: wire::TriedPath) -> Result<Self, Refused> {
        let wire::TriedPath { towards, from, suspects } = form;
        if suspects.len() > MAX_SUSPECTS {
            return Err(Refused::TooMany { what: "suspects", limit: MAX_SUSPECTS });
        }
        if !suspects.iter().all(|text| text.len() <= MAX_SENTENCE) {
            return Err(Refused::Impossible("a suspect"));
        }
        Ok(Self { towards: Fate::from_wire(towards)?, from: Fate::from_wire(from)?, suspects })
    }
}

/// Returns whether a text can be shown to people as it is: one line of a bounded length.
fn is_plain(text: &str, limit: usize) -> bool {
    text.len() <= limit && text.chars().all(is_plain_character)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::comes_back;

    fn dropped(table: &str) -> TriedPath {
        let barrier = DropRule {
            family: 1,
            table: table.to_owned(),
            chain: "guard".to_owned(),
            rule: Some(7),
        };
        TriedPath { towards: Fate::Arrived, from: Fate::Dropped(barrier), suspects: Vec::new() }
    }

    fn is_taken(path: TriedPath) -> bool {
        TriedPath::from_wire(path.into_wire()).is_ok()
    }

    #[test]
    fn tried_paths_come_back() {
        comes_back(&TriedPath { suspects: vec!["a missing route".into()], ..dropped("fw") });
        for fate in [Fate::Unseen, Fate::Stuck, Fate::Forwarded, Fate::Arrived] {
            comes_back(&TriedPath { towards: fate, ..dropped("fw") });
        }
    }

    #[test]
    fn names_and_sentences_that_no_agent_sends_are_refused() {
        assert!(!is_taken(dropped(&"x".repeat(MAX_NAME + 1))));
        for strange in ["\u{1b}[2J", "a\nb", "\u{9b}1m"] {
            assert!(!is_taken(dropped(strange)));
        }
        let with = |suspects: Vec<PeerText>| is_taken(TriedPath { suspects, ..dropped("fw") });
        assert!(with(vec!["a missing route".into(); MAX_SUSPECTS]));
        assert!(!with(vec![PeerText::default(); MAX_SUSPECTS + 1]));
        assert!(!with(vec!["y".repeat(MAX_SENTENCE + 1).into()]));
    }
}
