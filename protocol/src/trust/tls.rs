//! The settings of TLS: version 1.3 alone, certificates on both sides, no tickets, no resumption and no early data.
//! So every connection begins with a full handshake, which reads the peers anew.

use std::sync::Arc;

use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{ClientHello, NoServerSessionStorage, ServerConfig};
use rustls::version::TLS13;

use super::verify::Verifier;
use super::{Expected, Trust};

/// The purpose of a connection. The client names it in its first message as the application protocol (ALPN, RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Migrations, between paired hosts.
    Migrate,
    /// Pairing of a client that has a token.
    Join,
}

impl Purpose {
    fn protocol(self) -> &'static [u8] {
        match self {
            Self::Migrate => b"netmig",
            Self::Join => b"netmig-join",
        }
    }

    /// Returns the purpose that a client names. A client that names none, or another one, is refused in the handshake.
    #[must_use]
    pub fn of(hello: &ClientHello<'_>) -> Self {
        let wants = |purpose: Self| {
            hello.alpn().is_some_and(|mut all| all.any(|name| name == purpose.protocol()))
        };
        if wants(Self::Join) { Self::Join } else { Self::Migrate }
    }
}

/// Returns the settings of a client that connects to the expected host.
///
/// # Errors
/// This host's own key cannot be used.
pub fn client(
    trust: &Trust,
    purpose: Purpose,
    expected: Expected,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let (provider, verifier) = provider_and_verifier(trust, expected);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(
            vec![trust.identity.certificate.clone()],
            trust.identity.key.clone_key(),
        )?;
    config.alpn_protocols = vec![purpose.protocol().to_vec()];
    config.resumption = Resumption::disabled();
    // Hosts on the path need not know which host is meant.
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// The settings of a server for each purpose of a connection.
#[derive(Clone, Debug)]
pub struct Servers {
    migrate: Arc<ServerConfig>,
    join: Arc<ServerConfig>,
}

impl Servers {
    /// Makes the settings. They may be used for any number of connections: peers are read at each handshake.
    ///
    /// # Errors
    /// This host's own key cannot be used.
    pub fn new(trust: &Trust) -> Result<Self, rustls::Error> {
        let known = Expected::AnyPeer(trust.peers.clone());
        Ok(Self {
            migrate: server(trust, Purpose::Migrate, known)?,
            join: server(trust, Purpose::Join, Expected::Anyone)?,
        })
    }

    /// Returns the settings for a purpose.
    #[must_use]
    pub fn get(&self, purpose: Purpose) -> Arc<ServerConfig> {
        Arc::clone(match purpose {
            Purpose::Migrate => &self.migrate,
            Purpose::Join => &self.join,
        })
    }
}

fn server(
    trust: &Trust,
    purpose: Purpose,
    expected: Expected,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let (provider, verifier) = provider_and_verifier(trust, expected);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![trust.identity.certificate.clone()],
            trust.identity.key.clone_key(),
        )?;
    config.alpn_protocols = vec![purpose.protocol().to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

fn provider_and_verifier(
    trust: &Trust,
    expected: Expected,
) -> (Arc<CryptoProvider>, Arc<Verifier>) {
    let provider = CryptoProvider {
        // The fastest one first: all of them are strong enough, and the container is frozen while its memory is
        // encrypted.
        cipher_suites: vec![
            ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
            ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
            ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..ring::default_provider()
    };
    let verifier = Verifier {
        ours: trust.identity.fingerprint(),
        expected,
        algorithms: provider.signature_verification_algorithms,
    };
    (Arc::new(provider), Arc::new(verifier))
}
