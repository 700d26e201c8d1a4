//! What became of packets that tried the ways of flows. It is shown to people.

use netmig::path::{Barrier, Fate};
use protocol::message as wire;

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
    pub suspects: Vec<String>,
}

same_variants! {
    Fate => wire::Fate { Unseen, Stuck, Forwarded, Arrived, Dropped(barrier) }
}

impl Wire for Barrier {
    type Form = wire::Barrier;

    fn into_wire(self) -> wire::Barrier {
        let Self { family, table, chain, rule } = self;
        wire::Barrier { family, table, chain, rule }
    }

    fn from_wire(form: wire::Barrier) -> Result<Self, Refused> {
        let wire::Barrier { family, table, chain, rule } = form;
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
        if !suspects.iter().all(|text| is_plain(text, MAX_SENTENCE)) {
            return Err(Refused::Impossible("a suspect"));
        }
        Ok(Self { towards: Fate::from_wire(towards)?, from: Fate::from_wire(from)?, suspects })
    }
}

/// Returns whether a text can be shown to people as it is: one line of a bounded length.
fn is_plain(text: &str, limit: usize) -> bool {
    text.len() <= limit && !text.contains(char::is_control)
}

/// Returns a peer's sentence in a form that can be shown to people: one line of a bounded length.
#[must_use]
pub fn plain_words(said: &str) -> String {
    said.chars().take(MAX_SENTENCE).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::comes_back;

    fn dropped(table: &str) -> TriedPath {
        let barrier = Barrier {
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
        comes_back(&TriedPath { suspects: vec!["a missing route".to_owned()], ..dropped("fw") });
        for fate in [Fate::Unseen, Fate::Stuck, Fate::Forwarded, Fate::Arrived] {
            comes_back(&TriedPath { towards: fate, ..dropped("fw") });
        }
    }

    #[test]
    fn names_and_sentences_that_no_agent_sends_are_refused() {
        assert!(!is_taken(dropped(&"x".repeat(MAX_NAME + 1))));
        for strange in ["\u{1b}[2J", "a\nb", "\u{9b}1m"] {
            assert!(!is_taken(dropped(strange)));
            assert!(!plain_words(strange).contains(char::is_control));
        }
        let with = |suspects: Vec<String>| is_taken(TriedPath { suspects, ..dropped("fw") });
        assert!(with(vec!["a missing route".to_owned(); MAX_SUSPECTS]));
        assert!(!with(vec![String::new(); MAX_SUSPECTS + 1]));
        assert!(!with(vec!["y".repeat(MAX_SENTENCE + 1)]));
        assert_eq!(plain_words(&"z".repeat(1 << 20)).len(), MAX_SENTENCE);
    }
}
