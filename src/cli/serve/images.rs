//! The store as the server sees it: what a reference means today, which blobs may be read, which
//! images must stay.

use crate::image::id::{Digest, ImageId};
use crate::image::repository::{Member, members};
use crate::image::store::Store;
use crate::ledger::event::UsedImage;
use crate::sys::clock::monotonic_ms;
use crate::sys::files::write_atomic;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// A blob that is not known is looked for in the store again at most this often, ms.
const REFRESH_MS: u64 = 1000;
/// Preloaded repositories whose files are known by name; each is some MB for a whole distribution.
const REPOSITORIES_MAX: usize = 16;

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
        certificates: config.certificates,
    };
    Ok(Looked { image: used, release: config.release, role: config.role })
}

/// Blobs of the store's images. Other files of the store have no name here.
pub struct Blobs {
    store: Arc<Store>,
    known: Mutex<Known>,
    /// By the repository's blob.
    repositories: Mutex<BTreeMap<Digest, Arc<BTreeMap<String, Member>>>>,
}

#[derive(Default)]
struct Known {
    sizes: BTreeMap<Digest, u64>,
    /// Those of them that are preloaded repositories.
    repositories: BTreeSet<Digest>,
    looked_ms: Option<u64>,
}

impl Blobs {
    pub fn new(store: Arc<Store>) -> Blobs {
        Blobs { store, known: Mutex::default(), repositories: Mutex::default() }
    }

    /// An open blob and the length that its image gives it.
    pub fn open(&self, digest: &Digest) -> Option<(File, u64)> {
        let size = self.size(digest)?;
        self.store.open_blob(digest).ok().map(|file| (file, size))
    }

    /// A file of a preloaded repository: its open blob, the blob's length, where the file lies in it.
    pub fn member(&self, digest: &Digest, path: &str) -> Option<(File, u64, Member)> {
        let (file, size) = self.open(digest)?;
        if !self.known().repositories.contains(digest) {
            return None;
        }
        let mut repositories = self.repositories.lock().unwrap_or_else(|e| e.into_inner());
        let members = match repositories.get(digest) {
            Some(members) => members.clone(),
            None => {
                let found = members(BufReader::new(self.store.open_blob(digest).ok()?));
                let found = found.inspect_err(|why| tracing::warn!("http: blob {digest}: {why}")).ok()?;
                if repositories.len() >= REPOSITORIES_MAX {
                    repositories.clear(); // read again by those that are asked for
                }
                repositories.entry(*digest).or_insert(Arc::new(found)).clone()
            }
        };
        members.get(path).map(|member| (file, size, *member))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn size(&self, digest: &Digest) -> Option<u64> {
        let mut known = self.known();
        if let Some(size) = known.sizes.get(digest) {
            return Some(*size);
        }
        let now = monotonic_ms();
        if known.looked_ms.is_some_and(|then| now.saturating_sub(then) < REFRESH_MS) {
            return None;
        }
        known.looked_ms = Some(now);
        match look(&self.store) {
            Ok((sizes, repositories)) => (known.sizes, known.repositories) = (sizes, repositories),
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

fn look(store: &Store) -> Result<(BTreeMap<Digest, u64>, BTreeSet<Digest>)> {
    let (mut sizes, mut repositories) = (BTreeMap::new(), BTreeSet::new());
    for entry in store.list()? {
        let image = store.image(&entry.id)?;
        sizes.extend(image.blobs().map(|blob| (blob.digest, blob.size)));
        repositories.extend(image.repositories().iter().map(|blob| blob.digest));
    }
    Ok((sizes, repositories))
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
