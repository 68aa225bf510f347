//! Tiny images for tests.

use super::id::{Digest, ImageId};
use super::manifest::{Config, Manifest};
use super::sign::{self, Envelope};
use super::store::Store;
use ed25519_dalek::SigningKey;

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
    image_of(release, role, number, [&[number; 3000][..], release.as_bytes(), role.as_bytes()].concat())
}

/// The same with that layer.
pub fn image_of(release: &str, role: &str, number: u8, layer: Vec<u8>) -> TestImage {
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
        certificates: vec![],
        controller: false,
        clustered: vec![],
        epoch: 1_700_000_000,
        lock: Digest::of(b"lock").hex(),
        squashfs_tools: "mksquashfs version 4.5.1".into(),
        builders: vec![sign::public_text(&builder().verifying_key())],
        memory_min_mib: 512,
        unpacked_bytes: 1_000_000,
        packages: vec!["systemd 252 amd64".into()],
        preloaded: vec![],
        pinned_repositories: vec![],
        warnings: vec![],
    };
    let blobs = vec![
        serde_json::to_vec(&config).expect("plain JSON"),
        format!("kernel {number}").into_bytes(),
        b"initramfs".to_vec(),
        layer,
    ];
    let sizes: Vec<(Digest, u64)> = blobs.iter().map(|b| (Digest::of(b), b.len() as u64)).collect();
    let manifest = Manifest::new(sizes[0], sizes[1], sizes[2], &[("role", sizes[3])]).encode();
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
