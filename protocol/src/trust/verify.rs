//! Verification of the other host's certificate. Only its fingerprint counts, and neither chains nor names nor dates.
//! The cryptographic provider verifies that the other host has the certificate's key, as for any certificate.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, SignatureScheme,
};

use super::{Fingerprint, Peers, peers};

/// The host that is expected at the other end.
#[derive(Clone, Debug)]
pub enum Expected {
    /// The host with this certificate.
    Exactly(Fingerprint),
    /// Any host to which containers may be moved.
    AnyDestination(Peers),
    /// Any host that is paired with this one, in either role.
    AnyPeer(Peers),
    /// Any host. It still has to prove by a secret that it was invited.
    Anyone,
}

/// Why the other host was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The host is not paired with this one.
    #[error("it is not paired with this host; its fingerprint is {0}")]
    Stranger(Fingerprint),
    /// The host is another one than expected.
    #[error("its fingerprint is {shown}, expected was {expected}")]
    Another {
        /// The expected fingerprint.
        expected: Fingerprint,
        /// The fingerprint that it has.
        shown: Fingerprint,
    },
    /// The host is this host itself.
    #[error("it is this host itself")]
    Ourselves,
    /// The peers cannot be read.
    #[error("this host's peers cannot be read")]
    Peers(#[source] peers::Error),
}

/// Verifies the other host's certificate, in either role.
pub(super) struct Verifier {
    pub(super) ours: Fingerprint,
    pub(super) expected: Expected,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn verify(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        self.judge(Fingerprint::of(certificate)).map_err(|refused| {
            Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refused))))
        })
    }

    fn judge(&self, shown: Fingerprint) -> Result<(), Refused> {
        let known = |peers: &Peers| peers.find(shown).map_err(Refused::Peers);
        if shown == self.ours {
            return Err(Refused::Ourselves);
        }
        match &self.expected {
            Expected::Exactly(expected) if *expected == shown => Ok(()),
            Expected::Exactly(expected) => Err(Refused::Another { expected: *expected, shown }),
            Expected::AnyDestination(peers) => known(peers)?
                .is_some_and(|peer| peer.destination.is_some())
                .then_some(())
                .ok_or(Refused::Stranger(shown)),
            Expected::AnyPeer(peers) => known(peers)?.map(drop).ok_or(Refused::Stranger(shown)),
            Expected::Anyone => Ok(()),
        }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
