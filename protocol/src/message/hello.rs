//! The introduction: who speaks, and what it understands beyond the version's own messages.
//!
//! The body of `Hello` can be extended for ever: it is a map from names to bytes. A receiver ignores fields
//! that it does not know, and a field that is absent is empty.
//!
//! | field | value |
//! | --- | --- |
//! | `name` | the host's name, UTF-8, to show to people |
//! | `software` | the version of the software, UTF-8, to show to people |
//! | `capabilities` | names of capabilities, separated by spaces |

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use state::peer_text::PeerText;

/// Names of everything that this agent understands and that not every agent of a compatible version does. A
/// message that needs a capability is sent only to an agent that names it.
pub const CAPABILITIES: &[&str] = &[
    super::DATAGRAMS,
    LEAN_MEMORY,
    MEMORY,
    super::PASSAGE,
    POST_COPY,
    super::SERVICES,
    super::SHARED_MEMORY,
    crate::wire::STREAMS,
    super::VOLUMES,
    crate::wire::ZSTD,
];

/// The capability to take memory apart from CRIU's images.
pub const MEMORY: &str = "memory";
/// The capability to take empty pages without their content, and not to need memory twice: the memory of an
/// [`Offer`](super::Offer) counts what processes share twice, and the destination needs little more than that.
pub const LEAN_MEMORY: &str = "lean-memory";

/// The capability to ask for pages of memory after the decision.
pub const POST_COPY: &str = "post-copy";

/// Maximum number of fields, and maximum length of a field's name and value in bytes.
const MAX_FIELDS: usize = 64;
const MAX_FIELD_NAME: usize = 64;
const MAX_FIELD_VALUE: usize = 4096;
/// Maximum number of capabilities, and maximum length of a capability's name in bytes.
const MAX_CAPABILITIES: usize = 64;
const MAX_CAPABILITY_NAME: usize = 32;

const NAME: &str = "name";
const SOFTWARE: &str = "software";
const CAPABILITIES_FIELD: &str = "capabilities";

/// The wire form of an [`Introduction`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Values by their names.
    pub fields: BTreeMap<String, ByteBuf>,
}

/// What an agent tells of itself at the beginning of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Introduction {
    /// The host's name, to show to people.
    pub name: PeerText,
    /// The version of the software, to show to people.
    pub software: PeerText,
    /// What the agent understands beyond its version's own messages, by name. Some of it may be unknown
    /// here.
    pub capabilities: BTreeSet<String>,
}

/// A [`Hello`] that no agent sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHello {
    /// There are too many fields, or one is too long.
    #[error("the introduction is too long")]
    TooLong,
    /// A field that is a text is not UTF-8.
    #[error("the field {0:?} of the introduction is not UTF-8")]
    NotText(&'static str),
    /// There are too many capabilities, or one has a name that cannot be one.
    #[error("the capabilities in the introduction are too many, or not names of capabilities")]
    Capabilities,
}

impl Introduction {
    /// Introduces this agent, which has all of [`CAPABILITIES`].
    #[must_use]
    pub fn of_this_agent(name: &str, software: &str) -> Self {
        Self {
            name: name.into(),
            software: software.into(),
            capabilities: CAPABILITIES.iter().map(|name| (*name).to_owned()).collect(),
        }
    }
}

impl From<&Introduction> for Hello {
    fn from(introduction: &Introduction) -> Self {
        let Introduction { name, software, capabilities } = introduction;
        let capabilities = capabilities.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        let fields = [
            (NAME, name.as_str()),
            (SOFTWARE, software.as_str()),
            (CAPABILITIES_FIELD, &capabilities),
        ];
        let field = |(name, value): (&str, &str)| (name.to_owned(), ByteBuf::from(value));
        Self { fields: fields.into_iter().map(field).collect() }
    }
}

impl TryFrom<Hello> for Introduction {
    type Error = InvalidHello;

    fn try_from(Hello { mut fields }: Hello) -> Result<Self, InvalidHello> {
        let is_short = |(name, value): (&String, &ByteBuf)| {
            name.len() <= MAX_FIELD_NAME && value.len() <= MAX_FIELD_VALUE
        };
        if fields.len() > MAX_FIELDS || !fields.iter().all(is_short) {
            return Err(InvalidHello::TooLong);
        }
        let mut text = |name: &'static str| {
            let value = fields.remove(name).unwrap_or_default().into_vec();
            String::from_utf8(value).map_err(|_| InvalidHello::NotText(name))
        };
        let (name, software) = (text(NAME)?, text(SOFTWARE)?);
        let capabilities: BTreeSet<String> =
            text(CAPABILITIES_FIELD)?.split_ascii_whitespace().map(str::to_owned).collect();
        if capabilities.len() > MAX_CAPABILITIES || !capabilities.iter().all(|c| is_capability(c)) {
            return Err(InvalidHello::Capabilities);
        }
        Ok(Self { name: name.into(), software: software.into(), capabilities })
    }
}

/// Returns whether a text can be the name of a capability: lower-case letters, digits and hyphens.
fn is_capability(name: &str) -> bool {
    let is_plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=MAX_CAPABILITY_NAME).contains(&name.len()) && name.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(fields: &[(&str, &[u8])]) -> Hello {
        let field = |(name, value): &(&str, &[u8])| ((*name).to_owned(), ByteBuf::from(*value));
        Hello { fields: fields.iter().map(field).collect() }
    }

    fn read(fields: &[(&str, &[u8])]) -> Result<Introduction, InvalidHello> {
        hello(fields).try_into()
    }

    #[test]
    fn an_introduction_survives_the_wire() {
        let introduction = Introduction {
            name: "a".into(),
            software: "1.2.3".into(),
            capabilities: ["second".to_owned(), "first".to_owned()].into(),
        };
        let wire = Hello::from(&introduction);
        assert_eq!(wire.fields["capabilities"], b"first second");
        assert_eq!(Introduction::try_from(wire).unwrap(), introduction);
    }

    #[test]
    fn unknown_fields_and_capabilities_are_ignored() {
        let later = read(&[("name", b"a"), ("colour", b"\xff"), ("capabilities", b"unheard-of")]);
        let later = later.unwrap();
        assert_eq!((later.name.as_str(), later.software.as_str()), ("a", ""));
        assert!(later.capabilities.contains("unheard-of"));
        assert_eq!(read(&[]).unwrap(), Introduction::default());
    }

    #[test]
    fn hostile_introductions_are_refused() {
        let many: Vec<String> = (0..=MAX_FIELDS).map(|number| number.to_string()).collect();
        let many: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &b""[..])).collect();
        assert_eq!(read(&many), Err(InvalidHello::TooLong));
        let long = vec![b'a'; MAX_FIELD_VALUE + 1];
        assert_eq!(read(&[("colour", &long)]), Err(InvalidHello::TooLong));
        let long = "a".repeat(MAX_FIELD_NAME + 1);
        assert_eq!(read(&[(&long, b"")]), Err(InvalidHello::TooLong));
        assert_eq!(read(&[("name", b"\xff")]), Err(InvalidHello::NotText("name")));
        for name in ["A", "a\u{1b}", "a_b", &"a".repeat(MAX_CAPABILITY_NAME + 1)] {
            let refused = read(&[("capabilities", name.as_bytes())]);
            assert_eq!(refused, Err(InvalidHello::Capabilities), "{name}");
        }
        let many: Vec<String> = (0..=MAX_CAPABILITIES).map(|number| number.to_string()).collect();
        let refused = read(&[("capabilities", many.join(" ").as_bytes())]);
        assert_eq!(refused, Err(InvalidHello::Capabilities));
    }

    #[test]
    fn the_capabilities_of_this_agent_are_names() {
        assert!(CAPABILITIES.iter().all(|name| is_capability(name)));
    }
}
