//! Reads a certificate request (PKCS #10, RFC 2986): the public key in it and the proof that its
//! sender holds the private half. Names and attributes in it are not looked at: the server says
//! who a node is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::crypto::ring::default_provider;

/// Larger than any request for an EC or ed25519 key, bytes of PEM.
pub const PEM_MAX_BYTES: usize = 16 * 1024;
/// AlgorithmIdentifier content: id-ecPublicKey with curve prime256v1 (RFC 5480 §2.1.1).
const EC_P256: &[u8] = &[0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
/// AlgorithmIdentifier content: id-Ed25519 (RFC 8410 §3).
const ED25519: &[u8] = &[0x06, 3, 0x2b, 0x65, 0x70];
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const OBJECT_ID: u8 = 0x06;
pub(super) const UTF8_STRING: u8 = 0x0c;
const BIT_STRING: u8 = 0x03;

/// The kinds of key that a generation may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    EcP256,
    Ed25519,
}

/// A request whose signature holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub kind: KeyKind,
    /// Content of the subjectPublicKey bit string.
    pub public_key: Vec<u8>,
}

/// Parses PEM and checks the request's own signature.
pub fn parse(pem: &str) -> Result<Request, String> {
    let der = der_of(pem)?;
    let mut outer = Der(&der);
    let mut request = Der(outer.take(SEQUENCE)?.1);
    outer.end()?;
    let (signed, info) = request.take(SEQUENCE)?;
    let (_, signature_algorithm) = request.take(SEQUENCE)?;
    let signature = bits(request.take(BIT_STRING)?.1)?;
    request.end()?;
    let mut info = Der(info);
    info.take(INTEGER)?;
    info.take(SEQUENCE)?; // the subject's name
    let mut key = Der(info.take(SEQUENCE)?.1);
    let (_, key_algorithm) = key.take(SEQUENCE)?;
    let public_key = bits(key.take(BIT_STRING)?.1)?;
    key.end()?;
    let kind = match key_algorithm {
        EC_P256 => KeyKind::EcP256,
        ED25519 => KeyKind::Ed25519,
        _ => return Err("certificate request is for a key that is neither EC P-256 nor ed25519".into()),
    };
    let algorithms = default_provider().signature_verification_algorithms;
    let algorithm = algorithms.all.iter().find(|a| {
        a.public_key_alg_id().as_ref() == key_algorithm && a.signature_alg_id().as_ref() == signature_algorithm
    });
    let holds = algorithm.is_some_and(|a| a.verify_signature(public_key, signed, signature).is_ok());
    if !holds {
        return Err("certificate request is not signed by its own key".into());
    }
    Ok(Request { kind, public_key: public_key.to_vec() })
}

fn der_of(pem: &str) -> Result<Vec<u8>, String> {
    let bad = || "certificate request is not PEM of type CERTIFICATE REQUEST".to_string();
    if pem.len() > PEM_MAX_BYTES {
        return Err(bad());
    }
    let body = pem.trim().strip_prefix("-----BEGIN CERTIFICATE REQUEST-----").ok_or_else(bad)?;
    let body = body.strip_suffix("-----END CERTIFICATE REQUEST-----").ok_or_else(bad)?;
    BASE64.decode(body.split_ascii_whitespace().collect::<String>()).map_err(|_| bad())
}

/// What is left of a DER value.
pub(super) struct Der<'a>(pub(super) &'a [u8]);

impl<'a> Der<'a> {
    /// The next element, which must have this tag: (all of it, its content).
    pub(super) fn take(&mut self, tag: u8) -> Result<(&'a [u8], &'a [u8]), String> {
        let bad = || "it is not valid DER".to_string();
        let (&found, &first) = (self.0.first().ok_or_else(bad)?, self.0.get(1).ok_or_else(bad)?);
        let (head, length) = match first {
            0..=0x7f => (2, usize::from(first)),
            0x81 => (3, usize::from(*self.0.get(2).ok_or_else(bad)?)),
            0x82 => {
                (4, usize::from(u16::from_be_bytes([*self.0.get(2).ok_or_else(bad)?, *self.0.get(3).ok_or_else(bad)?])))
            }
            _ => return Err(bad()),
        };
        let all = self.0.get(..head + length).ok_or_else(bad)?;
        if found != tag {
            return Err(bad());
        }
        self.0 = &self.0[head + length..];
        Ok((all, &all[head..]))
    }

    fn end(&self) -> Result<(), String> {
        if self.0.is_empty() { Ok(()) } else { Err("certificate request has bytes after its end".into()) }
    }
}

/// A bit string of whole bytes.
fn bits(content: &[u8]) -> Result<&[u8], String> {
    match content {
        [0, bytes @ ..] => Ok(bytes),
        _ => Err("certificate request has a bit string of odd bits".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData};

    fn request(key: &KeyPair) -> String {
        CertificateParams::new(vec!["x".into()]).unwrap().serialize_request(key).unwrap().pem().unwrap()
    }

    #[test]
    fn requests_of_both_kinds_are_read_and_others_refused() {
        let ec = KeyPair::generate().unwrap();
        let got = parse(&request(&ec)).unwrap();
        assert_eq!((got.kind, got.public_key.as_slice()), (KeyKind::EcP256, ec.der_bytes()));
        let ed = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        assert_eq!(parse(&request(&ed)).unwrap().kind, KeyKind::Ed25519);
        assert!(parse(&request(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap())).is_err());
        assert!(parse("").is_err());
    }

    #[test]
    fn a_request_that_was_changed_is_refused() {
        let pem = request(&KeyPair::generate().unwrap());
        let der = der_of(&pem).unwrap();
        for i in 0..der.len() {
            let mut changed = der.clone();
            changed[i] ^= 1;
            let pem = format!(
                "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----",
                BASE64.encode(&changed)
            );
            assert!(parse(&pem).is_err(), "byte {i}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let text = BASE64.encode(&bytes);
            let _ = parse(&format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----"));
        }
    }
}
