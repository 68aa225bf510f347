//! Tiny images for tests.

use super::id::{Digest, ImageId};
use super::manifest::*;
use super::sign::{self, Envelope};
use super::store::Store;
use ed25519_dalek::SigningKey;
use std::collections::BTreeMap;

/// An image in memory.
pub struct TestImage {
    pub id: ImageId,
    pub manifest: Vec<u8>,
    pub envelope: Envelope,
    pub config: Config,
    /// Config, kernel, initramfs, layer.
    pub blobs: Vec<Vec<u8>>,
}

/// The key that signs them.
pub fn builder() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// A signed image; another `number` gives another kernel and layer but the same initramfs.
pub fn image(release: &str, role: &str, number: u8) -> TestImage {
    let config = Config {
        kiln: "0.1.0".into(),
        release: release.into(),
        role: role.into(),
        distribution: "debian12".into(),
        architecture: "amd64".into(),
        kernel: "6.1.0-test".into(),
        cmdline: vec!["console=ttyS0".into()],
        systems: vec!["environment".into()],
        secrets: vec![],
        controller: false,
        epoch: 1_700_000_000,
        lock: Digest::of(b"lock").hex(),
        squashfs_tools: "mksquashfs version 4.5.1".into(),
        builders: vec![sign::public_text(&builder().verifying_key())],
        memory_min_mib: 512,
        unpacked_bytes: 1_000_000,
        packages: vec!["systemd 252 amd64".into()],
        pinned_repositories: vec![],
        warnings: vec![],
    };
    let blobs = vec![
        serde_json::to_vec(&config).expect("plain JSON"),
        format!("kernel {number}").into_bytes(),
        b"initramfs".to_vec(),
        [&[number; 3000][..], release.as_bytes(), role.as_bytes()].concat(),
    ];
    let types = [MEDIA_CONFIG, MEDIA_KERNEL, MEDIA_INITRAMFS, MEDIA_LAYER];
    let mut descriptors = blobs.iter().zip(types).map(|(bytes, media_type)| Descriptor {
        media_type: media_type.into(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        annotations: match media_type {
            MEDIA_LAYER => BTreeMap::from([(ANNOTATION_NAME.into(), "role".into())]),
            _ => BTreeMap::new(),
        },
    });
    let manifest = Manifest {
        schema_version: 2,
        media_type: MEDIA_MANIFEST.into(),
        artifact_type: MEDIA_CONFIG.into(),
        config: descriptors.next().expect("the first is the config"),
        layers: descriptors.collect(),
        annotations: BTreeMap::new(),
    };
    let manifest = serde_json::to_vec(&manifest).expect("plain JSON");
    let envelope = sign::sign(&manifest, &builder());
    TestImage { id: Digest::of(&manifest), manifest, envelope, config, blobs }
}

impl TestImage {
    pub fn import(&self, store: &Store) {
        for blob in &self.blobs {
            store.import_bytes(blob).expect("importing a test blob");
        }
    }

    pub fn commit(&self, store: &Store, tag: Option<&str>) -> ImageId {
        self.import(store);
        store.commit(&self.manifest, &self.envelope, tag).expect("committing a test image")
    }

    pub fn manifest_parsed(&self) -> Manifest {
        serde_json::from_slice(&self.manifest).expect("our own manifest")
    }
}
