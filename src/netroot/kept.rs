//! What an earlier boot kept on the state disk: for a boot without the server, checked where it lies;
//! for any other boot, copied instead of fetched. Writes nothing to the disk: its journal may be replayed.

use super::cmdline::Cmdline;
use super::{Held, disk, mount, offline};
use crate::image::id::Digest;
use crate::image::manifest::{Config, Descriptor, Image};
use crate::image::sign;
use crate::ledger::kept::{KEPT_DIR, KEPT_FILE, KEPT_MAX_BYTES, Kept};
use crate::ledger::message::{BootDisk, BootGo};
use crate::site::DiskMatch;
use crate::sys::files;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Configs are a few hundred KiB.
const CONFIG_MAX_BYTES: u64 = 16 << 20;

/// What a boot without the server goes by.
pub struct Alone {
    pub go: BootGo,
    pub image: Image,
    pub config: Config,
    /// On the state disk, verified.
    pub layers: Vec<PathBuf>,
    pub disk: BootDisk,
}

/// Where the state disk is mounted then: layers are used from it before the role's root is there.
pub fn place() -> PathBuf {
    Path::new(mount::RUN).join("kept")
}

/// Mounts the disk that this boot came from and checks all that it keeps of the booted image.
pub fn open(cmdline: &Cmdline, id: &str, trusted: &[String], modules: &mut dyn FnMut()) -> Result<Alone> {
    close();
    let (found, boot, partition) = disk::by_id(id, modules)?;
    disk::mount_plainly(&partition, &place())?;
    let read = || -> Result<Alone> {
        let stamp = disk::read_stamp(&place())?;
        let folder = place().join(KEPT_DIR);
        let bytes = files::read_bounded(&folder.join(KEPT_FILE), KEPT_MAX_BYTES)?;
        let kept: Kept = serde_json::from_slice(&bytes).context("reading what is kept on the state disk")?;
        let own = offline::choose(&kept, stamp.as_ref(), cmdline, &found, &disk::list()?)
            .map_err(|why| Held::new(format!("state disk {}: {why}", found.name)))?;
        let manifest = sign::open(&own.envelope, trusted).map_err(anyhow::Error::msg);
        let image = Image::parse(&manifest.context("checking the kept manifest")?).map_err(anyhow::Error::msg)?;
        if image.id != cmdline.image {
            bail!("kept manifest is of image {}, not of {}", image.id, cmdline.image);
        }
        let config = files::read_bounded(&blob(&folder, &image.manifest.config)?, CONFIG_MAX_BYTES)?;
        let config = serde_json::from_slice(&config).context("reading the image's config")?;
        let layers = image.layers().iter().map(|layer| blob(&folder, layer)).collect::<Result<_>>()?;
        Ok(Alone { go: own.handover.go.clone(), image, config, layers, disk: boot })
    };
    let alone = read();
    if alone.is_err() {
        close();
    }
    alone
}

/// Takes back what [`open`] mounted.
pub fn close() {
    mount::unmount_below(&place());
}

/// A kept blob whose bytes are what its name says.
fn blob(folder: &Path, descriptor: &Descriptor) -> Result<PathBuf> {
    let path = folder.join(descriptor.digest.hex());
    let found = Digest(files::hash_file(&path)?);
    if found != descriptor.digest {
        bail!("{} on the state disk is {found}, not {}", descriptor.label(), descriptor.digest);
    }
    Ok(path)
}

/// Copies those layers that this node's state disk keeps whole to where [`crate::image::fetch::Source::blob`] would
/// put them. Best effort: what is not there is fetched.
pub fn copy_layers(go: &BootGo, want: &DiskMatch, image: &Image, to: &Path, say: &mut dyn FnMut(&str)) {
    let Some(partition) = disk::own(go, want) else { return };
    let copied = disk::peek_with(&partition, |top| {
        let mut bytes = 0;
        for layer in image.layers() {
            match copy(layer, &top.join(KEPT_DIR), to) {
                Ok(copied) => bytes += copied,
                Err(e) => say(&format!("{} is not taken from the state disk: {e:#}", layer.label())),
            }
        }
        Ok(bytes)
    });
    match copied {
        Ok(0) => {}
        Ok(bytes) => say(&format!("{} MiB of layers come from the state disk", bytes >> 20)),
        Err(e) => say(&format!("what the state disk keeps is not taken: {e:#}")),
    }
}

/// Bytes that were copied: none where nothing is kept, or where the layer is already.
fn copy(layer: &Descriptor, from: &Path, to: &Path) -> Result<u64> {
    let (kept, whole) = (from.join(layer.digest.hex()), to.join(layer.digest.hex()));
    if whole.exists() || !kept.exists() {
        return Ok(0);
    }
    let part = to.join(format!("{}.copy", layer.digest.hex()));
    let source = File::open(&kept).with_context(|| format!("opening {}", kept.display()))?;
    let target = File::create(&part).with_context(|| format!("creating {}", part.display()))?;
    let copied = files::copy_hashed(source, target).with_context(|| format!("copying {}", kept.display()));
    match copied {
        Ok((bytes, digest)) if Digest(digest) == layer.digest => {
            fs::rename(&part, &whole).with_context(|| format!("naming {}", whole.display()))?;
            Ok(bytes)
        }
        other => {
            let _ = fs::remove_file(&part);
            let (_, digest) = other?;
            bail!("it is {}, not {}", Digest(digest), layer.digest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::MEDIA_LAYER;

    #[test]
    fn only_whole_layers_are_taken() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let layer = |text: &[u8]| Descriptor::new(MEDIA_LAYER, (Digest::of(text), text.len() as u64));
        let (good, bad, absent) = (layer(b"good"), layer(b"bad"), layer(b"absent"));
        fs::write(from.path().join(good.digest.hex()), "good").unwrap();
        fs::write(from.path().join(bad.digest.hex()), "bed").unwrap();
        assert_eq!(copy(&good, from.path(), to.path()).unwrap(), 4);
        assert_eq!(copy(&good, from.path(), to.path()).unwrap(), 0, "it is there");
        assert_eq!(copy(&absent, from.path(), to.path()).unwrap(), 0);
        assert!(copy(&bad, from.path(), to.path()).unwrap_err().to_string().contains(&bad.digest.to_string()));
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1, "nothing half");
        assert!(blob(from.path(), &good).is_ok());
        let said = blob(from.path(), &bad).unwrap_err().to_string();
        assert!(said.contains(&Digest::of(b"bed").to_string()) && said.contains("on the state disk"), "{said}");
    }
}
