//! Names of peers.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// A peer's name, which is also that of its file: at most 63 lower-case letters, digits, `.`, `_` and `-`, the first
/// one a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct Name(String);

/// Maximum length of a name.
const NAME_LIMIT: usize = 63;

impl Name {
    /// Returns the valid name that is closest to a host's own name.
    #[must_use]
    pub fn like(wish: &str) -> Self {
        let letters = wish.chars().map(|c| match c.to_ascii_lowercase() {
            c if c.is_ascii_alphanumeric() || "._-".contains(c) => c,
            _ => '-',
        });
        let name: String =
            letters.skip_while(|c| !c.is_ascii_alphanumeric()).take(NAME_LIMIT).collect();
        Self(if name.is_empty() { "host".to_owned() } else { name })
    }

    /// Returns this name with a number appended.
    pub(super) fn numbered(&self, number: usize) -> Self {
        let tail = format!("-{number}");
        let head: String = self.0.chars().take(NAME_LIMIT - tail.len()).collect();
        Self(head + &tail)
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() <= NAME_LIMIT && Self::like(text).0 == text {
            Ok(Self(text.to_owned()))
        } else {
            Err("a peer's name has lower-case letters, digits, '.', '_' and '-', at most 63"
                .to_owned())
        }
    }
}
