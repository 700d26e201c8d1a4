//! Texts of peers that people read.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize};

/// The longest text, in characters.
pub const LONGEST: usize = 16 * 1024;

/// A text that a peer has written for people: one line of a bounded length, without characters that a
/// terminal or a reader takes for something else than what they are.
///
/// Every text is made so when it is decoded, and when it is made here. So it may be printed, logged and put
/// into other texts as it is. Fields of messages that people read have this type.
#[derive(Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct PeerText(String);

impl PeerText {
    /// Keeps a text as it is, which no agent does: the tests' hostile peer sends it.
    #[cfg(feature = "hostile-peer")]
    #[must_use]
    pub fn raw(text: String) -> Self {
        Self(text)
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Returns whether a character may be shown as it is.
///
/// Not shown are controls, which terminals execute (ECMA-48), and what is invisible and changes how its
/// neighbours look: marks, embeddings, overrides and isolates of the bidirectional algorithm (UAX #9),
/// separators of lines and paragraphs, characters without width, and tags.
#[must_use]
pub fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Returns a text with a space in place of each break of a line and tabulator, and U+FFFD in place of each
/// other character that is not [plain](is_plain).
#[must_use]
pub fn plain(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\r' | '\t' => ' ',
        c if is_plain(c) => c,
        _ => char::REPLACEMENT_CHARACTER,
    };
    text.chars().map(shown).collect()
}

impl From<&str> for PeerText {
    fn from(text: &str) -> Self {
        let end = text.char_indices().nth(LONGEST).map_or(text.len(), |(end, _)| end);
        Self(plain(text.get(..end).unwrap_or_default()))
    }
}

impl From<String> for PeerText {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl<'de> Deserialize<'de> for PeerText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

impl Deref for PeerText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for PeerText {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PeerText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for PeerText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl PartialEq<str> for PeerText {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<&str> for PeerText {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}
