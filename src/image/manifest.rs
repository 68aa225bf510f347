//! The OCI manifest of an image and its config: everything a boot needs to know, each blob named
//! by digest. The image's id is the sha256 of the manifest's exact bytes, so those bytes are kept
//! and signed as they are; [`Manifest`] is only ever parsed from them.
//!
//! OCI image manifest, version 1.1: <https://github.com/opencontainers/image-spec/blob/main/manifest.md>

use super::id::{Digest, ImageId};
use crate::recipe::system::Clustered;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const MEDIA_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The manifest's `artifactType`: what makes it an image of ours.
pub const MEDIA_IMAGE: &str = "application/vnd.kiln.image.v1";
/// The config's type is the common one: plain `skopeo inspect` refuses any other, and ignores our fields.
pub const MEDIA_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const MEDIA_KERNEL: &str = "application/vnd.kiln.kernel.v1";
pub const MEDIA_INITRAMFS: &str = "application/vnd.kiln.initramfs.v1+cpio";
pub const MEDIA_LAYER: &str = "application/vnd.kiln.layer.v1+squashfs";
/// A preloaded repository: a plain tar (its packages are packed already) whose members are the files
/// of one repository. No layer: it never lies in a node's memory.
pub const MEDIA_REPOSITORY: &str = "application/vnd.kiln.repository.v1+tar";
/// Annotation of a layer or repository: its name (a stage's, or `role`; the recipe's id).
pub const ANNOTATION_NAME: &str = "io.kiln.name";

/// The OCI manifest. `layers` holds the kernel, the initramfs, the squashfs layers bottom up, then
/// the preloaded repositories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    pub media_type: String,
    pub artifact_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// The manifest of an image: digests and sizes of its blobs, the layers (named) bottom up.
    pub fn new(
        config: (Digest, u64),
        kernel: (Digest, u64),
        initramfs: (Digest, u64),
        layers: &[(&str, (Digest, u64))],
    ) -> Manifest {
        let named = layers.iter().map(|(name, blob)| Descriptor::new(MEDIA_LAYER, *blob).named(name));
        let boot = [Descriptor::new(MEDIA_KERNEL, kernel), Descriptor::new(MEDIA_INITRAMFS, initramfs)];
        Manifest {
            schema_version: 2,
            media_type: MEDIA_MANIFEST.into(),
            artifact_type: MEDIA_IMAGE.into(),
            config: Descriptor::new(MEDIA_CONFIG, config),
            layers: boot.into_iter().chain(named).collect(),
            annotations: BTreeMap::new(),
        }
    }

    /// With preloaded repositories (the recipe's id, the blob).
    pub fn with_repositories(mut self, repositories: &[(&str, (Digest, u64))]) -> Manifest {
        let named = repositories.iter().map(|(id, blob)| Descriptor::new(MEDIA_REPOSITORY, *blob).named(id));
        self.layers.extend(named);
        self
    }

    /// The bytes that the id is the digest of: sign and store these.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest is plain JSON")
    }
}

impl Descriptor {
    pub fn new(media_type: &str, (digest, size): (Digest, u64)) -> Descriptor {
        Descriptor { media_type: media_type.into(), digest, size, annotations: BTreeMap::new() }
    }

    fn named(mut self, name: &str) -> Descriptor {
        self.annotations.insert(ANNOTATION_NAME.into(), name.into());
        self
    }

    /// What it is, for people: `layer role`, `repository base`, `kernel`, `config`.
    pub fn label(&self) -> String {
        match (self.media_type.as_str(), self.annotations.get(ANNOTATION_NAME)) {
            (MEDIA_REPOSITORY, Some(id)) => format!("repository {id}"),
            (MEDIA_KERNEL, _) => "kernel".into(),
            (MEDIA_INITRAMFS, _) => "initramfs".into(),
            (MEDIA_CONFIG, _) => "config".into(),
            (_, Some(name)) => format!("layer {name}"),
            (_, None) => format!("layer {}", self.digest.short()),
        }
    }
}

/// The config blob: what the image is and what it was made from. Everything that its id must
/// depend on and that its layers do not show stands here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The `kiln` release that baked it.
    pub kiln: String,
    pub release: String,
    pub role: String,
    pub distribution: String,
    pub architecture: String,
    /// `uname -r` of the kernel inside.
    pub kernel: String,
    /// Kernel arguments of the role.
    pub cmdline: Vec<String>,
    /// Names of the role's systems in start order.
    pub systems: Vec<String>,
    /// Names of the site's secrets that those systems may receive, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// Names of the certificates that they may receive, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<String>,
    /// Whether a node of it is a controller: one of its systems has a formation.
    pub controller: bool,
    /// Of those systems, the ones on which several nodes must agree.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clustered: Vec<Clustered>,
    /// SOURCE_DATE_EPOCH, Unix seconds.
    pub epoch: u64,
    /// sha256 of the lock's canonical text.
    pub lock: String,
    /// Version line of the squashfs tool.
    pub squashfs_tools: String,
    /// Public keys (base64) whose manifests the initramfs boots.
    pub builders: Vec<String>,
    /// Least memory of a node, MiB.
    pub memory_min_mib: u64,
    /// Bytes of all layers when unpacked.
    pub unpacked_bytes: u64,
    /// `name version arch`, sorted.
    pub packages: Vec<String>,
    /// What was preloaded, in the recipe's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preloaded: Vec<Preloaded>,
    /// Repository ids that are trusted by a pinned digest only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pinned_repositories: Vec<String>,
    /// Warnings of the lints, as shown at bake time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A preloaded repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preloaded {
    /// Its id in the recipe.
    pub id: String,
    /// `closure` or `full`.
    pub preload: String,
    pub packages: usize,
}

/// A manifest whose bytes hash to its id and whose shape is an image's of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub id: ImageId,
    pub manifest: Manifest,
}

impl Image {
    /// Parses manifest bytes. Errors say what is wrong with them.
    pub fn parse(bytes: &[u8]) -> Result<Image, String> {
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| format!("manifest is not valid: {e}"))?;
        if manifest.media_type != MEDIA_MANIFEST || manifest.artifact_type != MEDIA_IMAGE {
            return Err(format!("manifest is of type {}, not kiln's {MEDIA_IMAGE}", manifest.artifact_type));
        }
        if manifest.config.media_type != MEDIA_CONFIG {
            return Err(format!("manifest's config is of type {}, not {MEDIA_CONFIG}", manifest.config.media_type));
        }
        let types: Vec<&str> = manifest.layers.iter().map(|l| l.media_type.as_str()).collect();
        let repositories = types.iter().rev().take_while(|t| **t == MEDIA_REPOSITORY).count();
        let layers = &types[..types.len() - repositories];
        let shape = layers.len() >= 3
            && layers[0] == MEDIA_KERNEL
            && layers[1] == MEDIA_INITRAMFS
            && layers[2..].iter().all(|t| *t == MEDIA_LAYER);
        if !shape {
            return Err(
                "manifest must list a kernel, an initramfs, at least one squashfs layer, then repositories".into()
            );
        }
        Ok(Image { id: Digest::of(bytes), manifest })
    }

    pub fn kernel(&self) -> &Descriptor {
        &self.manifest.layers[0]
    }

    pub fn initramfs(&self) -> &Descriptor {
        &self.manifest.layers[1]
    }

    /// The squashfs layers, lowest first.
    pub fn layers(&self) -> &[Descriptor] {
        &self.manifest.layers[2..self.repositories_start()]
    }

    /// The preloaded repositories.
    pub fn repositories(&self) -> &[Descriptor] {
        &self.manifest.layers[self.repositories_start()..]
    }

    fn repositories_start(&self) -> usize {
        let layers = &self.manifest.layers;
        layers.iter().position(|l| l.media_type == MEDIA_REPOSITORY).unwrap_or(layers.len())
    }

    /// Every blob of the image: config, kernel, initramfs, layers, repositories.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        std::iter::once(&self.manifest.config).chain(&self.manifest.layers)
    }
}
