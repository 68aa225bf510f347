//! The site's keys and what they sign: the server's own certificate (nodes pin its key), one
//! certificate for each generation of a node, and those by which nodes know one another.
//!
//! All are signed with one key, under a name of its own for each purpose: a certificate leads to the
//! authority that has its issuer's name (RFC 5280 §6.1.3 a.4), so one that was made for one purpose is
//! worth nothing for another.

use super::csr::{Der, INTEGER, KeyKind, OBJECT_ID, Request, SEQUENCE, SET, UTF8_STRING};
use crate::image::id::Digest;
use crate::ledger::message::PeerCertificate;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SignatureAlgorithm,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::{IpAddr, Ipv4Addr};
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

/// Signs nodes' certificates.
pub struct Authority {
    /// PEM.
    key: String,
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
        let (issuer, certificate) = authority(pem, "kiln generations")?;
        Ok(Authority { key: pem.into(), issuer, certificate: certificate.der().clone() })
    }

    /// A certificate by which other nodes that have one of the same name know this node at its address,
    /// as a server and as a client.
    pub fn issue_peer(
        &self,
        request: &Request,
        name: &str,
        node: &str,
        address: Ipv4Addr,
        now_ms: u64,
    ) -> Result<PeerCertificate, String> {
        let (issuer, authority) = authority(&self.key, &format!("kiln peers {name}"))?;
        let mut params = leaf(node, now_ms)?;
        params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(address)));
        // libvirt 9 and QEMU 7 demand the second one of any key.
        params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        let certificate = params.signed_by(&Requested(request), &issuer).map_err(|e| e.to_string())?;
        Ok(PeerCertificate { certificate: certificate.pem(), authority: authority.pem() })
    }

    /// A certificate that names node and generation and lets its holder be a TLS client.
    pub fn issue(&self, request: &Request, node: &str, generation: u64, now_ms: u64) -> Result<Issued, String> {
        let name = format!("{node}.g{generation}.kiln");
        let params = leaf(&name, now_ms)?;
        let now = now_ms / 1000;
        let certificate = params.signed_by(&Requested(request), &self.issuer).map_err(|e| e.to_string())?;
        let fingerprint = Digest::of(certificate.der());
        Ok(Issued { pem: certificate.pem(), fingerprint, expires_ms: (now + LIFETIME_SECS) * 1000 })
    }
}

/// What signs under that name, and its own certificate.
fn authority(key: &str, name: &str) -> Result<(Issuer<'static, KeyPair>, Certificate), String> {
    let key = key_pair(key)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = params.self_signed(&key).map_err(|e| e.to_string())?;
    Ok((Issuer::new(params, key), certificate))
}

/// A certificate that lets its holder be a TLS client, from now on.
fn leaf(name: &str, now_ms: u64) -> Result<CertificateParams, String> {
    let mut params = CertificateParams::new(vec![name.to_string()]).map_err(|e| e.to_string())?;
    params.distinguished_name = named(name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let (now, epoch) = (now_ms / 1000, rcgen::date_time_ymd(1970, 1, 1));
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(EARLY_SECS));
    params.not_after = epoch + Duration::from_secs(now + LIFETIME_SECS);
    Ok(params)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pxe::api::csr;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::crypto::ring::default_provider;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{ServerName, UnixTime};
    use rustls::server::WebPkiClientVerifier;
    use std::sync::Arc;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn request() -> Request {
        let key = KeyPair::generate().unwrap();
        csr::parse(&CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()).unwrap()
    }

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    /// Whether a peer that trusts this authority takes the certificate: of a client, of the server at an address.
    fn taken(authority: &CertificateDer<'static>, certificate: &str, address: &str, at_ms: u64) -> (bool, bool) {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.clone()).unwrap();
        let (roots, provider) = (Arc::new(roots), Arc::new(default_provider()));
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build().unwrap();
        let servers = WebPkiServerVerifier::builder_with_provider(roots, provider).build().unwrap();
        let (der, now) = (der(certificate), UnixTime::since_unix_epoch(Duration::from_millis(at_ms)));
        let name = ServerName::try_from(address.to_string()).unwrap();
        let client = clients.verify_client_cert(&der, &[], now).is_ok();
        (client, servers.verify_server_cert(&der, &[], &name, &[], now).is_ok())
    }

    #[test]
    fn peers_know_one_another_by_their_own_authority_only() {
        let key = new_key().unwrap();
        let authority = Authority::from_key(&key).unwrap();
        let issue =
            |name: &str| authority.issue_peer(&request(), name, "compute1", [10, 0, 0, 9].into(), NOW_MS).unwrap();
        let (libvirt, qemu) = (issue("libvirt"), issue("qemu"));
        let generation = authority.issue(&request(), "compute1", 3, NOW_MS).unwrap().pem;
        let roots = [der(&libvirt.authority), der(&qemu.authority), authority.certificate.clone()];
        let names = [&libvirt.certificate, &qemu.certificate, &generation];
        for (i, root) in roots.iter().enumerate() {
            for (j, certificate) in names.iter().enumerate() {
                let want = (i == j, i == j && j < 2);
                assert_eq!(taken(root, certificate, "10.0.0.9", NOW_MS), want, "certificate {j} by authority {i}");
            }
        }
        // Another node's address, and a certificate that has ended.
        let (root, own) = (&roots[0], &libvirt.certificate);
        assert_eq!(taken(root, own, "10.0.0.8", NOW_MS), (true, false));
        assert_eq!(taken(root, own, "10.0.0.9", NOW_MS + LIFETIME_SECS * 1000 + 1000), (false, false));
        assert_eq!(names_of(own), None, "it is no generation's");
        // A server that was started anew is the same authority.
        let later = Authority::from_key(&key).unwrap();
        let anew = later.issue_peer(&request(), "libvirt", "compute2", [10, 0, 0, 8].into(), NOW_MS).unwrap();
        assert_eq!(taken(root, &anew.certificate, "10.0.0.8", NOW_MS), (true, true));
        let other = Authority::from_key(&new_key().unwrap()).unwrap();
        let foreign = other.issue_peer(&request(), "libvirt", "compute1", [10, 0, 0, 9].into(), NOW_MS).unwrap();
        assert_eq!(taken(root, &foreign.certificate, "10.0.0.9", NOW_MS), (false, false));
    }

    fn names_of(pem: &str) -> Option<(String, u64)> {
        super::names(&der(pem))
    }
}
