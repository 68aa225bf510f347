//! An image as one file: a tar of an OCI layout that holds the image and its signature. The same
//! image under the same names gives the same bytes. Reading trusts nothing: only the files of a
//! layout, each blob checked against its name, nothing visible before all of it is.

use super::id::{Digest, ImageId};
use super::index::Index;
use super::manifest::Image;
use super::reference::Name;
use super::signature::SignatureManifest;
use super::store::{LAYOUT, MANIFEST_MAX_BYTES, Store, check_layout};
use anyhow::{Context, Result, anyhow, bail};
use sha2::Digest as _;
use std::collections::BTreeSet;
use std::io::{self, Read, Write};

/// Entries of an archive: an image has some ten blobs.
const ENTRIES_MAX: usize = 4096;
/// An extended header of another tar writer, skipped.
const PAX_MAX_BYTES: u64 = 64 * 1024;

/// What [`load`] brought in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    pub id: ImageId,
    pub names: Vec<Name>,
}

/// Writes an image, its signature and those names to `to`.
pub fn save(store: &Store, id: &ImageId, names: &[Name], to: impl Write) -> Result<()> {
    let image = store.image(id)?;
    let manifest = store.manifest_bytes(id)?;
    let signature = store.signature_manifest(id)?;
    let signature_parsed = SignatureManifest::parse(&signature, id).map_err(|e| anyhow!(e))?;

    let mut index = Index::default();
    index.add(id, manifest.len() as u64, &Digest::of(&signature), signature.len() as u64);
    for name in names {
        index.tag(id, name);
    }
    let mut tar = tar::Builder::new(to);
    append(&mut tar, "oci-layout", LAYOUT.len() as u64, LAYOUT)?;
    let index = index.encode();
    append(&mut tar, "index.json", index.len() as u64, &index[..])?;
    for bytes in [&manifest, &signature] {
        append(&mut tar, &blob_name(&Digest::of(bytes)), bytes.len() as u64, &bytes[..])?;
    }
    let mut seen = BTreeSet::new();
    for blob in signature_parsed.blobs().chain(image.blobs()).filter(|b| seen.insert(b.digest)) {
        let saved = append(&mut tar, &blob_name(&blob.digest), blob.size, store.open_blob(&blob.digest)?)
            .with_context(|| format!("saving {}", blob.label()))?;
        if saved != blob.digest {
            bail!("blob {} in the store is corrupt; run kiln image verify", blob.digest);
        }
    }
    tar.into_inner()?.flush().context("writing the archive")
}

/// Reads an archive into the store and commits its one image under the names that it has there.
/// On any error the store is as it was.
pub fn load(store: &Store, from: impl Read) -> Result<Loaded> {
    let loaded = read_entries(store, from).and_then(|index| commit(store, &index));
    // Also after success: an archive may carry blobs that its image does not need.
    let settled = store.settle();
    let loaded = loaded?;
    settled?;
    Ok(loaded)
}

/// Appends one file, which must be those bytes.
fn append(tar: &mut tar::Builder<impl Write>, name: &str, size: u64, from: impl Read) -> Result<Digest> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    // The writer pads to the length that it saw and not to what the header says: count.
    let mut from = Watched { inner: from.take(size), hasher: sha2::Sha256::new(), count: 0 };
    tar.append(&header, &mut from).context("writing the archive")?;
    if from.count != size {
        bail!("{name} has {} bytes, not {size}", from.count);
    }
    Ok(Digest(from.hasher.finalize().into()))
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Brings every blob into the store (invisible) and returns the archive's index.
fn read_entries(store: &Store, from: impl Read) -> Result<Index> {
    let mut archive = tar::Archive::new(from);
    let (mut index, mut layout, mut seen) = (None, false, BTreeSet::new());
    // Raw: the long-name extensions of tar would be read into memory whatever their size.
    for entry in archive.entries().context("reading the archive")?.raw(true) {
        let mut entry = entry.context("reading the archive")?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = path.strip_prefix("./").unwrap_or(&path).trim_end_matches('/').to_string();
        let kind = entry.header().entry_type();
        if kind.is_pax_local_extensions() || kind.is_pax_global_extensions() {
            if entry.size() > PAX_MAX_BYTES {
                bail!("archive has an extended header of {} bytes", entry.size());
            }
            continue;
        }
        if kind.is_dir() && ["", ".", "blobs", "blobs/sha256"].contains(&name.as_str()) {
            continue;
        }
        if !kind.is_file() {
            bail!("archive entry {path:?} is of type {kind:?}; an image archive holds plain files only");
        }
        if seen.len() >= ENTRIES_MAX {
            bail!("archive has more than {ENTRIES_MAX} entries");
        }
        if !seen.insert(name.clone()) {
            bail!("archive has {name:?} twice");
        }
        match name.as_str() {
            "oci-layout" => {
                check_layout(&read_small(&mut entry, &name)?).context("reading oci-layout")?;
                layout = true;
            }
            "index.json" => {
                let parsed = Index::parse(&read_small(&mut entry, &name)?).map_err(|e| anyhow!(e));
                index = Some(parsed.context("reading index.json")?);
            }
            _ => import_blob(store, &mut entry, &name)?,
        }
    }
    if !layout {
        bail!("this is not an image archive: it has no oci-layout");
    }
    index.ok_or_else(|| anyhow!("archive has no index.json"))
}

fn import_blob(store: &Store, entry: &mut tar::Entry<impl Read>, name: &str) -> Result<()> {
    let digest: Option<Digest> = name.strip_prefix("blobs/sha256/").and_then(|hex| hex.parse().ok());
    let digest = digest.ok_or_else(|| anyhow!("archive entry {name:?} has no place in an image archive"))?;
    let size = entry.size();
    let mut writer = store.writer()?;
    let mut buffered = io::BufReader::with_capacity(256 * 1024, entry);
    let copied = io::copy(&mut buffered, &mut writer).with_context(|| format!("reading {name} from the archive"))?;
    if copied != size {
        bail!("archive ends within {name}");
    }
    writer.finish(Some(&digest)).with_context(|| format!("reading {name} from the archive"))?;
    Ok(())
}

fn commit(store: &Store, index: &Index) -> Result<Loaded> {
    let mut index = index.clone();
    index.fill_artifact_types(|row| store.artifact_type(row));
    let images = index.images();
    let (Some((id, names)), 1) = (images.iter().next(), images.len()) else {
        bail!("archive holds {} images of kiln; it must hold one", images.len());
    };
    let manifest = store.read_blob(id, MANIFEST_MAX_BYTES).context("reading the image's manifest")?;
    let image = Image::parse(&manifest).map_err(|e| anyhow!(e))?;
    let signature = index.signature(id).ok_or_else(|| anyhow!("archive holds no signature of image {id}"))?;
    let envelope = store.envelope_of(&signature, id).context("reading the image's signature")?;
    let tags: Vec<String> = names.iter().map(Name::to_string).collect();
    store.commit_tagged(&manifest, &envelope, &tags.iter().map(String::as_str).collect::<Vec<_>>())?;
    Ok(Loaded { id: image.id, names: names.clone() })
}

fn read_small(entry: &mut tar::Entry<impl Read>, name: &str) -> Result<Vec<u8>> {
    if entry.size() > MANIFEST_MAX_BYTES {
        bail!("archive entry {name:?} has {} bytes; at most {MANIFEST_MAX_BYTES} are read", entry.size());
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).with_context(|| format!("reading {name} from the archive"))?;
    Ok(bytes)
}

/// Hashes and counts what is read through it.
struct Watched<R> {
    inner: R,
    hasher: sha2::Sha256,
    count: u64,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        self.count += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
