//! Signed manifests: a DSSE envelope around the manifest's exact bytes, ed25519.
//!
//! DSSE: <https://github.com/secure-systems-lab/dsse/blob/master/protocol.md>

use super::manifest::MEDIA_MANIFEST;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer, SigningKey, Verifier, VerifyingKey};
use serde::{Deserialize, Serialize};

/// The wire form of a signed manifest: `GET /images/<id>/manifest`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    pub payload_type: String,
    /// base64 of the manifest's bytes.
    pub payload: String,
    pub signatures: Vec<EnvelopeSignature>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvelopeSignature {
    /// base64 of the builder's public key.
    pub keyid: String,
    /// base64 of the ed25519 signature over the PAE of payload type and payload.
    pub sig: String,
}

/// Signs manifest bytes with the builder's key.
pub fn sign(manifest: &[u8], key: &SigningKey) -> Envelope {
    let signature = key.sign(&pae(MEDIA_MANIFEST, manifest));
    Envelope {
        payload_type: MEDIA_MANIFEST.into(),
        payload: BASE64.encode(manifest),
        signatures: vec![EnvelopeSignature {
            keyid: public_text(&key.verifying_key()),
            sig: BASE64.encode(signature.to_bytes()),
        }],
    }
}

/// The manifest bytes of an envelope that one of the `trusted` keys (base64) signed.
pub fn open(envelope: &Envelope, trusted: &[String]) -> Result<Vec<u8>, String> {
    let payload = payload(envelope)?;
    let message = pae(&envelope.payload_type, &payload);
    let mut mismatch = None;
    for signature in envelope.signatures.iter().filter(|s| trusted.contains(&s.keyid)) {
        let key = parse_public(&signature.keyid)?;
        let bytes = BASE64.decode(&signature.sig).map_err(|e| format!("signature is not base64: {e}"))?;
        let parsed = Signature::from_slice(&bytes).map_err(|e| format!("signature is malformed: {e}"))?;
        if key.verify(&message, &parsed).is_ok() {
            return Ok(payload);
        }
        mismatch = Some(format!("signature by builder {} does not match the manifest", signature.keyid));
    }
    if let Some(mismatch) = mismatch {
        return Err(mismatch);
    }
    let signers: Vec<&str> = envelope.signatures.iter().map(|s| s.keyid.as_str()).collect();
    Err(format!("manifest is signed by {signers:?}, none of which this image trusts ({trusted:?})"))
}

/// The manifest bytes, whoever signed them.
pub fn payload(envelope: &Envelope) -> Result<Vec<u8>, String> {
    if envelope.payload_type != MEDIA_MANIFEST {
        return Err(format!("signed payload is of type {:?}, not {MEDIA_MANIFEST}", envelope.payload_type));
    }
    BASE64.decode(&envelope.payload).map_err(|e| format!("payload is not base64: {e}"))
}

/// base64 of the 32 bytes.
pub fn public_text(key: &VerifyingKey) -> String {
    BASE64.encode(key.as_bytes())
}

/// Parses [`public_text`].
pub fn parse_public(text: &str) -> Result<VerifyingKey, String> {
    let bad = || format!("{text:?} is not an ed25519 public key (32 bytes in base64)");
    let bytes: [u8; 32] = BASE64.decode(text).map_err(|_| bad())?.try_into().map_err(|_| bad())?;
    VerifyingKey::from_bytes(&bytes).map_err(|_| bad())
}

/// DSSE's pre-authentication encoding: no two (type, payload) pairs share one encoding.
fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_trusted_key_over_the_same_bytes_opens() {
        let (ours, theirs) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let trusted = [public_text(&ours.verifying_key())];
        let good = sign(b"{}", &ours);
        assert_eq!(open(&good, &trusted), Ok(b"{}".to_vec()));
        assert!(open(&sign(b"{}", &theirs), &trusted).is_err());
        let tampered = Envelope { payload: BASE64.encode(b"[]"), ..good.clone() };
        assert!(open(&tampered, &trusted).is_err());
        let mut renamed = sign(b"{}", &theirs);
        renamed.signatures[0].keyid = trusted[0].clone();
        assert!(open(&renamed, &trusted).is_err());
        renamed.signatures.push(good.signatures[0].clone());
        assert!(open(&renamed, &trusted).is_ok(), "one that holds is enough");
    }
}
