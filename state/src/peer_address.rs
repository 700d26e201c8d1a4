//! The address of an agent-server.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The TCP port on which `agent-server` listens by default.
pub const DEFAULT_PORT: u16 = 7472;

/// A destination as the user writes it: `HOST`, `HOST:PORT`, `[V6]:PORT` or a bare IPv6 address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Destination {
    /// The name or address.
    pub host: String,
    /// The TCP port of agent-server.
    pub port: u16,
}

impl Destination {
    /// Makes a destination from a host's name or address and a port.
    ///
    /// # Errors
    /// A sentence that says what is wrong, for a text that is neither a name nor an address, and for port 0.
    pub fn new(host: &str, port: u16) -> Result<Self, String> {
        let valid = !host.is_empty()
            && host.len() <= 253
            && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:%".contains(c));
        if !valid {
            return Err("that is neither a host name nor an address".to_owned());
        }
        if port == 0 {
            return Err("'0' is not a port from 1 to 65535".to_owned());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, tail) =
                    rest.split_once(']').ok_or("the bracket of the IPv6 address is not closed")?;
                match tail {
                    "" => (host, None),
                    tail => (host, Some(tail.strip_prefix(':').ok_or("a port follows a colon")?)),
                }
            }
            // More than one colon without brackets: an IPv6 address without a port.
            None if text.matches(':').count() > 1 => (text, None),
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => {
                port.parse().map_err(|_| format!("'{port}' is not a port from 1 to 65535"))?
            }
        };
        Self::new(host, port)
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl TryFrom<String> for Destination {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<(String, u16)> {
        text.parse::<Destination>().ok().map(|d| (d.host, d.port))
    }

    #[test]
    fn destinations_in_every_form() {
        assert_eq!(parse("b"), Some(("b".into(), DEFAULT_PORT)));
        assert_eq!(parse("b.example:99"), Some(("b.example".into(), 99)));
        assert_eq!(parse("192.0.2.2:99"), Some(("192.0.2.2".into(), 99)));
        assert_eq!(parse("[2001:db8::2]:99"), Some(("2001:db8::2".into(), 99)));
        assert_eq!(parse("[2001:db8::2]"), Some(("2001:db8::2".into(), DEFAULT_PORT)));
        assert_eq!(parse("2001:db8::2"), Some(("2001:db8::2".into(), DEFAULT_PORT)));
    }

    #[test]
    fn nonsense_is_no_destination() {
        for text in ["", ":99", "b:", "b:0", "b:65536", "b:x", "[::1", "[::1]99", "a b", "$(id)"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&"a".repeat(4096)), None);
    }
}
