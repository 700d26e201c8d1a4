//! A point in time in a file that people read.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use humantime::{format_rfc3339_seconds, parse_rfc3339};
use serde::{Deserialize, Serialize};

/// A point in time, written as in `2026-11-21T05:00:00Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(SystemTime);

impl Timestamp {
    /// Returns the present time, to the second.
    #[must_use]
    pub fn now() -> Self {
        let now = SystemTime::now();
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(now - Duration::from_nanos(since.subsec_nanos().into()))
    }

    /// Returns a later point in time.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        Self(self.0 + time)
    }

    /// Returns whether this point in time has passed.
    #[must_use]
    pub fn has_passed(self) -> bool {
        self.0 <= SystemTime::now()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", format_rfc3339_seconds(self.0))
    }
}

impl TryFrom<String> for Timestamp {
    type Error = humantime::TimestampError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        parse_rfc3339(&text).map(Self)
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_written_to_the_second() {
        let time = Timestamp::try_from("2026-11-21T05:00:00Z".to_owned()).unwrap();
        assert_eq!(time.to_string(), "2026-11-21T05:00:00Z");
        assert!(Timestamp::try_from("yesterday".to_owned()).is_err());
        assert!(!Timestamp::now().after(Duration::from_secs(60)).has_passed());
    }
}
