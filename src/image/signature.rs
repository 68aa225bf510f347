//! How a signature travels: a small OCI artifact whose `subject` is the image and whose only layer
//! is the DSSE envelope, so that stores and registries carry it like any manifest. What the
//! envelope says is [`super::sign`]'s matter.

use super::id::{Digest, ImageId};
use super::manifest::{Descriptor, MEDIA_MANIFEST};
use super::sign::Envelope;
use serde::{Deserialize, Serialize};

/// `artifactType` of the signature's manifest.
pub const MEDIA_SIGNATURE: &str = "application/vnd.kiln.signature.v1";
pub const MEDIA_ENVELOPE: &str = "application/vnd.dsse.envelope.v1+json";
/// The empty descriptor of OCI 1.1: its blob is [`EMPTY`].
pub const MEDIA_EMPTY: &str = "application/vnd.oci.empty.v1+json";
pub const EMPTY: &[u8] = b"{}";

/// The manifest that ties an envelope to its image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignatureManifest {
    schema_version: u32,
    media_type: String,
    artifact_type: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
    subject: Descriptor,
}

/// The blobs of a signature, ready to store: manifest, envelope, and [`EMPTY`].
pub struct SignatureBlobs {
    pub manifest: Vec<u8>,
    pub envelope: Vec<u8>,
}

/// The artifact that carries `envelope` for the image whose manifest bytes these are.
pub fn wrap(image_manifest: &[u8], envelope: &Envelope) -> SignatureBlobs {
    let envelope = serde_json::to_vec(envelope).expect("an envelope is plain JSON");
    let manifest = SignatureManifest {
        schema_version: 2,
        media_type: MEDIA_MANIFEST.into(),
        artifact_type: MEDIA_SIGNATURE.into(),
        config: descriptor(MEDIA_EMPTY, EMPTY),
        layers: vec![descriptor(MEDIA_ENVELOPE, &envelope)],
        subject: descriptor(MEDIA_MANIFEST, image_manifest),
    };
    SignatureBlobs { manifest: serde_json::to_vec(&manifest).expect("a manifest is plain JSON"), envelope }
}

impl SignatureManifest {
    /// Parses manifest bytes that must be the signature of `id`.
    pub fn parse(bytes: &[u8], id: &ImageId) -> Result<SignatureManifest, String> {
        let parsed: SignatureManifest =
            serde_json::from_slice(bytes).map_err(|e| format!("signature's manifest is not valid: {e}"))?;
        let shape = parsed.artifact_type == MEDIA_SIGNATURE
            && parsed.layers.len() == 1
            && parsed.layers[0].media_type == MEDIA_ENVELOPE;
        if !shape {
            return Err("signature's manifest must be kiln's and list one DSSE envelope".into());
        }
        if parsed.subject.digest != *id {
            return Err(format!("signature is for {}, not for {id}", parsed.subject.digest));
        }
        Ok(parsed)
    }

    /// Where the envelope lies.
    pub fn envelope(&self) -> &Descriptor {
        &self.layers[0]
    }

    /// Every blob that it needs: the empty config and the envelope.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor::new(media_type, (Digest::of(bytes), bytes.len() as u64))
}
