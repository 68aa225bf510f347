//! What an earlier boot kept on the state disk: for a boot without the server, checked where it lies;
//! for any other boot, copied instead of fetched. Writes nothing to the disk: its journal may be replayed.

use super::cmdline::Cmdline;
use super::{Held, disk, mount, offline};
use crate::image::fetch;
use crate::image::id::Digest;
use crate::image::manifest::{Config, Descriptor, Image};
use crate::image::sign;
use crate::ledger::kept::{KEPT_DIR, KEPT_FILE, KEPT_MAX_BYTES, Kept};
use crate::ledger::message::{BootDisk, BootGo};
use crate::site::DiskMatch;
use crate::sys::files;
use anyhow::{Context, Result, bail};
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
            match fetch::copy(layer, &top.join(KEPT_DIR), to, "on the state disk") {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::MEDIA_LAYER;
    use std::fs;

    #[test]
    fn a_kept_blob_is_what_its_name_says() {
        let from = tempfile::tempdir().unwrap();
        let layer = |text: &[u8]| Descriptor::new(MEDIA_LAYER, (Digest::of(text), text.len() as u64));
        let (good, bad) = (layer(b"good"), layer(b"bad"));
        fs::write(from.path().join(good.digest.hex()), "good").unwrap();
        fs::write(from.path().join(bad.digest.hex()), "bed").unwrap();
        assert!(blob(from.path(), &good).is_ok());
        let said = blob(from.path(), &bad).unwrap_err().to_string();
        assert!(said.contains(&Digest::of(b"bed").to_string()) && said.contains("on the state disk"), "{said}");
    }
}
