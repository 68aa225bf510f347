//! Fetches an image from a server: the signed manifest, its config, then blobs by range with resume
//! into a folder. Nothing is handed on that was not verified.

use super::id::{Digest, ImageId};
use super::manifest::{Config, Descriptor, Image};
use super::sign::{self, Envelope};
use crate::sys::clock::growing_pause;
use crate::sys::files;
use crate::sys::http::{Body, Client, Get, Timeouts, status_of};
use anyhow::{Context, Result, bail};
use sha2::Digest as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest silence of a server before the connection is given up and made anew.
pub const IDLE: Duration = Duration::from_secs(30);
/// Whole fetches of one layer that may end in a wrong digest: bytes do change on bad wires and in
/// bad memory, but a blob that is wrong each time is wrong at its source.
const WRONG_MAX: u32 = 3;
/// Connections in a row that brought no byte before the phase fails (and is tried again).
const FRUITLESS_MAX: u32 = 12;

/// How long to wait between attempts.
#[derive(Clone, Copy, Debug)]
pub struct Pauses {
    pub first: Duration,
    pub max: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Pauses { first: Duration::from_millis(500), max: Duration::from_secs(20) }
    }
}

/// Where an image comes from.
pub struct Source {
    /// `http://ADDR:PORT`.
    pub base: String,
    pub client: Client,
    pub pauses: Pauses,
}

impl Source {
    /// The server's plain side.
    pub fn at(server: &str) -> Source {
        let timeouts = Timeouts { connect: Duration::from_secs(10), idle: IDLE };
        Source { base: format!("http://{server}"), client: Client::new().timeouts(timeouts), pauses: Pauses::default() }
    }

    /// The manifest of `id`: its bytes hash to `id` and one of the `trusted` builders signed them.
    pub fn image(&self, id: ImageId, trusted: &[String]) -> Result<Image> {
        let manifest = sign::open(&self.envelope(id)?, trusted).map_err(anyhow::Error::msg);
        named(&manifest.context("checking the manifest")?, id)
    }

    /// The manifest of an image that runs already: who signed it was asked before it was booted.
    pub fn running(&self, id: ImageId) -> Result<Image> {
        Ok(self.signed(id)?.1)
    }

    /// The same with the envelope that it came in, for whoever checks the signature later.
    pub fn signed(&self, id: ImageId) -> Result<(Envelope, Image)> {
        let envelope = self.envelope(id)?;
        let manifest = sign::payload(&envelope).map_err(anyhow::Error::msg).context("reading the manifest")?;
        let image = named(&manifest, id)?;
        Ok((envelope, image))
    }

    /// Kernel and initramfs in `folder`, each as [`Source::blob`] fetches it.
    pub fn boot_files(&self, image: &Image, folder: &Path, say: &mut dyn FnMut(&str)) -> Result<(PathBuf, PathBuf)> {
        Ok((self.blob(image.kernel(), folder, say)?, self.blob(image.initramfs(), folder, say)?))
    }

    fn envelope(&self, id: ImageId) -> Result<Envelope> {
        let url = format!("{}/images/{}/manifest", self.base, id.hex());
        let body = self.small(&url)?;
        serde_json::from_slice(&body).with_context(|| format!("reading the signed manifest {url}"))
    }

    /// The image's config, verified.
    pub fn config(&self, image: &Image) -> Result<Config> {
        let descriptor = &image.manifest.config;
        let body = self.small(&self.blob_url(descriptor))?;
        let found = Digest::of(&body);
        if found != descriptor.digest {
            bail!("config is {found}, the manifest names {}", descriptor.digest);
        }
        serde_json::from_slice(&body).context("reading the image's config")
    }

    /// A blob in `folder`, named by its hex digest. One that lies there already was verified
    /// before it got its name. `say` hears of every set-back.
    pub fn blob(&self, descriptor: &Descriptor, folder: &Path, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
        let whole = folder.join(descriptor.digest.hex());
        if whole.exists() {
            return Ok(whole);
        }
        let url = self.blob_url(descriptor);
        let what = descriptor.label();
        let mut sink = Sink::create(folder.join(format!("{}.part", descriptor.digest.hex())))?;
        let (mut wrong, mut fruitless) = (0, 0);
        loop {
            let had = sink.have;
            match self.continue_at(&url, descriptor, &mut sink) {
                Ok(()) if sink.digest() == descriptor.digest => {
                    fs::rename(&sink.path, &whole).with_context(|| format!("naming {}", whole.display()))?;
                    return Ok(whole);
                }
                Ok(()) => {
                    wrong += 1;
                    let (want, found) = (descriptor.digest, sink.digest());
                    let text = format!("{what} {want} arrived as {found} ({wrong} of {WRONG_MAX})");
                    sink = Sink::create(sink.path)?;
                    if wrong == WRONG_MAX {
                        let _ = fs::remove_file(&sink.path);
                        bail!("{text}; it is corrupted at the server");
                    }
                    say(&text);
                }
                Err(e) if matches!(status_of(&e), Some(400..=499)) => return Err(e),
                Err(e) => {
                    fruitless = if sink.have > had { 0 } else { fruitless + 1 };
                    if fruitless == FRUITLESS_MAX {
                        return Err(e.context(format!("fetching {what} {}", descriptor.digest)));
                    }
                    say(&format!(
                        "{what} {} at {} of {}: {e:#}",
                        descriptor.digest.short(),
                        sink.have,
                        descriptor.size
                    ));
                    std::thread::sleep(growing_pause(fruitless, self.pauses.first, self.pauses.max));
                }
            }
        }
    }

    fn continue_at(&self, url: &str, descriptor: &Descriptor, sink: &mut Sink) -> Result<()> {
        let get = Get { url, headers: &[], from: sink.have, max: descriptor.size };
        if sink.have < descriptor.size {
            self.client.download(&get, sink, &mut |_, _| {})?;
        }
        if sink.have != descriptor.size {
            bail!("server has {} bytes of {}, which has {}", sink.have, descriptor.label(), descriptor.size);
        }
        Ok(())
    }

    fn blob_url(&self, descriptor: &Descriptor) -> String {
        format!("{}/blobs/sha256/{}", self.base, descriptor.digest.hex())
    }

    fn small(&self, url: &str) -> Result<Vec<u8>> {
        Ok(self.client.request("GET", url, &[], Body::Empty)?.success("GET", url)?.body)
    }
}

/// Copies a blob's file from one folder to another, named as [`Source::blob`] names it, and says how many bytes: none
/// where it is not, or is there already. Nothing half or changed gets that name; `place`, for people: where it came from.
pub fn copy(blob: &Descriptor, from: &Path, to: &Path, place: &str) -> Result<u64> {
    let name = blob.digest.hex();
    let (from, whole, part) = (from.join(&name), to.join(&name), to.join(format!("{name}.copy")));
    if whole.exists() || !from.exists() {
        return Ok(0);
    }
    let copied = copy_whole(blob, &from, &part, place);
    if copied.is_err() {
        let _ = fs::remove_file(&part);
        return copied;
    }
    fs::rename(&part, &whole).with_context(|| format!("naming {}", whole.display()))?;
    copied
}

fn copy_whole(blob: &Descriptor, from: &Path, to: &Path, place: &str) -> Result<u64> {
    let source = File::open(from).with_context(|| format!("opening {}", from.display()))?;
    let file = File::create(to).with_context(|| format!("creating {}", to.display()))?;
    let mut target = Gentle { file, unsynced: 0 };
    let (bytes, digest) =
        files::copy_hashed(source, &mut target).with_context(|| format!("copying {}", from.display()))?;
    target.file.sync_all().with_context(|| format!("syncing {}", to.display()))?;
    if Digest(digest) != blob.digest {
        bail!("{} {place} is {}, not {}", blob.label(), Digest(digest), blob.digest);
    }
    Ok(bytes)
}

/// So much is written, then synced: a database on the same file system must not wait for more.
const SYNC_BYTES: usize = 8 << 20;

/// A file whose bytes do not pile up in memory.
struct Gentle {
    file: File,
    unsynced: usize,
}

impl Write for Gentle {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.unsynced += written;
        if self.unsynced >= SYNC_BYTES {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The image whose manifest hashes to `id`.
fn named(manifest: &[u8], id: ImageId) -> Result<Image> {
    let found = Digest::of(manifest);
    if found != id {
        bail!("server sent the manifest of image {found} instead of {id}");
    }
    Image::parse(manifest).map_err(anyhow::Error::msg)
}

/// A file that knows the digest of what it holds.
struct Sink {
    path: PathBuf,
    file: File,
    hasher: sha2::Sha256,
    have: u64,
}

impl Sink {
    fn create(path: PathBuf) -> Result<Sink> {
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(&path)
            .with_context(|| format!("creating {}", path.display()))?;
        Ok(Sink { path, file, hasher: sha2::Sha256::new(), have: 0 })
    }

    fn digest(&self) -> Digest {
        Digest(self.hasher.clone().finalize().into())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.have += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::MEDIA_LAYER;

    #[test]
    fn only_whole_blobs_are_copied_and_nothing_half_stays() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let blob = |text: &[u8]| Descriptor::new(MEDIA_LAYER, (Digest::of(text), text.len() as u64));
        let large = vec![b'x'; SYNC_BYTES + 1];
        let (good, bad, absent) = (blob(&large), blob(b"bad"), blob(b"absent"));
        fs::write(from.path().join(good.digest.hex()), &large).unwrap();
        fs::write(from.path().join(bad.digest.hex()), "bed").unwrap();
        let copied = |blob| copy(blob, from.path(), to.path(), "in memory");
        assert_eq!(copied(&good).unwrap(), large.len() as u64);
        assert_eq!(copied(&good).unwrap(), 0, "it is there");
        assert_eq!(copied(&absent).unwrap(), 0);
        let said = copied(&bad).unwrap_err().to_string();
        assert!(said.contains("in memory is") && said.contains(&bad.digest.to_string()), "{said}");
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1, "nothing half");
        assert_eq!(fs::read(to.path().join(good.digest.hex())).unwrap(), large);
    }
}
