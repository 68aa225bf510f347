//! What a node keeps on its state disk to boot without the server: [`KEPT_FILE`], and beside it the
//! config and the layers of its images, named by their digests. Kernels and initramfs lie on the disk's
//! EFI system partition, where firmware and boot loader can read them.

use super::message::Handover;
use crate::image::manifest::{Descriptor, Image};
use crate::image::sign::{self, Envelope};
use serde::{Deserialize, Serialize};

/// Folder of it all, below the top of the state disk.
pub const KEPT_DIR: &str = "kiln/boot";
/// In [`KEPT_DIR`].
pub const KEPT_FILE: &str = "kept.json";
/// Two manifests with their signatures are a few dozen KiB.
pub const KEPT_MAX_BYTES: u64 = 4 << 20;
/// The present image and the one before.
pub const IMAGES_MAX: usize = 2;
/// Kernel argument that marks a boot from the disk: `kiln.disk=<GUID of the state partition>`.
pub const DISK_ARGUMENT: &str = "kiln.disk";

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The newest first; all that one needs is there before it is named here.
    pub images: Vec<KeptImage>,
}

/// An image that was ready on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptImage {
    /// Of the boot that was ready, without what was for that boot only.
    pub handover: Handover,
    /// The signed manifest.
    pub envelope: Envelope,
    /// Kernel arguments of a boot from the disk.
    pub arguments: String,
}

impl KeptImage {
    /// What is kept of a boot that became ready.
    pub fn new(handover: &Handover, envelope: Envelope, arguments: String) -> KeptImage {
        let mut handover = handover.clone();
        handover.boot_id.clear();
        (handover.go.credential, handover.go.order) = (None, None);
        KeptImage { handover, envelope, arguments }
    }

    /// Its manifest, whoever signed it.
    pub fn image(&self) -> Result<Image, String> {
        Image::parse(&sign::payload(&self.envelope)?)
    }
}

/// What of an image lies in [`KEPT_DIR`].
pub fn blobs(image: &Image) -> impl Iterator<Item = &Descriptor> {
    std::iter::once(&image.manifest.config).chain(image.layers())
}
