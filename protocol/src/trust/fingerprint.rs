//! Fingerprints, by which people and files name certificates.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64_NOPAD;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use state::id::HostId;

/// SHA-256 of a certificate in DER, as `openssl x509 -fingerprint -sha256` computes it. Its text is like that of an
/// SSH fingerprint: `SHA256:` and base64 without padding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(pub [u8; 32]);

/// A text that is not a fingerprint.
#[derive(Debug, thiserror::Error)]
#[error("a fingerprint is 'SHA256:' and 43 letters and digits")]
pub struct NotAFingerprint;

const PREFIX: &str = "SHA256:";

impl Fingerprint {
    /// Returns the fingerprint of a certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }

    /// Returns the identity of the host that has the certificate's key.
    #[must_use]
    pub fn host(&self) -> HostId {
        let mut id = [0; 16];
        id.copy_from_slice(&self.0[..16]);
        HostId(id)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", BASE64_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix(PREFIX)
            .and_then(|base64| BASE64_NOPAD.decode(base64.as_bytes()).ok())
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or(NotAFingerprint)
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = NotAFingerprint;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_form_comes_back() {
        let one = Fingerprint::of(&CertificateDer::from(vec![1, 2, 3]));
        assert_eq!(one.to_string(), "SHA256:A5BYxvLAy0ksUzsKTRTvd8wPeKvMztUofYShogEc+4E");
        assert_eq!(one.to_string().parse::<Fingerprint>().unwrap(), one);
        assert_eq!(one.host().0, one.0[..16]);
    }

    #[test]
    fn nonsense_is_no_fingerprint() {
        let short = "SHA256:A5BYxvLAy0ks";
        let bare = "A5BYxvLAy0ksUzsKTRTvd8wPeK/9zKyxvLm4fgO6gbk";
        for text in ["", "SHA256:", short, bare, &format!("SHA256:{bare}A"), "MD5:00"] {
            assert!(text.parse::<Fingerprint>().is_err(), "{text}");
        }
    }
}
