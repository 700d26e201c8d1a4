//! What a peer may move to this host: plain data, kept for each peer beside its identity.
//!
//! The [default](Permissions::default) permits nothing at all; [`Permissions::of_new_peer`] is what a peer gets
//! when it is invited. The destination judges an offered container by these.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What one peer may do here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Permissions {
    /// Names that the peer's containers may have.
    pub names: Vec<Pattern>,
    /// Images that the peer's containers may have: patterns of names, or IDs.
    pub images: Vec<Pattern>,
    /// Most memory that a container may have in use or as its limit, in bytes; with `None` this host's memory is
    /// the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Most bytes that a container's files and its image may take; with `None` the disk is the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
    /// Whether flows may use a direct way without encryption, on a segment that both hosts are on.
    pub direct: bool,
    /// Whether containers may be privileged, or less confined than ordinary ones.
    pub privileged: bool,
    /// Whether files of systemd units may come with containers (`--unit carry`): such a file can have this host run any command.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub units: bool,
    /// Files and directories of this host that a container may mount: exactly these paths.
    pub mounts: BTreeSet<PathBuf>,
    /// Devices of this host that a container may use.
    pub devices: BTreeSet<PathBuf>,
    /// Capabilities that a container may have beyond podman's defaults, without `CAP_`.
    pub capabilities: BTreeSet<String>,
}

impl Permissions {
    /// Returns the permissions of a newly paired peer: ordinary containers of any name and image, as large as this
    /// host can hold, and nothing of the host.
    #[must_use]
    pub fn of_new_peer() -> Self {
        Self { names: vec![Pattern::any()], images: vec![Pattern::any()], ..Self::default() }
    }
}

/// A pattern of names: `*` matches any text, `?` one character, `[ab]` one of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(glob::Pattern);

impl Pattern {
    /// Returns the pattern that matches everything.
    #[must_use]
    pub fn any() -> Self {
        Self(glob::Pattern::new("*").unwrap_or_default())
    }

    /// Returns whether the whole text matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.0.matches(text)
    }
}

/// A text that is not a pattern.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a pattern of names")]
pub struct BadPattern {
    text: String,
    #[source]
    source: glob::PatternError,
}

impl std::str::FromStr for Pattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        let fail = |source| BadPattern { text: text.to_owned(), source };
        glob::Pattern::new(text).map(Self).map_err(fail)
    }
}

impl TryFrom<String> for Pattern {
    type Error = BadPattern;

    fn try_from(text: String) -> Result<Self, BadPattern> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0.as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_the_whole_text() {
        let matches = |pattern: &str, text: &str| pattern.parse::<Pattern>().unwrap().matches(text);
        for pattern in ["web", "w*", "[vw]eb", "w?b", "*"] {
            assert!(matches(pattern, "web"), "{pattern}");
        }
        for pattern in ["we", "web2", "WEB", "eb*", ""] {
            assert!(!matches(pattern, "web"), "{pattern}");
        }
        assert!(Pattern::any().matches("docker.io/library/nginx:1"));
    }

    #[test]
    fn texts_come_back_and_others_are_refused() {
        let permissions = Permissions {
            memory: Some(1 << 30),
            mounts: ["/srv/a".into()].into(),
            capabilities: ["NET_ADMIN".into()].into(),
            ..Permissions::of_new_peer()
        };
        let text = serde_json::to_string(&permissions).unwrap();
        assert_eq!(serde_json::from_str::<Permissions>(&text).unwrap(), permissions);
        assert_eq!(serde_json::from_str::<Permissions>("{}").unwrap(), Permissions::default());
        for text in [r#"{"privilegd":true}"#, r#"{"names":["[a"]}"#, r#"{"memory":-1}"#] {
            assert!(serde_json::from_str::<Permissions>(text).is_err(), "{text}");
        }
    }
}
