//! Join tokens: the texts with which a person pairs two hosts.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Fingerprint;
use state::id::random_id;
use state::peer_address::Destination;

/// The secret of a token: 128 random bits that only the two hosts to be paired know.
#[derive(Clone, Serialize, Deserialize)]
pub struct Secret([u8; 16]);

impl Secret {
    /// Returns a new secret from the kernel's random source.
    ///
    /// # Errors
    /// The random source cannot be read.
    pub fn random() -> std::io::Result<Self> {
        random_id().map(Self)
    }

    /// Returns the hash that a server stores. A fast hash is enough, because the secret is as random as a key.
    #[must_use]
    pub fn hash(&self) -> SecretHash {
        SecretHash(Sha256::digest(self.0).into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The SHA-256 of a secret, compared in constant time.
#[derive(Clone)]
pub struct SecretHash(pub(super) [u8; 32]);

impl PartialEq for SecretHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// The text that `agent-server invite` prints: the server's address and fingerprint, and a secret that proves the
/// invitation to the server.
///
/// ```text
/// netmig1- base64url( fingerprint:32 secret:16 port:u16be host check:4 )
/// check    first bytes of SHA-256 over what precedes it, to recognize a token that was not copied completely
/// ```
#[derive(Clone, Debug)]
pub struct Token {
    /// The address of the server's agent-server.
    pub address: Destination,
    /// The fingerprint of the server's certificate.
    pub fingerprint: Fingerprint,
    /// The secret.
    pub secret: Secret,
}

/// A text that is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAToken {
    /// The text does not begin like a token.
    #[error("a join token begins with '{PREFIX}'; agent-server invite prints one")]
    Foreign,
    /// A part of the token is missing or was changed.
    #[error("this join token is damaged; copy it again, as a whole")]
    Damaged,
}

const PREFIX: &str = "netmig1-";
/// Maximum length of a token: a host name has up to 253 characters.
const LENGTH_LIMIT: usize = 512;
const CHECK: usize = 4;
const FIXED: usize = 32 + 16 + 2;

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(FIXED + self.address.host.len() + CHECK);
        bytes.extend(self.fingerprint.0);
        bytes.extend(self.secret.0);
        bytes.extend(self.address.port.to_be_bytes());
        bytes.extend(self.address.host.as_bytes());
        let check = check(&bytes);
        bytes.extend(check);
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for Token {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(NotAToken::Foreign)?;
        parse(body).ok_or(NotAToken::Damaged)
    }
}

fn parse(body: &str) -> Option<Token> {
    if body.len() > LENGTH_LIMIT {
        return None;
    }
    let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).ok()?;
    let (content, found) = bytes.split_last_chunk::<CHECK>()?;
    if *found != check(content) {
        return None;
    }
    let (fingerprint, rest) = content.split_first_chunk::<32>()?;
    let (secret, rest) = rest.split_first_chunk::<16>()?;
    let (port, host) = rest.split_first_chunk::<2>()?;
    let host = std::str::from_utf8(host).ok()?;
    Some(Token {
        address: Destination::new(host, u16::from_be_bytes(*port)).ok()?,
        fingerprint: Fingerprint(*fingerprint),
        secret: Secret(*secret),
    })
}

fn check(content: &[u8]) -> [u8; CHECK] {
    let digest: [u8; 32] = Sha256::digest(content).into();
    [digest[0], digest[1], digest[2], digest[3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(address: &str) -> Token {
        Token {
            address: address.parse().unwrap(),
            fingerprint: Fingerprint([7; 32]),
            secret: Secret([9; 16]),
        }
    }

    #[test]
    fn a_token_comes_back_whole() {
        for address in ["192.0.2.2:7472", "[2001:db8::2]:99", "b.example:7472"] {
            let text = token(address).to_string();
            assert!(
                text.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c)),
                "{text}"
            );
            let back: Token = format!(" {text}\n").parse().unwrap();
            assert_eq!(back.address.to_string(), address);
            assert_eq!(back.fingerprint, Fingerprint([7; 32]));
            assert_eq!(back.secret.0, [9; 16]);
        }
    }

    #[test]
    fn a_damaged_token_is_told_from_something_else() {
        let text = token("192.0.2.2:7472").to_string();
        for end in PREFIX.len()..text.len() {
            assert_eq!(text[..end].parse::<Token>().unwrap_err(), NotAToken::Damaged);
        }
        let changed = text.replace('B', "C");
        assert_ne!(changed, text);
        assert_eq!(changed.parse::<Token>().unwrap_err(), NotAToken::Damaged);
        let long = format!("{PREFIX}{}", "A".repeat(100_000));
        assert_eq!(long.parse::<Token>().unwrap_err(), NotAToken::Damaged);
        for other in ["", "ssh-ed25519 AAAA", "netmig2-AAAA"] {
            assert_eq!(other.parse::<Token>().unwrap_err(), NotAToken::Foreign);
        }
    }

    #[test]
    fn a_secret_does_not_show_in_debug_output() {
        assert!(!format!("{:?}", token("b")).contains("9, 9"));
        assert!(Secret([9; 16]).hash() == Secret([9; 16]).hash());
        assert!(Secret([9; 16]).hash() != Secret([8; 16]).hash());
    }
}
