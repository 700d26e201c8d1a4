//! Names of units.

use std::fmt;
use std::str::FromStr;

/// The longest name of a unit (`UNIT_NAME_MAX`, `src/basic/unit-name.h`).
const LONGEST: usize = 255;
/// How names of services end.
const SUFFIX: &str = ".service";

/// The name of a service, safe as part of a path and of a unit's settings.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UnitName(String);

/// A text that is not the name of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("that is not the name of a service")]
pub struct NotAName;

impl UnitName {
    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for UnitName {
    type Err = NotAName;

    /// Takes the characters that systemd allows (systemd.unit(5)), and no name that is a path.
    fn from_str(text: &str) -> Result<Self, NotAName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
        let stem = text.strip_suffix(SUFFIX).ok_or(NotAName)?;
        let good = !stem.is_empty()
            && !stem.starts_with(['.', '@'])
            && !stem.ends_with('@')
            && text.len() <= LONGEST
            && text.bytes().all(allowed);
        if good { Ok(Self(text.to_owned())) } else { Err(NotAName) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn names_of_services_are_taken_and_paths_are_not() {
        for good in ["web.service", "web@1.service", r"a\x2db.service", "a.b_c:d-e.service"] {
            assert_eq!(good.parse::<UnitName>().unwrap().as_str(), good);
        }
        let long = format!("{}.service", "a".repeat(250));
        for bad in [
            "",
            ".service",
            "web",
            "web.timer",
            "../web.service",
            "a/b.service",
            "..service",
            "web@.service",
            "@a.service",
            "a b.service",
            "a%n.service",
            "a\n.service",
            "wéb.service",
            &long,
        ] {
            assert_eq!(bad.parse::<UnitName>(), Err(NotAName), "{bad:?}");
        }
    }
}
