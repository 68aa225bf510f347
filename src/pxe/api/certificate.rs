//! The site's keys and what they sign: the server's own certificate (nodes pin its key) and one
//! certificate for each generation of a node.

use super::csr::{Der, INTEGER, KeyKind, OBJECT_ID, Request, SEQUENCE, SET, UTF8_STRING};
use crate::image::id::Digest;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SignatureAlgorithm,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::time::Duration;

/// How long a generation's certificate is good; the agent registers again (same boot, same
/// generation) before that.
pub const LIFETIME_SECS: u64 = 30 * 24 * 3600;
/// Certificates start this early: clocks differ.
const EARLY_SECS: u64 = 3600;

/// A new EC P-256 key, PEM (PKCS #8).
pub fn new_key() -> Result<String, String> {
    KeyPair::generate().map(|k| k.serialize_pem()).map_err(|e| e.to_string())
}

fn key_pair(pem: &str) -> Result<KeyPair, String> {
    KeyPair::from_pem(pem).map_err(|e| format!("key is not PEM of PKCS #8: {e}"))
}

/// The server's side of TLS. Nodes pin the key, so names and dates in the certificate say nothing.
pub struct Identity {
    pub certificate: CertificateDer<'static>,
    pub key: PrivateKeyDer<'static>,
    /// sha256 of the public key (SubjectPublicKeyInfo DER).
    pub pin: Digest,
}

impl Identity {
    pub fn from_key(pem: &str) -> Result<Identity, String> {
        let key = key_pair(pem)?;
        let params = CertificateParams::new(vec!["kiln".to_string()]).map_err(|e| e.to_string())?;
        let certificate = params.self_signed(&key).map_err(|e| e.to_string())?;
        let pin = Digest::of(&key.subject_public_key_info());
        let der = PrivateKeyDer::try_from(key.serialize_der()).map_err(String::from)?;
        Ok(Identity { certificate: certificate.der().clone(), key: der, pin })
    }
}

/// Signs generations' certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Self-signed, made anew at each start from the same key and name.
    pub certificate: CertificateDer<'static>,
}

/// A certificate for a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    pub pem: String,
    /// sha256 of its DER.
    pub fingerprint: Digest,
    /// Unix milliseconds.
    pub expires_ms: u64,
}

/// A key that somebody else holds.
struct Requested<'a>(&'a Request);

impl PublicKeyData for Requested<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.0.public_key
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self.0.kind {
            KeyKind::EcP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyKind::Ed25519 => &rcgen::PKCS_ED25519,
        }
    }
}

impl Authority {
    pub fn from_key(pem: &str) -> Result<Authority, String> {
        let key = key_pair(pem)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named("kiln generations");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).map_err(|e| e.to_string())?.der().clone();
        Ok(Authority { issuer: Issuer::new(params, key), certificate })
    }

    /// A certificate that names node and generation and lets its holder be a TLS client.
    pub fn issue(&self, request: &Request, node: &str, generation: u64, now_ms: u64) -> Result<Issued, String> {
        let name = format!("{node}.g{generation}.kiln");
        let mut params = CertificateParams::new(vec![name.clone()]).map_err(|e| e.to_string())?;
        params.distinguished_name = named(&name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let (now, epoch) = (now_ms / 1000, rcgen::date_time_ymd(1970, 1, 1));
        params.not_before = epoch + Duration::from_secs(now.saturating_sub(EARLY_SECS));
        params.not_after = epoch + Duration::from_secs(now + LIFETIME_SECS);
        let certificate = params.signed_by(&Requested(request), &self.issuer).map_err(|e| e.to_string())?;
        let fingerprint = Digest::of(certificate.der());
        Ok(Issued { pem: certificate.pem(), fingerprint, expires_ms: (now + LIFETIME_SECS) * 1000 })
    }
}

/// The node and the generation that a certificate of ours names; whoever calls has checked its
/// signature. X.509: RFC 5280 §4.1.
pub fn names(der: &[u8]) -> Option<(String, u64)> {
    const EXPLICIT_0: u8 = 0xa0;
    let mut certificate = Der(Der(der).take(SEQUENCE).ok()?.1);
    let mut signed = Der(certificate.take(SEQUENCE).ok()?.1);
    signed.take(EXPLICIT_0).ok()?; // the version
    signed.take(INTEGER).ok()?;
    for _ in ["algorithm", "issuer", "validity"] {
        signed.take(SEQUENCE).ok()?;
    }
    let mut subject = Der(signed.take(SEQUENCE).ok()?.1);
    let mut attribute = Der(Der(subject.take(SET).ok()?.1).take(SEQUENCE).ok()?.1);
    attribute.take(OBJECT_ID).ok()?;
    let name = std::str::from_utf8(attribute.take(UTF8_STRING).ok()?.1).ok()?;
    let (node, generation) = name.strip_suffix(".kiln")?.rsplit_once(".g")?;
    Some((node.to_string(), generation.parse().ok()?))
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}
