//! Compares two images: mounts their layers, lists them, reads what may differ, and asks the images'
//! own package databases whose files those are. What is different is decided by [`super::diff`].

use super::chroot::{self, Chroot, Mounted, Work};
use super::diff::{self, Difference, Entry, File, Kind, Layer, Listing};
use super::squash;
use crate::image::id::{Digest, ImageId};
use crate::image::manifest::{Descriptor, Image};
use crate::image::store::Store;
use crate::repo::rpm::query;
use crate::sys::{command, files};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// Of larger files only the first byte that differs is told.
const EXCERPT_FILE_MAX_BYTES: u64 = 1 << 20;
const BUFFER_BYTES: usize = 256 << 10;
/// A packed initramfs, and an unpacked one.
const INITRAMFS_MAX_BYTES: u64 = 1 << 30;
/// One list or script of dpkg's database.
const NOTE_MAX_BYTES: u64 = 16 << 20;
const QUERY_TIMEOUT: Duration = Duration::from_secs(600);
/// The package databases, below the root.
const DPKG: &str = "var/lib/dpkg/info";
const RPM: &str = "var/lib/rpm";

/// Everything that two images, each in its store, differ in. The caller has called [`chroot::isolate`].
pub fn compare(a: (&Store, &ImageId), b: (&Store, &ImageId), cache: &Path) -> Result<Difference> {
    let (image_a, image_b) = (a.0.image(a.1)?, b.0.image(b.1)?);
    let (config_a, config_b) = (a.0.config(a.1)?, b.0.config(b.1)?);
    let mut difference = Difference {
        packages: diff::packages(&config_a, &config_b),
        config: diff::config(&config_a, &config_b),
        ..Difference::default()
    };
    if image_a.initramfs().digest != image_b.initramfs().digest {
        let file = |store: &Store, image: &Image| store.blob_path(&image.initramfs().digest);
        let (file_a, file_b) = (file(a.0, &image_a), file(b.0, &image_b));
        difference.initramfs = initramfs((&file_a, config_a.epoch), (&file_b, config_b.epoch))?;
    }
    if image_a.layers() != image_b.layers() {
        let work = Work::new(cache)?;
        let mut trees = Trees { work: &work, mounted: BTreeMap::new() };
        let (layers_a, layers_b) =
            (trees.list(a.0, &image_a, config_a.epoch)?, trees.list(b.0, &image_b, config_b.epoch)?);
        difference.files = diff::files(&layers_a, &layers_b, &mut |path, i, j| {
            content(&trees.root(&layers_a[i]).join(path), &trees.root(&layers_b[j]).join(path))
        })?;
        difference.units = diff::units(&layers_a, &layers_b, &difference.files);
        // The newer database first: what both own is told by the second image's.
        for (number, layers) in [&layers_b, &layers_a].into_iter().enumerate() {
            if difference.files.iter().any(|f| f.package.is_none()) {
                let roots: Vec<&Path> = layers.iter().map(|layer| trees.root(layer)).collect();
                name_owners(&mut difference.files, &roots, &work.path.join(format!("owners-{number}")))?;
            }
        }
    }
    let differs = |label: &str| match label.strip_prefix("layer ") {
        Some(layer) => difference.files.iter().any(|f| f.layer == layer),
        None => !difference.initramfs.is_empty(),
    };
    // Another epoch is another packing, and told in the config.
    let differs = |label: &str| config_a.epoch != config_b.epoch || differs(label);
    difference.layers = diff::blobs(&image_a, &image_b, &differs);
    Ok(difference)
}

/// The layers of both images, each mounted and listed once.
struct Trees<'a> {
    work: &'a Work,
    mounted: BTreeMap<Digest, (Mounted, Rc<Listing>)>,
}

impl Trees<'_> {
    fn list(&mut self, store: &Store, image: &Image, epoch: u64) -> Result<Vec<Layer>> {
        image.layers().iter().map(|layer| self.one(store, layer, epoch)).collect()
    }

    fn one(&mut self, store: &Store, layer: &Descriptor, epoch: u64) -> Result<Layer> {
        let (name, digest) = (layer.label(), layer.digest);
        if !self.mounted.contains_key(&digest) {
            let at = self.work.path.join(digest.short());
            let mount = chroot::show_layer(&store.blob_path(&digest), &at)?;
            let listing = Rc::new(list(&at, epoch)?);
            self.mounted.insert(digest, (mount, listing));
        }
        let name = name.strip_prefix("layer ").unwrap_or(&name).to_string();
        Ok(Layer { name, digest, files: self.mounted[&digest].1.clone() })
    }

    fn root(&self, layer: &Layer) -> &Path {
        self.mounted[&layer.digest].0.path()
    }
}

/// Everything in a mounted layer.
fn list(root: &Path, epoch: u64) -> Result<Listing> {
    squash::each(root, |file| {
        let entry = look(file, epoch)?;
        let is_folder = entry.kind == Kind::Dir;
        Ok((entry, is_folder))
    })
}

fn look(file: &Path, epoch: u64) -> Result<Entry> {
    let meta = fs::symlink_metadata(file).with_context(|| format!("looking at {}", file.display()))?;
    let kind = meta.file_type();
    let device = (nix::sys::stat::major(meta.rdev()) as u32, nix::sys::stat::minor(meta.rdev()) as u32);
    let kind = if kind.is_dir() {
        Kind::Dir
    } else if kind.is_file() {
        Kind::File(meta.len())
    } else if kind.is_symlink() {
        let target = fs::read_link(file).with_context(|| format!("reading link {}", file.display()))?;
        Kind::Symlink(target.to_string_lossy().into_owned())
    } else if kind.is_char_device() {
        Kind::Char(device.0, device.1)
    } else if kind.is_block_device() {
        Kind::Block(device.0, device.1)
    } else {
        Kind::Other
    };
    let xattrs = if matches!(kind, Kind::Dir | Kind::File(_)) { squash::xattrs(file)? } else { Vec::new() };
    Ok(Entry {
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: meta.mtime(),
        at_epoch: meta.mtime() == epoch as i64,
        links: meta.nlink(),
        kind,
        xattrs,
    })
}

/// Where the contents of two files differ.
fn content(a: &Path, b: &Path) -> Result<Option<diff::Field>> {
    let size = |file: &Path| -> Result<u64> {
        Ok(fs::metadata(file).with_context(|| format!("looking at {}", file.display()))?.len())
    };
    if size(a)?.max(size(b)?) <= EXCERPT_FILE_MAX_BYTES {
        let read = |file: &Path| files::read_bounded(file, EXCERPT_FILE_MAX_BYTES);
        return Ok(diff::excerpt(&read(a)?, &read(b)?));
    }
    let open = |file: &Path| fs::File::open(file).with_context(|| format!("opening {}", file.display()));
    let (mut from_a, mut from_b) = (open(a)?, open(b)?);
    let (mut piece_a, mut piece_b) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    let mut at = 0;
    loop {
        let n = fill(&mut from_a, &mut piece_a).with_context(|| format!("reading {}", a.display()))?;
        let m = fill(&mut from_b, &mut piece_b).with_context(|| format!("reading {}", b.display()))?;
        if piece_a[..n] != piece_b[..m] {
            let same = piece_a[..n].iter().zip(&piece_b[..m]).take_while(|(x, y)| x == y).count();
            return Ok(Some(diff::byte(at + same as u64)));
        }
        if n < BUFFER_BYTES {
            return Ok(None);
        }
        at += n as u64;
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// The members that two initramfs, each with its image's epoch, differ in.
fn initramfs(a: (&Path, u64), b: (&Path, u64)) -> Result<Vec<File>> {
    let read = |(file, epoch): (&Path, u64)| {
        members(file, epoch).with_context(|| format!("reading initramfs {}", file.display()))
    };
    let (a, b) = (read(a)?, read(b)?);
    let layer = |members: &BTreeMap<String, (Entry, Vec<u8>)>, digest: &[u8]| {
        let files = members.iter().map(|(path, (entry, _))| (path.clone(), entry.clone())).collect();
        [Layer { name: "initramfs".into(), digest: Digest::of(digest), files: Rc::new(files) }]
    };
    diff::files(&layer(&a, b"first"), &layer(&b, b"second"), &mut |path, _, _| {
        Ok(diff::excerpt(&a[path].1, &b[path].1))
    })
}

/// The members of a newc archive that zstd or gzip packed.
fn members(file: &Path, epoch: u64) -> Result<BTreeMap<String, (Entry, Vec<u8>)>> {
    const FILE_TYPE: u32 = 0o170000;
    let packed = files::read_bounded(file, INITRAMFS_MAX_BYTES)?;
    let mut reader: Box<dyn Read> = match packed.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::GzDecoder::new(packed.as_slice())),
        _ => Box::new(zstd::stream::read::Decoder::new(packed.as_slice())?),
    };
    let mut archive = Vec::new();
    reader.by_ref().take(INITRAMFS_MAX_BYTES).read_to_end(&mut archive)?;
    let mut rest = archive.as_slice();
    let mut found = BTreeMap::new();
    loop {
        let mut member = cpio::newc::Reader::new(rest)?;
        let head = member.entry().clone();
        if head.is_trailer() {
            return Ok(found);
        }
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes)?;
        rest = member.finish()?;
        let kind = match head.mode() & FILE_TYPE {
            0o040000 => Kind::Dir,
            0o120000 => Kind::Symlink(String::from_utf8_lossy(&bytes).into_owned()),
            0o020000 => Kind::Char(head.rdev_major(), head.rdev_minor()),
            _ => Kind::File(bytes.len() as u64),
        };
        let entry = Entry {
            kind,
            mode: head.mode() & 0o7777,
            uid: head.uid(),
            gid: head.gid(),
            mtime: head.mtime().into(),
            at_epoch: u64::from(head.mtime()) == epoch,
            links: 1,
            xattrs: Vec::new(),
        };
        found.insert(head.name().to_string(), (entry, bytes));
    }
}

/// (package, text).
type Notes = Vec<(String, String)>;

/// Names the packages of files that have none yet, by the database in a stack of layers: the one that
/// owns the file, else one whose scripts name it. Where it cannot be told nothing is said.
fn name_owners(found: &mut [File], layers: &[&Path], scratch: &Path) -> Result<()> {
    let is_there = |folder: &str| layers.iter().any(|layer| layer.join(folder).is_dir());
    let (lists, scripts) = if is_there(DPKG) {
        (dpkg_notes(layers, &["list"])?, dpkg_notes(layers, &["preinst", "postinst", "triggers"])?)
    } else if is_there(RPM) {
        rpm(layers, scratch)?
    } else {
        return Ok(());
    };
    for file in found.iter_mut().filter(|f| f.package.is_none()) {
        file.package = diff::dpkg_note(&file.path).map(String::from);
    }
    diff::own(found, &lists, &scripts);
    Ok(())
}

/// dpkg's notes with these endings.
fn dpkg_notes(layers: &[&Path], endings: &[&str]) -> Result<Notes> {
    let mut notes = Vec::new();
    for folder in layers.iter().map(|layer| layer.join(DPKG)).filter(|folder| folder.is_dir()) {
        for entry in fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))?.flatten() {
            let path = format!("/{DPKG}/{}", entry.file_name().to_string_lossy());
            let (Some(package), Some((_, ending))) = (diff::dpkg_note(&path), path.rsplit_once('.')) else { continue };
            if endings.contains(&ending) && entry.file_type().is_ok_and(|t| t.is_file()) {
                let text = files::read_bounded(&entry.path(), NOTE_MAX_BYTES)?;
                notes.push((package.to_string(), String::from_utf8_lossy(&text).into_owned()));
            }
        }
    }
    notes.sort();
    Ok(notes)
}

/// What the image's own rpm says of all its packages: their files, their scriptlets. Nothing
/// where it cannot run.
fn rpm(layers: &[&Path], scratch: &Path) -> Result<(Notes, Notes)> {
    let root = chroot::mount_writable(layers, &scratch.join("upper"), scratch, &scratch.join("root"))?;
    let chroot = Chroot::new(root.path(), 0)?;
    let ask = |format: &str| {
        let mut line = chroot.inside();
        line.env("LC_ALL", "C").args(["rpm", "-qa", "--queryformat", format]);
        let output = command::run(&mut line, b"", QUERY_TIMEOUT)?;
        anyhow::Ok(query::records(&output.text()))
    };
    Ok((ask(query::FILES_FORMAT)?, ask(query::SCRIPTS_FORMAT)?))
}
