//! From a tree to a squashfs: walked in a fixed order, normalised, streamed as tar to mksquashfs.
//! The same tree gives the same bytes on any day, in any folder, with any number of processors.

use super::normalise::{self, Fate};
use super::tree::{Index, Kind, Node};
use super::users;
use crate::recipe::{Compression, CompressionKind};
use crate::sys::command;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Bigger blocks compress better and are read whole; nodes hold layers in memory anyway.
const BLOCK: &str = "1M";
/// mksquashfs would take a quarter of the machine.
const MEMORY: &str = "1G";
const VERSION_TIMEOUT: Duration = Duration::from_secs(30);
/// One file of /etc that is edited on its way.
const EDITED_MAX_BYTES: u64 = 16 << 20;

/// One entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Below the root, without a leading slash.
    pub path: String,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Unix seconds.
    pub mtime: u64,
    pub xattrs: Vec<(String, Vec<u8>)>,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Dir,
    /// A file on disk and its length.
    File(PathBuf, u64),
    Bytes(Vec<u8>),
    Symlink(String),
    /// Another name of an item that came before.
    Hardlink(String),
    /// major, minor; 0, 0 is overlayfs's mark for "removed here".
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

impl Item {
    fn bytes(&self) -> u64 {
        match &self.body {
            Body::File(_, size) => *size,
            Body::Bytes(bytes) => bytes.len() as u64,
            _ => 0,
        }
    }
}

/// Bytes of all files.
pub fn unpacked_bytes(items: &[Item]) -> u64 {
    items.iter().map(Item::bytes).sum()
}

/// The normalised content of a stage's upper folder; `below` is the tree of the stages before it.
/// `window`: first and last second of the installation by this machine's clock.
pub fn walk(root: &Path, below: Option<&Path>, window: (i64, i64), epoch: u64) -> Result<Vec<Item>> {
    let mut walk = Walk { root, below, window, epoch, items: Vec::new(), seen: BTreeMap::new() };
    walk.folder("", false)?;
    Ok(walk.items)
}

struct Walk<'a> {
    root: &'a Path,
    below: Option<&'a Path>,
    window: (i64, i64),
    epoch: u64,
    items: Vec<Item>,
    /// (device, inode) -> first path, of files with several names.
    seen: BTreeMap<(u64, u64), String>,
}

impl Walk<'_> {
    /// `hides`: nothing of the folder below it is to be seen. overlayfs has a mark for that, which a
    /// user namespace can neither read nor set, and which some kernels also set where nothing is
    /// hidden: a layer has a whiteout for each thing that is.
    fn folder(&mut self, path: &str, hides: bool) -> Result<()> {
        let here = names(&self.root.join(path))?;
        let below = self.below.map(|below| below.join(path)).filter(|b| hides && is_folder(b));
        let mut all = here.clone();
        all.extend(below.map(|b| names(&b)).transpose()?.unwrap_or_default());
        for name in all {
            let there = here.contains(&name);
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            if there { self.one(path, hides)? } else { self.whiteout(path) }
        }
        Ok(())
    }

    fn whiteout(&mut self, path: String) {
        if normalise::fate(&path) == Fate::Keep {
            let (body, mtime) = (Body::Char(0, 0), self.epoch);
            self.items.push(Item { path, mode: 0, uid: 0, gid: 0, mtime, xattrs: Vec::new(), body });
        }
    }

    fn one(&mut self, path: String, hides: bool) -> Result<()> {
        let fate = normalise::fate(&path);
        if fate == Fate::Drop {
            return Ok(());
        }
        let file = self.root.join(&path);
        let meta = fs::symlink_metadata(&file).with_context(|| format!("looking at {}", file.display()))?;
        let kind = meta.file_type();
        if kind.is_socket() || (fate == Fate::Folders && !kind.is_dir()) {
            return Ok(());
        }
        let device = (nix::sys::stat::major(meta.rdev()) as u32, nix::sys::stat::minor(meta.rdev()) as u32);
        let body = if kind.is_dir() {
            Body::Dir
        } else if kind.is_symlink() {
            let target = fs::read_link(&file).with_context(|| format!("reading link {}", file.display()))?;
            Body::Symlink(target.to_str().with_context(|| format!("reading link {}", file.display()))?.to_string())
        } else if kind.is_char_device() {
            Body::Char(device.0, device.1)
        } else if kind.is_block_device() {
            Body::Block(device.0, device.1)
        } else if kind.is_fifo() {
            Body::Fifo
        } else {
            self.file(&path, file.clone(), &meta)?
        };
        let recurse = body == Body::Dir && fate != Fate::Empty;
        let hides = hides || (recurse && is_opaque(&file));
        self.items.push(Item {
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: normalise::mtime(meta.mtime(), self.window, self.epoch),
            xattrs: if kind.is_symlink() { Vec::new() } else { xattrs(&file)? },
            path: path.clone(),
            body,
        });
        if recurse { self.folder(&path, hides) } else { Ok(()) }
    }

    fn file(&mut self, path: &str, file: PathBuf, meta: &fs::Metadata) -> Result<Body> {
        if meta.nlink() > 1 {
            if let Some(first) = self.seen.get(&(meta.dev(), meta.ino())) {
                return Ok(Body::Hardlink(first.clone()));
            }
            self.seen.insert((meta.dev(), meta.ino()), path.to_string());
        }
        if matches!(path, "etc/shadow") {
            let text = String::from_utf8(crate::sys::files::read_bounded(&file, EDITED_MAX_BYTES)?)?;
            return Ok(Body::Bytes(users::settled_shadow(&text, self.epoch).into_bytes()));
        }
        Ok(Body::File(file, meta.len()))
    }
}

fn names(dir: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        match entry.with_context(|| format!("listing {}", dir.display()))?.file_name().into_string() {
            Ok(name) => names.insert(name),
            Err(name) => bail!("{} holds a file whose name is not UTF-8: {name:?}", dir.display()),
        };
    }
    Ok(names)
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.is_dir())
}

/// overlayfs's mark of a folder that hides the one below it, made by root or in a user namespace.
fn is_opaque(dir: &Path) -> bool {
    ["trusted.overlay.opaque", "user.overlay.opaque"].iter().any(|mark| xattr(dir, mark).is_ok_and(|v| v == b"y"))
}

/// What stands where in a mounted tree.
pub fn index(root: &Path) -> Result<Index> {
    each(root, |file| {
        let node = node(file)?;
        let is_folder = node.kind == Kind::Dir;
        Ok((node, is_folder))
    })
}

/// Everything below a folder by its path: `look` tells what it is, and whether that is a folder.
pub fn each<T>(root: &Path, look: impl Fn(&Path) -> Result<(T, bool)>) -> Result<BTreeMap<String, T>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![String::new()];
    while let Some(folder) = pending.pop() {
        let dir = root.join(&folder);
        for entry in fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))? {
            let entry = entry.with_context(|| format!("listing {}", dir.display()))?;
            let Ok(name) = entry.file_name().into_string() else {
                bail!("{} holds a file whose name is not UTF-8: {:?}", dir.display(), entry.file_name());
            };
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            let (what, is_folder) = look(&entry.path())?;
            if is_folder {
                pending.push(path.clone());
            }
            found.insert(path, what);
        }
    }
    Ok(found)
}

fn node(file: &Path) -> Result<Node> {
    let meta = fs::symlink_metadata(file).with_context(|| format!("looking at {}", file.display()))?;
    let kind = meta.file_type();
    let kind = if kind.is_dir() {
        Kind::Dir
    } else if kind.is_file() {
        Kind::File(meta.len())
    } else if kind.is_symlink() {
        let target = fs::read_link(file).with_context(|| format!("reading link {}", file.display()))?;
        Kind::Symlink(target.to_string_lossy().into_owned())
    } else if kind.is_char_device() || kind.is_block_device() {
        Kind::Device
    } else {
        Kind::Other
    };
    let program = matches!(kind, Kind::File(_)) && meta.mode() & 0o111 != 0;
    let capable = program && xattr(file, "security.capability").is_ok();
    Ok(Node { kind, mode: meta.mode() & 0o7777, uid: meta.uid(), gid: meta.gid(), capable })
}

/// The extended attributes that a layer keeps, sorted.
pub fn xattrs(file: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for name in xattr_names(file).with_context(|| format!("listing attributes of {}", file.display()))? {
        if normalise::keeps_xattr(&name) {
            let value =
                xattr(file, &name).with_context(|| format!("reading attribute {name} of {}", file.display()))?;
            found.push((name, value));
        }
    }
    found.sort();
    Ok(found)
}

/// The kernel's bounds (limits.h: XATTR_LIST_MAX, XATTR_SIZE_MAX).
const XATTR_MAX_BYTES: usize = 65536;

fn c_path(path: &Path) -> std::io::Result<std::ffi::CString> {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(std::io::Error::other)
}

fn xattr_names(file: &Path) -> std::io::Result<Vec<String>> {
    let (path, mut buffer) = (c_path(file)?, vec![0u8; XATTR_MAX_BYTES]);
    // SAFETY: path ends with a zero, buffer is as long as said.
    let n = unsafe { libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    let n = match usize::try_from(n).map_err(|_| std::io::Error::last_os_error()) {
        // What a squashfs answers in which nothing has any.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        n => n?,
    };
    let names = buffer[..n].split(|b| *b == 0).filter(|n| !n.is_empty());
    Ok(names.map(|n| String::from_utf8_lossy(n).into_owned()).collect())
}

fn xattr(file: &Path, name: &str) -> std::io::Result<Vec<u8>> {
    let (path, mut buffer) = (c_path(file)?, vec![0u8; XATTR_MAX_BYTES]);
    let name = std::ffi::CString::new(name).map_err(std::io::Error::other)?;
    // SAFETY: both strings end with a zero, buffer is as long as said.
    let n = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    let n = usize::try_from(n).map_err(|_| std::io::Error::last_os_error())?;
    buffer.truncate(n);
    Ok(buffer)
}

/// The version line of the squashfs tool: it decides about a layer's bytes.
pub fn tool_version() -> Result<String> {
    let output = command::run(Command::new("mksquashfs").arg("-version"), b"", VERSION_TIMEOUT)
        .context("asking mksquashfs for its version (Debian: apt-get install squashfs-tools)")?;
    let text = output.text();
    let line = text.lines().next().unwrap_or_default().trim();
    if !line.starts_with("mksquashfs version") {
        bail!("mksquashfs answers {line:?} when asked for its version");
    }
    Ok(line.to_string())
}

/// Packs `items` (parents before children) into the squashfs file `to`.
pub fn pack(items: &[Item], compression: &Compression, epoch: u64, to: &Path) -> Result<()> {
    let mut line = Command::new("mksquashfs");
    line.arg("-").arg(to).args(["-tar", "-noappend", "-no-progress", "-quiet", "-exit-on-error"]);
    line.args(["-b", BLOCK, "-mem", MEMORY, "-root-mode", "0755", "-root-uid", "0", "-root-gid", "0"]);
    // Plain inodes: the root's time is settled afterwards.
    line.arg("-noI").arg("-mkfs-time").arg(epoch.to_string());
    let level = compression.level.to_string();
    match compression.kind {
        CompressionKind::Zstd => line.args(["-comp", "zstd", "-Xcompression-level", &level]),
        CompressionKind::Gzip => line.args(["-comp", "gzip", "-Xcompression-level", &level]),
        CompressionKind::Xz => line.args(["-comp", "xz"]),
    };
    line.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    line.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    command::die_with_parent(&mut line);
    let mut child = line.spawn().with_context(|| format!("starting {}", command::shown(&line)))?;
    let (stdin, mut stderr) = (child.stdin.take(), child.stderr.take());
    let complaints = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stderr.as_mut().map(|e| e.read_to_string(&mut text));
        text
    });
    let written = match stdin {
        Some(pipe) => write_tar(items, BufWriter::with_capacity(1 << 20, pipe)),
        None => Ok(()),
    };
    let status = child.wait().context("waiting for mksquashfs")?;
    let complaints = complaints.join().unwrap_or_default();
    if !status.success() {
        bail!("{status} from: {}\n{}", command::shown(&line), complaints.trim());
    }
    written.context("writing a tar stream to mksquashfs")?;
    settle_root_time(to, epoch)
}

/// mksquashfs 4.5 gives the root of a tar stream the time of its clock, whatever `-root-time` says;
/// this writes the epoch over it. Squashfs 4.0: the superblock names the inode table (byte 64) and
/// the root's inode (byte 32: block above, offset in the low 16 bits); plain metadata blocks hold
/// 8 KiB behind a 2-byte head; a folder's time stands 8 bytes into its inode.
fn settle_root_time(file: &Path, epoch: u64) -> Result<()> {
    const HEAD: u64 = 2;
    const BLOCK_BYTES: u64 = 8192;
    /// Of the head: this block is not compressed.
    const PLAIN: u16 = 0x8000;
    let settling = || format!("settling the time of the root of {}", file.display());
    let open = File::options().read(true).write(true).open(file).with_context(settling)?;
    let number = |at: u64| -> Result<u64> {
        let mut bytes = [0; 8];
        open.read_exact_at(&mut bytes, at).with_context(settling)?;
        Ok(u64::from_le_bytes(bytes))
    };
    let (root, table) = (number(32)?, number(64)?);
    let (block, offset) = (table + (root >> 16), root & 0xffff);
    for (i, byte) in (epoch as u32).to_le_bytes().into_iter().enumerate() {
        let at = offset + 8 + i as u64;
        let block = block + at / BLOCK_BYTES * (HEAD + BLOCK_BYTES);
        if number(block)? as u16 & PLAIN == 0 {
            bail!("{}: its inodes are compressed", settling());
        }
        open.write_all_at(&[byte], block + HEAD + at % BLOCK_BYTES).with_context(settling)?;
    }
    Ok(())
}

/// Writes `items` as a tar stream: ustar headers, pax records for what they cannot hold.
pub fn write_tar(items: &[Item], to: impl Write) -> Result<()> {
    let mut tar = tar::Builder::new(to);
    for item in items {
        append(&mut tar, item).with_context(|| format!("writing {}", item.path))?;
    }
    tar.into_inner()?.flush()?;
    Ok(())
}

fn append<W: Write>(tar: &mut tar::Builder<W>, item: &Item) -> Result<()> {
    use tar::EntryType;
    let mut pax: Vec<(String, Vec<u8>)> = Vec::new();
    let mut header = tar::Header::new_ustar();
    header.set_mode(item.mode);
    header.set_uid(item.uid.into());
    header.set_gid(item.gid.into());
    header.set_mtime(item.mtime);
    header.set_size(item.bytes());
    let name = if item.body == Body::Dir { format!("{}/", item.path) } else { item.path.clone() };
    put(&mut header.as_mut_bytes()[..100], &name, "path", &mut pax);
    let device = |header: &mut tar::Header, major, minor| -> Result<()> {
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
        Ok(())
    };
    let kind = match &item.body {
        Body::Dir => EntryType::Directory,
        Body::File(..) | Body::Bytes(_) => EntryType::Regular,
        Body::Symlink(target) => {
            put(&mut header.as_mut_bytes()[157..257], target, "linkpath", &mut pax);
            EntryType::Symlink
        }
        Body::Hardlink(first) => {
            put(&mut header.as_mut_bytes()[157..257], first, "linkpath", &mut pax);
            EntryType::Link
        }
        Body::Char(major, minor) => {
            device(&mut header, *major, *minor)?;
            EntryType::Char
        }
        Body::Block(major, minor) => {
            device(&mut header, *major, *minor)?;
            EntryType::Block
        }
        Body::Fifo => EntryType::Fifo,
    };
    header.set_entry_type(kind);
    pax.extend(item.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone())));
    if !pax.is_empty() {
        tar.append_pax_extensions(pax.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
    }
    header.set_cksum();
    match &item.body {
        Body::File(path, size) => {
            let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
            tar.append(&header, Exactly { from: file, left: *size })?;
        }
        Body::Bytes(bytes) => tar.append(&header, bytes.as_slice())?,
        _ => tar.append(&header, std::io::empty())?,
    }
    Ok(())
}

/// Puts a text into a field of a header, or, when it does not fit, into a pax record.
fn put(field: &mut [u8], text: &str, key: &str, pax: &mut Vec<(String, Vec<u8>)>) {
    let mut end = text.len().min(field.len());
    if text.len() > field.len() {
        pax.push((key.to_string(), text.as_bytes().to_vec()));
        end = field.len();
    }
    field[..end].copy_from_slice(&text.as_bytes()[..end]);
}

/// A file that must be as long as it was when it was looked at: else the stream would be torn.
struct Exactly<R> {
    from: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let room = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.from.read(&mut buffer[..room])?;
        if n == 0 && room > 0 {
            return Err(std::io::Error::other("the file became shorter while it was read"));
        }
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const EPOCH: u64 = 1_700_000_000;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for folder in ["etc", "usr/bin", "var/log/x", "deep"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("usr/bin/a"), "program").unwrap();
        fs::set_permissions(root.join("usr/bin/a"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::hard_link(root.join("usr/bin/a"), root.join("usr/bin/b")).unwrap();
        symlink("../usr/bin/a", root.join("etc/link")).unwrap();
        fs::write(root.join("etc/machine-id"), "x").unwrap();
        fs::write(root.join("etc/shadow"), "root:*:20000:::::\n").unwrap();
        fs::write(root.join("deep").join("n".repeat(150)), "long").unwrap();
        dir
    }

    fn now() -> i64 {
        (crate::sys::clock::now_ms() / 1000) as i64
    }

    #[test]
    fn a_tree_is_normalised() {
        let start = now();
        let dir = tree();
        let items = walk(dir.path(), None, (start - 1, now() + 1), EPOCH).unwrap();
        let paths: Vec<&str> = items.iter().map(|i| i.path.as_str()).collect();
        let long = format!("deep/{}", "n".repeat(150));
        let want = [
            "deep",
            &long,
            "etc",
            "etc/link",
            "etc/shadow",
            "usr",
            "usr/bin",
            "usr/bin/a",
            "usr/bin/b",
            "var",
            "var/log",
            "var/log/x",
        ];
        assert_eq!(paths, want);
        assert!(items.iter().all(|i| i.mtime == EPOCH));
        assert_eq!(items[7].mode, 0o4755);
        assert_eq!(items[8].body, Body::Hardlink("usr/bin/a".into()));
        assert_eq!(items[4].body, Body::Bytes(b"root:*:19675:::::\n".to_vec()));
    }

    /// As root's overlayfs marks it or as a user namespace's, which everybody may set.
    #[test]
    fn a_folder_that_hides_another_becomes_whiteouts_of_what_it_hides() {
        let (upper, below) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (root, files) in [
            (below.path(), &["a/gone", "a/kept", "a/deep/gone", "a/file/x", "b/kept", "var/log/a/x"][..]),
            (upper.path(), &["a/kept", "a/deep/new", "a/new/x", "a/file", "b/new", "var/log/b"]),
        ] {
            for file in files {
                fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
                fs::write(root.join(file), "").unwrap();
            }
        }
        for folder in ["a", "a/new", "var/log"] {
            let path = c_path(&upper.path().join(folder)).unwrap();
            // SAFETY: both strings end with a zero, the value is as long as said.
            let set =
                unsafe { libc::setxattr(path.as_ptr(), c"user.overlay.opaque".as_ptr(), b"y".as_ptr().cast(), 1, 0) };
            assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        }
        let items = walk(upper.path(), Some(below.path()), (0, 0), EPOCH).unwrap();
        let said = |items: &[Item]| -> Vec<String> {
            items.iter().map(|i| format!("{}{}", if i.body == Body::Char(0, 0) { "-" } else { "" }, i.path)).collect()
        };
        let want = ["a", "a/deep", "-a/deep/gone", "a/deep/new", "a/file", "-a/gone", "a/kept", "a/new", "a/new/x"];
        assert_eq!(said(&items), [&want[..], &["b", "b/new", "var", "var/log"]].concat());
        assert!(items.iter().all(|i| i.xattrs.is_empty()), "no mark is kept");
        // Nothing below: nothing to hide.
        assert!(walk(upper.path(), None, (0, 0), EPOCH).unwrap().iter().all(|i| i.body != Body::Char(0, 0)));
    }

    #[test]
    fn a_tar_stream_says_all_and_is_the_same_for_a_copy() {
        let stream = || {
            let start = now();
            let dir = tree();
            let mut items = walk(dir.path(), None, (start - 1, now() + 1), EPOCH).unwrap();
            items[6].xattrs.push(("user.note".into(), b"y".to_vec()));
            let mut out = Vec::new();
            write_tar(&items, &mut out).unwrap();
            out
        };
        let bytes = stream();
        assert_eq!(bytes, stream());
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut found = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let marks = entry.pax_extensions().unwrap().into_iter().flatten().count();
            let mode = entry.header().mode().unwrap();
            let mut text = String::new();
            let path = entry.path().unwrap().display().to_string();
            entry.read_to_string(&mut text).unwrap();
            found.insert(path, (mode, marks, text));
        }
        assert_eq!(found["usr/bin/a"], (0o4755, 0, "program".into()));
        assert_eq!(found["usr/bin/"].1, 1);
        assert_eq!(found[&format!("deep/{}", "n".repeat(150))].2, "long");
    }

    /// A layer, mounted nowhere: unsquashfs tells what is in it.
    #[test]
    fn a_squashfs_is_the_same_bytes_and_its_root_has_the_epochs_time() {
        let pack_one = || {
            let start = now();
            let dir = tree();
            // Many inodes: the root's comes last and lies in a later metadata block.
            for i in 0..600 {
                fs::write(dir.path().join(format!("deep/{i}")), format!("{i}")).unwrap();
            }
            let items = walk(dir.path(), None, (start - 1, now() + 1), EPOCH).unwrap();
            let out = dir.path().join("out");
            pack(&items, &Compression { kind: CompressionKind::Zstd, level: 3 }, EPOCH, &out).unwrap();
            let listing = Command::new("unsquashfs").args(["-UTC", "-lln"]).arg(&out).output().unwrap();
            (fs::read(&out).unwrap(), String::from_utf8(listing.stdout).unwrap())
        };
        let (bytes, listing) = pack_one();
        std::thread::sleep(Duration::from_millis(1100));
        assert!(bytes == pack_one().0, "two packings differ");
        let root = listing.lines().find(|l| l.ends_with("squashfs-root")).unwrap();
        assert!(root.starts_with("drwxr-xr-x 0/0") && root.contains("2023-11-14 22:13"), "{root}");
        assert!(listing.contains("-rwsr-xr-x") && listing.lines().count() > 600, "{listing}");
    }
}
