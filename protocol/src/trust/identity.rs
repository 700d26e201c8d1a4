//! This host's key and its self-signed certificate, created on first use.

use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ED25519};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::Fingerprint;
use state::private_file;

/// The name of the file in the state directory: a certificate and its private key, as PEM.
const FILE: &str = "identity.pem";
/// Maximum size of the file in bytes; netmig writes less than 1 KiB.
const LIMIT: u64 = 16 * 1024;

/// This host's identity cannot be read or created.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] private_file::Error),
    /// The file holds something else.
    #[error(
        "{path} holds no certificate and key; put it back from a backup, or remove it and pair this host anew"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// No key or certificate can be created.
    #[error("cannot make a key and a certificate for this host")]
    Make(#[from] rcgen::Error),
}

/// A key and its certificate.
#[derive(Debug)]
pub struct Identity {
    /// The certificate.
    pub(super) certificate: CertificateDer<'static>,
    /// Its private key; its `Debug` form hides it.
    pub(super) key: PrivateKeyDer<'static>,
    fingerprint: Fingerprint,
}

impl Identity {
    /// Reads this host's identity, and creates one on first use. Several processes may do so at the same time; all
    /// of them get the same one.
    ///
    /// # Errors
    /// [`Error`], if the file cannot be used, is open to other users, or is damaged.
    pub fn open(state: &Path) -> Result<Self, Error> {
        let path = state.join(FILE);
        let _lock = private_file::lock(state)?;
        let text = match private_file::read(&path, LIMIT)? {
            Some(text) => text,
            None => {
                let text = make()?.into_bytes();
                private_file::replace(&path, &text)?;
                text
            }
        };
        Self::parse(&text).map_err(|source| Error::Damaged { path, source })
    }

    fn parse(pem: &[u8]) -> Result<Self, rustls::pki_types::pem::Error> {
        let certificate = CertificateDer::from_pem_slice(pem)?;
        let key = PrivateKeyDer::from_pem_slice(pem)?;
        let fingerprint = Fingerprint::of(&certificate);
        Ok(Self { certificate, key, fingerprint })
    }

    /// Returns the certificate's fingerprint, by which other hosts know this one.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

/// Creates a key and a certificate for it, as PEM. Peers ignore the certificate's name and dates and compare its
/// fingerprint.
fn make() -> Result<String, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.distinguished_name.push(DnType::CommonName, "netmig");
    let certificate = parameters.self_signed(&key)?;
    Ok(certificate.pem() + &key.serialize_pem())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_identity_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let prints: Vec<Fingerprint> = std::thread::scope(|scope| {
            let open = || Identity::open(dir.path()).unwrap().fingerprint();
            let all: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(prints.iter().all(|print| *print == prints[0]), "{prints:?}");
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(Identity::open(other.path()).unwrap().fingerprint(), prints[0]);
    }

    #[test]
    fn an_exposed_or_damaged_identity_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        Identity::open(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let refused = Identity::open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("identity.pem is open to others"), "{refused}");
        private_file::replace(&path, b"rubbish").unwrap();
        assert!(matches!(Identity::open(dir.path()), Err(Error::Damaged { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"rubbish");
    }

    #[test]
    fn the_key_does_not_show_in_debug_output() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::open(dir.path()).unwrap();
        let secret: Vec<String> =
            identity.key.secret_der()[16..].iter().map(|byte| format!("{byte}")).collect();
        let shown = format!("{identity:?}");
        assert!(!shown.contains(&secret.join(", ")), "{shown}");
    }
}
