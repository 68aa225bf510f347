//! The store as the server sees it: what a reference means today, which blobs may be read, which
//! images must stay.

use crate::image::id::{Digest, ImageId};
use crate::image::store::Store;
use crate::ledger::event::UsedImage;
use crate::sys::clock::monotonic_ms;
use crate::sys::files::write_atomic;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A blob that is not known is looked for in the store again at most this often, ms.
const REFRESH_MS: u64 = 1000;

/// What an image is, for the ledger; with its release and role.
pub struct Looked {
    pub image: UsedImage,
    pub release: String,
    pub role: String,
}

/// What `reference` means today.
pub fn look_up(store: &Store, reference: &str) -> Result<Looked> {
    let id = store.resolve(reference)?;
    let image = store.image(&id)?;
    let config = store.config(&id)?;
    let used = UsedImage {
        id,
        reference: reference.to_string(),
        kernel: image.kernel().digest,
        initramfs: image.initramfs().digest,
        cmdline: config.cmdline,
        architecture: config.architecture,
        controller: config.controller,
        clustered: config.clustered,
        secrets: config.secrets,
    };
    Ok(Looked { image: used, release: config.release, role: config.role })
}

/// Blobs of the store's images. Other files of the store have no name here.
pub struct Blobs {
    store: Arc<Store>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    sizes: BTreeMap<Digest, u64>,
    looked_ms: Option<u64>,
}

impl Blobs {
    pub fn new(store: Arc<Store>) -> Blobs {
        Blobs { store, known: Mutex::default() }
    }

    /// An open blob and the length that its image gives it.
    pub fn open(&self, digest: &Digest) -> Option<(File, u64)> {
        let size = self.size(digest)?;
        self.store.open_blob(digest).ok().map(|file| (file, size))
    }

    fn size(&self, digest: &Digest) -> Option<u64> {
        let mut known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(size) = known.sizes.get(digest) {
            return Some(*size);
        }
        let now = monotonic_ms();
        if known.looked_ms.is_some_and(|then| now.saturating_sub(then) < REFRESH_MS) {
            return None;
        }
        known.looked_ms = Some(now);
        match sizes(&self.store) {
            Ok(sizes) => known.sizes = sizes,
            Err(error) => tracing::warn!("http: listing the store: {error:#}"),
        }
        known.sizes.get(digest).copied()
    }

    /// The signed manifest as it goes over the wire.
    pub fn envelope(&self, id: &ImageId) -> Option<Vec<u8>> {
        let envelope = self.store.envelope(id).ok()?;
        serde_json::to_vec(&envelope).ok()
    }
}

fn sizes(store: &Store) -> Result<BTreeMap<Digest, u64>> {
    let mut sizes = BTreeMap::new();
    for entry in store.list()? {
        sizes.extend(store.image(&entry.id)?.blobs().map(|blob| (blob.digest, blob.size)));
    }
    Ok(sizes)
}

/// `images-in-use.json` of the state folder, which `kiln image gc` reads.
pub struct InUse {
    path: PathBuf,
    written: Mutex<Option<BTreeSet<ImageId>>>,
}

impl InUse {
    pub fn new(state: &Path) -> InUse {
        InUse { path: state.join("images-in-use.json"), written: Mutex::default() }
    }

    /// Writes the file if the set changed.
    pub fn write(&self, ids: BTreeSet<ImageId>) -> Result<()> {
        let mut written = self.written.lock().unwrap_or_else(|e| e.into_inner());
        if written.as_ref() == Some(&ids) {
            return Ok(());
        }
        write_atomic(&self.path, &serde_json::to_vec_pretty(&ids)?, 0o644).context("writing the images in use")?;
        *written = Some(ids);
        Ok(())
    }
}
