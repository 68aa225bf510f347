//! TLS with pinned keys: a server is who holds the key whose SubjectPublicKeyInfo has a known
//! sha256. Names, issuers and dates of its certificate are not judged: a fresh machine's clock is
//! wrong, and the pin says more than any of them.

use anyhow::{Context, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use sha2::Digest as _;
use std::sync::Arc;

/// sha256 of a SubjectPublicKeyInfo, DER.
pub type Pin = [u8; 32];

/// A client's certificate chain and key, both PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

/// A client that accepts exactly the key with this pin, and shows `identity` when asked.
pub fn pinned(pin: Pin, identity: Option<&Identity>) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { pin, provider }));
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
                .collect::<std::result::Result<Vec<_>, _>>()
                .context("reading this node's certificate")?;
            let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).context("reading this node's TLS key")?;
            builder.with_client_auth_cert(chain, key).context("pairing this node's certificate with its key")?
        }
    };
    Ok(Arc::new(config))
}

/// sha256 of a certificate's SubjectPublicKeyInfo, DER.
pub fn pin_of(certificate: &CertificateDer<'_>) -> Result<Pin, Error> {
    Ok(sha2::Sha256::digest(ParsedCertificate::try_from(certificate)?.subject_public_key_info()).into())
}

#[derive(Debug)]
struct Pinned {
    pin: Pin,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if pin_of(end_entity)? == self.pin {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, PublicKeyData};
    use rustls::{ClientConnection, ServerConfig, ServerConnection};

    fn server(key: &KeyPair, not_after: i32) -> ServerConfig {
        let mut params = CertificateParams::new(vec!["any.name".to_string()]).unwrap();
        params.not_after = rcgen::date_time_ymd(not_after, 1, 1);
        let certificate = params.self_signed(key).unwrap();
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap()
    }

    /// Both ends of a handshake in memory.
    fn shake(client: Arc<ClientConfig>, server: ServerConfig) -> Result<(), Error> {
        let mut client = ClientConnection::new(client, ServerName::try_from("10.0.0.1").unwrap()).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            let accepted = server.process_new_packets();
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
            accepted?;
        }
        Ok(())
    }

    #[test]
    fn only_the_pinned_key_is_the_server_whatever_the_date_says() {
        let (ours, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let pin = sha2::Sha256::digest(ours.subject_public_key_info()).into();
        for (key, year, good) in [(&ours, 2099, true), (&ours, 2001, true), (&other, 2099, false)] {
            let got = shake(pinned(pin, None).unwrap(), server(key, year));
            assert_eq!(got.is_ok(), good, "{year}: {got:?}");
        }
    }
}
