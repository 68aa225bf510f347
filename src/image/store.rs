//! The store: an OCI image layout folder. A blob becomes part of an image only by [`Store::commit`],
//! which rewrites `index.json` in one rename; until then nobody sees it. It does not judge who may
//! sign: it keeps what an image's own config says, and the node's initramfs decides.
//!
//! ```text
//! STORE/oci-layout  index.json  blobs/sha256/<hex>      what every OCI tool reads
//! STORE/.kiln/lock                                      held for every change, and only for moments
//! STORE/.kiln/sessions/<name>/{lock,claim-<hex>,tmp-*}  one writer's unfinished work
//! ```
//!
//! Writers and [`Store::gc`] live side by side without waiting for each other: a writer holds the
//! lock of its session folder until it ends (however it ends), works in temporary files there, and,
//! under the store's lock, claims a digest *before* its blob appears or is found present. `gc` decides
//! and deletes under the same lock, and spares what live sessions claim. A session whose lock nobody
//! holds is a dead writer's and is removed with its temporary files. Other tools take no part in this:
//! while one writes into the folder, `gc` must not run.

use super::id::{Digest, ImageId};
use super::index::{Index, Row};
use super::manifest::{Config, Image, MEDIA_MANIFEST};
use super::reference::{Name, Reference, TAG_DEFAULT};
use super::sign::{self, Envelope};
use super::signature::{self, SignatureManifest};
use crate::sys::files;
use anyhow::{Context, Result, anyhow, bail};
use sha2::Digest as _;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A manifest (registries refuse larger ones).
pub const MANIFEST_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// A config: it lists every package.
pub const CONFIG_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// An envelope holds a manifest in base64.
pub const ENVELOPE_MAX_BYTES: u64 = 2 * MANIFEST_MAX_BYTES;
/// `index.json` of a store with very many images.
const INDEX_MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Content of `oci-layout`.
pub(super) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Nested indexes of other tools are followed this deep by `gc`.
const INDEX_DEPTH_MAX: usize = 8;

/// An open store, to be shared between threads. Dropping it ends its session.
pub struct Store {
    root: PathBuf,
    session: Mutex<Option<Session>>,
}

/// One image of [`Store::list`].
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: ImageId,
    /// Its `release/role:tag` names, sorted; none: only its id finds it, and `gc` may remove it.
    pub names: Vec<String>,
    pub release: String,
    pub role: String,
    /// Bytes of manifest, config, kernel, initramfs and layers.
    pub size: u64,
    pub config: Config,
}

/// What [`Store::gc`] removed, or would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    pub images: Vec<ImageId>,
    pub blobs: Vec<Digest>,
    /// Of the blobs.
    pub bytes: u64,
    /// Dead writers whose temporary files went.
    pub dead_writers: usize,
}

/// One writer's unfinished work; see the file's head.
struct Session {
    dir: PathBuf,
    /// Blobs that were not in the store before it put them there.
    fresh: BTreeSet<Digest>,
    _lock: files::Lock,
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir); // what stays is removed by the next gc
    }
}

impl Store {
    /// Opens the store at `path`; makes an empty one when the folder is absent or empty.
    pub fn open(path: &Path) -> Result<Store> {
        if !path.join("oci-layout").exists() && is_free(path)? {
            create(path).with_context(|| format!("creating store {}", path.display()))?;
        }
        Store::open_existing(path)
    }

    /// Opens the store at `path` and changes nothing.
    pub fn open_existing(path: &Path) -> Result<Store> {
        let marker = path.join("oci-layout");
        match files::read_bounded(&marker, MANIFEST_MAX_BYTES) {
            Ok(bytes) => check_layout(&bytes).with_context(|| format!("reading {}", marker.display()))?,
            Err(_) if !path.exists() => bail!("there is no store at {}", path.display()),
            Err(e) => return Err(e.context(format!("{} is not a store (an OCI image layout)", path.display()))),
        }
        Ok(Store { root: path.to_path_buf(), session: Mutex::new(None) })
    }

    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Where a blob lies or would lie.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        File::open(self.blob_path(digest)).with_context(|| format!("opening blob {digest} in {}", self.root.display()))
    }

    /// Reads a whole blob of at most `max_bytes` and checks that it is what its name says.
    pub fn read_blob(&self, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>> {
        let bytes = files::read_bounded(&self.blob_path(digest), max_bytes)?;
        if Digest::of(&bytes) != *digest {
            bail!("blob {digest} in {} is corrupt: its bytes hash to {}", self.root.display(), Digest::of(&bytes));
        }
        Ok(bytes)
    }

    // Writing.

    /// A writer for one blob. Nothing of it is seen before [`BlobWriter::finish`].
    pub fn writer(&self) -> Result<BlobWriter<'_>> {
        let dir = self.session_dir()?;
        let tmp = tempfile::Builder::new()
            .prefix("tmp-")
            .tempfile_in(&dir)
            .with_context(|| format!("creating a temporary file in {}", dir.display()))?;
        Ok(BlobWriter { store: self, tmp, hasher: sha2::Sha256::new(), written: 0, failed: false })
    }

    /// Copies a file in. A digest other than `expect` is an error and leaves nothing.
    pub fn import_file(&self, path: &Path, expect: Option<&Digest>) -> Result<(Digest, u64)> {
        let from = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        self.import_reader(from, expect).with_context(|| format!("importing {}", path.display()))
    }

    /// Moves a file in: a rename where it lies on the store's file system, else a copy. The caller
    /// must not write to it any more.
    pub fn import_move(&self, path: &Path, expect: Option<&Digest>) -> Result<(Digest, u64)> {
        let moved = self.session_dir()?.join(format!("tmp-move-{}", random_name()?));
        match fs::rename(path, &moved) {
            Err(e) if e.raw_os_error() == Some(nix::errno::Errno::EXDEV as i32) => {
                let imported = self.import_file(path, expect)?;
                fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
                return Ok(imported);
            }
            renamed => renamed.with_context(|| format!("moving {} into the store", path.display()))?,
        }
        let mut file = File::open(&moved)?;
        let (size, hash) = files::copy_hashed(&mut file, io::sink())?;
        let digest = Digest(hash);
        if let Err(e) = self.place(&file, &moved, &digest, expect) {
            let _ = fs::rename(&moved, path); // the caller's file stays the caller's
            return Err(e.context(format!("importing {}", path.display())));
        }
        Ok((digest, size))
    }

    pub fn import_bytes(&self, bytes: &[u8]) -> Result<(Digest, u64)> {
        self.import_reader(bytes, None)
    }

    pub fn import_reader(&self, mut from: impl Read, expect: Option<&Digest>) -> Result<(Digest, u64)> {
        let mut writer = self.writer()?;
        io::copy(&mut io::BufReader::with_capacity(256 * 1024, &mut from), &mut writer)?;
        writer.finish(expect)
    }

    /// Keeps a blob that may be in the store already from `gc` while this store is open: its size,
    /// or nothing when it is absent.
    pub fn claim(&self, digest: &Digest) -> Result<Option<u64>> {
        let dir = self.session_dir()?;
        let _lock = self.lock()?;
        claim_in(&dir, digest)?;
        Ok(fs::metadata(self.blob_path(digest)).ok().filter(fs::Metadata::is_file).map(|m| m.len()))
    }

    /// Makes an image visible: every blob of it must be in the store and the signature must hold
    /// under one of the builders that its config names. `tag` is a bare tag or the image's whole
    /// name. An image that is there already only gains the tag.
    pub fn commit(&self, manifest: &[u8], envelope: &Envelope, tag: Option<&str>) -> Result<ImageId> {
        self.commit_tagged(manifest, envelope, tag.as_slice())
    }

    /// [`Store::commit`] with any number of tags, all of them or none.
    pub fn commit_tagged(&self, manifest: &[u8], envelope: &Envelope, tags: &[&str]) -> Result<ImageId> {
        let image = Image::parse(manifest).map_err(|e| anyhow!(e))?;
        let id = image.id;
        if manifest.len() as u64 > MANIFEST_MAX_BYTES {
            bail!("manifest {id} is larger than {MANIFEST_MAX_BYTES} bytes");
        }
        let config = self.config_of(&image).with_context(|| format!("reading the config of image {id}"))?;
        let signed = sign::open(envelope, &config.builders).map_err(|e| anyhow!(e));
        if signed.with_context(|| format!("checking the signature of image {id}"))? != manifest {
            bail!("the signature given for image {id} is that of another manifest");
        }
        let name = |tag: &&str| Name::of(&config.release, &config.role, tag).map_err(|e| anyhow!(e));
        name(&TAG_DEFAULT)?; // without a tag too: an image that can have no name has no place here
        let names = tags.iter().map(name).collect::<Result<Vec<Name>>>()?;

        self.import_bytes(manifest)?;
        let known = self.signature_of(&id).is_ok_and(|(e, _)| sign::open(&e, &config.builders).is_ok());
        let wrapped = signature::wrap(manifest, envelope);
        if !known {
            for bytes in [signature::EMPTY, &wrapped.envelope, &wrapped.manifest] {
                self.import_bytes(bytes)?;
            }
        }
        self.change_index(|index| {
            for blob in image.blobs() {
                self.check_blob(&blob.digest, blob.size)?;
            }
            if !known {
                let (digest, size) = (Digest::of(&wrapped.manifest), wrapped.manifest.len() as u64);
                index.add(&id, manifest.len() as u64, &digest, size);
            }
            for name in &names {
                index.tag(&id, name);
            }
            Ok(())
        })
        .with_context(|| format!("committing image {id}"))?;
        Ok(id)
    }

    /// Gives an image a further name (a bare tag or its whole name), taking it from another image.
    pub fn tag(&self, id: &ImageId, tag: &str) -> Result<()> {
        let config = self.config(id)?;
        let name = Name::of(&config.release, &config.role, tag).map_err(|e| anyhow!(e))?;
        self.change_index(|index| match index.tag(id, &name) {
            true => Ok(()),
            false => bail!("no image {id} in the store"),
        })
    }

    /// Takes a name away; the image stays visible by its id until `gc`.
    pub fn untag(&self, name: &str) -> Result<ImageId> {
        let name: Name = name.parse().map_err(|e: String| anyhow!(e))?;
        let mut taken = None;
        self.change_index(|index| {
            taken = index.untag(&name);
            Ok(())
        })?;
        taken.ok_or_else(|| anyhow!("no image is named {name}"))
    }

    // Reading.

    /// Every image, by its first name and id. An image that cannot be read is an error: `verify` says more.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for (id, names) in self.index()?.images() {
            let image = self.image_unlisted(&id)?;
            let config = self.config_of(&image)?;
            let manifest = fs::metadata(self.blob_path(&id)).map_or(0, |m| m.len());
            entries.push(Entry {
                id,
                names: names.iter().map(Name::to_string).collect(),
                release: config.release.clone(),
                role: config.role.clone(),
                size: manifest + image.blobs().map(|b| b.size).sum::<u64>(),
                config,
            });
        }
        entries.sort_by(|a, b| (a.names.is_empty(), &a.names, &a.id).cmp(&(b.names.is_empty(), &b.names, &b.id)));
        Ok(entries)
    }

    /// `release/role[:tag]`, an id or a unique prefix of one.
    pub fn resolve(&self, reference: &str) -> Result<ImageId> {
        let reference: Reference = reference.parse().map_err(|e: String| anyhow!(e))?;
        self.index()?.resolve(&reference).map_err(|e| anyhow!("{e} ({})", self.root.display()))
    }

    pub fn image(&self, id: &ImageId) -> Result<Image> {
        if !self.index()?.images().contains_key(id) {
            bail!("no image {id} in the store {}", self.root.display());
        }
        self.image_unlisted(id)
    }

    /// The exact bytes that the id is the digest of.
    pub fn manifest_bytes(&self, id: &ImageId) -> Result<Vec<u8>> {
        self.image(id)?;
        self.read_blob(id, MANIFEST_MAX_BYTES)
    }

    pub fn config(&self, id: &ImageId) -> Result<Config> {
        self.config_of(&self.image(id)?)
    }

    /// The names of an image, sorted.
    pub fn names(&self, id: &ImageId) -> Result<Vec<Name>> {
        Ok(self.index()?.images().remove(id).unwrap_or_default())
    }

    pub fn envelope(&self, id: &ImageId) -> Result<Envelope> {
        Ok(self.signature_of(id)?.0)
    }

    /// The bytes of the manifest that carries the signature, as [`signature::wrap`] made them.
    pub fn signature_manifest(&self, id: &ImageId) -> Result<Vec<u8>> {
        Ok(self.signature_of(id)?.1)
    }

    /// Every blob hashed again, the signature checked against the config's builders. What does not
    /// hold; nothing is good.
    pub fn verify(&self, id: &ImageId) -> Result<Vec<String>> {
        let image = self.image(id)?;
        let mut problems = Vec::new();
        for blob in image.blobs() {
            if let Err(e) = self.check_blob(&blob.digest, blob.size) {
                problems.push(format!("{}: {e:#}", blob.label()));
                continue;
            }
            let hash = Digest(files::hash_file(&self.blob_path(&blob.digest))?);
            if hash != blob.digest {
                problems.push(format!("{}: blob {} is corrupt: its bytes hash to {hash}", blob.label(), blob.digest));
            }
        }
        let signed = self.config_of(&image).and_then(|config| {
            let payload = sign::open(&self.envelope(id)?, &config.builders).map_err(|e| anyhow!(e))?;
            if Digest::of(&payload) == *id { Ok(()) } else { bail!("it is that of another manifest") }
        });
        problems.extend(signed.err().map(|e| format!("signature: {e:#}")));
        Ok(problems)
    }

    // Removing.

    /// Ends this handle's session: blobs that it brought in go if no image took them and nobody else
    /// claims them. After an import that failed, the store is as it was.
    pub fn settle(&self) -> Result<()> {
        let lock = self.lock()?;
        let Some(session) = self.session_guard().take() else { return Ok(()) };
        let fresh = session.fresh.clone();
        drop(session); // its claims and temporary files
        let (claimed, _) = self.sessions()?;
        let live = self.live(&self.index()?, claimed)?;
        for digest in fresh.difference(&live) {
            let path = self.blob_path(digest);
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        drop(lock);
        Ok(())
    }

    /// Removes untagged images that are not in `keep`, and blobs that nothing refers to and no live
    /// writer claims. Killed half way it leaves only more to remove.
    pub fn gc(&self, keep: &[ImageId], dry_run: bool) -> Result<GcReport> {
        let _lock = self.lock()?;
        let (claimed, dead) = self.sessions()?;
        let mut index = self.index()?;
        let doomed: BTreeSet<ImageId> = index
            .images()
            .into_iter()
            .filter(|(id, names)| names.is_empty() && !keep.contains(id) && !claimed.contains(id))
            .map(|(id, _)| id)
            .collect();
        index.remove(&doomed);
        index.remove_orphaned_signatures();
        let live = self.live(&index, claimed)?;
        let mut report =
            GcReport { images: doomed.into_iter().collect(), dead_writers: dead.len(), ..GcReport::default() };
        for entry in fs::read_dir(self.root.join("blobs/sha256")).context("listing blobs")? {
            let entry = entry?;
            let Some(digest) = entry.file_name().to_str().and_then(|n| n.parse::<Digest>().ok()) else { continue };
            if !live.contains(&digest) {
                report.blobs.push(digest);
                report.bytes += entry.metadata().map_or(0, |m| m.len());
            }
        }
        report.blobs.sort();
        if !dry_run {
            self.sweep(&index, &report, &dead)?;
        }
        Ok(report)
    }

    fn sweep(&self, index: &Index, report: &GcReport, dead: &[PathBuf]) -> Result<()> {
        self.write_index(index)?; // first: an image must vanish before its blobs do
        for digest in &report.blobs {
            let path = self.blob_path(digest);
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        for session in dead {
            files::remove_tree(session)?;
        }
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            // Index writes happen under the lock that we hold: these are a dead writer's.
            if entry.file_name().to_string_lossy().starts_with(files::TMP_PREFIX) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Digests that live sessions claim, and the folders of dead ones. Only under the lock.
    fn sessions(&self) -> Result<(BTreeSet<Digest>, Vec<PathBuf>)> {
        let (mut claimed, mut dead) = (BTreeSet::new(), Vec::new());
        let dir = self.root.join(".kiln/sessions");
        for entry in fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))? {
            let path = entry?.path();
            let lock = path.join("lock");
            // Sessions are made under our lock, so one without a lock file or with a free one has ended.
            if !lock.exists() || files::try_lock(&lock).is_ok_and(|l| l.is_some()) {
                dead.push(path);
                continue;
            }
            let Ok(names) = fs::read_dir(&path) else { continue }; // it ended while we looked
            for name in names.flatten() {
                let name = name.file_name();
                let hex = name.to_str().and_then(|n| n.strip_prefix("claim-"));
                claimed.extend(hex.and_then(|h| h.parse::<Digest>().ok()));
            }
        }
        Ok((claimed, dead))
    }

    /// What an index refers to, and what is `claimed`.
    fn live(&self, index: &Index, claimed: BTreeSet<Digest>) -> Result<BTreeSet<Digest>> {
        let mut live = claimed;
        for row in index.rows() {
            self.mark(&row.digest, &mut live, INDEX_DEPTH_MAX)
                .with_context(|| format!("reading what {} refers to; nothing was removed", row.digest))?;
        }
        Ok(live)
    }

    /// Adds a manifest or index and all that it refers to. `digest` may be another tool's.
    fn mark(&self, digest: &str, live: &mut BTreeSet<Digest>, depth: usize) -> Result<()> {
        if depth == 0 {
            bail!("indexes are nested more than {INDEX_DEPTH_MAX} deep");
        }
        let Some((algorithm, hex)) = digest.split_once(':') else { bail!("{digest:?} is not a digest") };
        if hex.is_empty() || !algorithm.bytes().chain(hex.bytes()).all(|b| b.is_ascii_alphanumeric()) {
            bail!("{digest:?} is not a digest");
        }
        live.extend(digest.parse::<Digest>().ok());
        let path = self.root.join("blobs").join(algorithm).join(hex);
        if !path.exists() {
            return Ok(()); // nothing can be said to hang on it
        }
        let value: serde_json::Value = serde_json::from_slice(&files::read_bounded(&path, INDEX_MAX_BYTES)?)?;
        let list = |key: &str| value[key].as_array().cloned().unwrap_or_default();
        for blob in list("layers").iter().chain(&list("blobs")).chain([&value["config"]]) {
            live.extend(blob["digest"].as_str().and_then(|d| d.parse::<Digest>().ok()));
        }
        for manifest in list("manifests") {
            self.mark(manifest["digest"].as_str().unwrap_or_default(), live, depth - 1)?;
        }
        Ok(())
    }

    // The parts.

    fn lock(&self) -> Result<files::Lock> {
        fs::create_dir_all(self.root.join(".kiln/sessions"))
            .with_context(|| format!("creating {}/.kiln", self.root.display()))?;
        files::lock(&self.root.join(".kiln/lock"))
    }

    fn session_guard(&self) -> std::sync::MutexGuard<'_, Option<Session>> {
        self.session.lock().unwrap_or_else(|e| e.into_inner()) // no code panics while it holds this
    }

    /// The folder of this handle's session, made when first needed.
    fn session_dir(&self) -> Result<PathBuf> {
        let made = |session: &Option<Session>| session.as_ref().map(|s| s.dir.clone());
        if let Some(dir) = made(&self.session_guard()) {
            return Ok(dir);
        }
        let _lock = self.lock()?;
        let mut session = self.session_guard(); // always after the lock, so that no two threads wait crosswise
        if let Some(dir) = made(&session) {
            return Ok(dir);
        }
        let dir = self.root.join(".kiln/sessions").join(format!("{}-{}", std::process::id(), random_name()?));
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let lock = files::lock(&dir.join("lock"))?;
        *session = Some(Session { dir: dir.clone(), fresh: BTreeSet::new(), _lock: lock });
        Ok(dir)
    }

    /// Renames a finished temporary file to its blob's place.
    fn place(&self, file: &File, tmp: &Path, digest: &Digest, expect: Option<&Digest>) -> Result<()> {
        if let Some(expect) = expect.filter(|e| *e != digest) {
            bail!("bytes hash to {digest}, not to {expect}");
        }
        nix::sys::stat::fchmod(file, nix::sys::stat::Mode::from_bits_truncate(0o644))?; // servers read it
        file.sync_all()?;
        let dir = self.session_dir()?;
        let _lock = self.lock()?;
        claim_in(&dir, digest)?;
        // Over one that is there: these bytes were just checked, those may have rotted.
        let to = self.blob_path(digest);
        let fresh = !to.exists();
        fs::rename(tmp, &to).with_context(|| format!("renaming to {}", to.display()))?;
        if let Some(session) = self.session_guard().as_mut().filter(|_| fresh) {
            session.fresh.insert(*digest);
        }
        Ok(())
    }

    /// Runs `change` on the index under the lock and writes the result, all blobs synced before.
    fn change_index(&self, change: impl FnOnce(&mut Index) -> Result<()>) -> Result<()> {
        let _lock = self.lock()?;
        let before = self.index()?;
        let mut after = before.clone();
        change(&mut after)?;
        if after == before {
            return Ok(());
        }
        files::sync_dir(&self.root.join("blobs/sha256"))?;
        self.write_index(&after)
    }

    fn write_index(&self, index: &Index) -> Result<()> {
        files::write_atomic(&self.root.join("index.json"), &index.encode(), 0o644)
    }

    fn index(&self) -> Result<Index> {
        let path = self.root.join("index.json");
        let bytes = files::read_bounded(&path, INDEX_MAX_BYTES)?;
        let mut index =
            Index::parse(&bytes).map_err(|e| anyhow!(e)).with_context(|| format!("reading {}", path.display()))?;
        index.fill_artifact_types(|row| self.artifact_type(row));
        Ok(index)
    }

    /// Tools older than OCI 1.1 drop `artifactType` from the rows when they rewrite an index.
    pub(super) fn artifact_type(&self, row: &Row) -> Option<String> {
        if row.media_type != MEDIA_MANIFEST {
            return None;
        }
        let bytes = files::read_bounded(&self.blob_path(&row.id()?), MANIFEST_MAX_BYTES).ok()?;
        serde_json::from_slice::<serde_json::Value>(&bytes).ok()?["artifactType"].as_str().map(str::to_string)
    }

    fn image_unlisted(&self, id: &ImageId) -> Result<Image> {
        let bytes = self.read_blob(id, MANIFEST_MAX_BYTES)?;
        Image::parse(&bytes).map_err(|e| anyhow!(e)).with_context(|| format!("reading image {id}"))
    }

    fn config_of(&self, image: &Image) -> Result<Config> {
        let digest = &image.manifest.config.digest;
        let bytes = self.read_blob(digest, CONFIG_MAX_BYTES)?;
        serde_json::from_slice(&bytes).with_context(|| format!("parsing config {digest}"))
    }

    fn signature_of(&self, id: &ImageId) -> Result<(Envelope, Vec<u8>)> {
        let digest = self.index()?.signature(id).ok_or_else(|| anyhow!("image {id} has no signature in the store"))?;
        Ok((self.envelope_of(&digest, id)?, self.read_blob(&digest, MANIFEST_MAX_BYTES)?))
    }

    /// The envelope that the signature manifest `signature` carries for image `id`; both may not be committed yet.
    pub(super) fn envelope_of(&self, signature: &Digest, id: &ImageId) -> Result<Envelope> {
        let manifest = self.read_blob(signature, MANIFEST_MAX_BYTES)?;
        let parsed = SignatureManifest::parse(&manifest, id).map_err(|e| anyhow!(e))?;
        let bytes = self.read_blob(&parsed.envelope().digest, ENVELOPE_MAX_BYTES)?;
        serde_json::from_slice(&bytes).with_context(|| format!("parsing the signature of image {id}"))
    }

    fn check_blob(&self, digest: &Digest, size: u64) -> Result<()> {
        match fs::metadata(self.blob_path(digest)) {
            Ok(m) if m.len() == size => Ok(()),
            Ok(m) => bail!("blob {digest} has {} bytes, not {size}", m.len()),
            Err(_) => bail!("blob {digest} is missing"),
        }
    }
}

/// A blob being written.
pub struct BlobWriter<'a> {
    store: &'a Store,
    tmp: tempfile::NamedTempFile,
    hasher: sha2::Sha256,
    written: u64,
    failed: bool,
}

impl BlobWriter<'_> {
    /// Whether a write failed: the disk's fault, not that of where the bytes come from.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// Bytes so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Puts the blob into its place, claimed. A digest other than `expect` is an error and leaves nothing.
    pub fn finish(self, expect: Option<&Digest>) -> Result<(Digest, u64)> {
        let digest = Digest(self.hasher.finalize().into());
        self.store.place(self.tmp.as_file(), self.tmp.path(), &digest, expect)?;
        let _ = self.tmp.into_temp_path().keep(); // renamed away: nothing to remove
        Ok((digest, self.written))
    }
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.tmp.write(bytes).inspect_err(|e| self.failed |= e.kind() != io::ErrorKind::Interrupted)?;
        self.hasher.update(&bytes[..n]);
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tmp.flush()
    }
}

fn claim_in(session: &Path, digest: &Digest) -> Result<()> {
    let claim = session.join(format!("claim-{}", digest.hex()));
    File::create(&claim).map(drop).with_context(|| format!("creating {}", claim.display()))
}

fn random_name() -> Result<String> {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).map_err(|e| anyhow!("asking for random bytes: {e}"))?;
    Ok(super::id::hex(&bytes))
}

pub(super) fn check_layout(bytes: &[u8]) -> Result<()> {
    let layout: serde_json::Value = serde_json::from_slice(bytes)?;
    match layout["imageLayoutVersion"].as_str() {
        Some("1.0.0") => Ok(()),
        other => bail!("its layout version is {other:?}, not 1.0.0"),
    }
}

/// Whether a store may be made there: nothing, an empty folder, or one whose making was interrupted.
fn is_free(path: &Path) -> Result<bool> {
    let entries = match fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        entries => entries.with_context(|| format!("listing {}", path.display()))?,
    };
    let entries: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let ours = |n: &String| n == ".kiln" || n == "lost+found";
    let unfinished = |n: &String| ours(n) || n == "blobs" || n == "index.json" || n.starts_with(files::TMP_PREFIX);
    Ok(entries.iter().all(ours) || (entries.iter().any(|n| n == ".kiln") && entries.iter().all(unfinished)))
}

/// `oci-layout` comes last: before it, no tool takes the folder for a layout.
fn create(path: &Path) -> Result<()> {
    fs::create_dir_all(path.join(".kiln/sessions"))?;
    let _lock = files::lock(&path.join(".kiln/lock"))?;
    if path.join("oci-layout").exists() {
        return Ok(()); // another one was quicker
    }
    fs::create_dir_all(path.join("blobs/sha256"))?;
    files::write_atomic(&path.join("index.json"), &Index::default().encode(), 0o644)?;
    files::write_atomic(&path.join("oci-layout"), LAYOUT, 0o644)
}

#[cfg(test)]
mod tests;
