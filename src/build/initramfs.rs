//! The initramfs: kiln-node as `/init`, kernel modules with firmware, and the keys whose images it
//! boots. Made from files of the built tree; the same tree gives the same bytes.

use super::{drivers, modinfo};
use crate::image::kmod::Index;
use crate::sys::{command, files};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Folder of the keys (base64, one a line) that may sign what this initramfs boots.
pub const BUILDERS_FILE: &str = "etc/kiln/builders";
/// kiln's release that made it.
pub const VERSION_FILE: &str = "etc/kiln/version";
/// One module or one firmware file.
const PART_MAX_BYTES: u64 = 256 << 20;
/// Indexes of a distribution's kernel are some 5 MB.
const INDEX_MAX_BYTES: u64 = 64 << 20;
/// Cheap, and within a few percent of the best for modules.
const ZSTD_LEVEL: i32 = 10;
const XZ_TIMEOUT: Duration = Duration::from_secs(120);

/// What an initramfs is made of.
pub struct Parts<'a> {
    /// The built tree.
    pub root: &'a Path,
    /// `uname -r` of its kernel.
    pub kernel: &'a str,
    /// The recipe's list of modules.
    pub modules: Option<&'a [String]>,
    /// The static kiln-node.
    pub node: &'a [u8],
    pub builders: &'a [String],
    pub kiln: &'a str,
    pub epoch: u64,
}

/// A made initramfs.
pub struct Made {
    /// Compressed as the kernel can read it.
    pub bytes: Vec<u8>,
    /// Bytes once unpacked by the kernel.
    pub unpacked: u64,
    /// Firmware that modules name and the tree lacks, one sentence a driver.
    pub warnings: Vec<String>,
}

/// Path -> content; `None` is a folder.
type Files = BTreeMap<String, (u32, Option<Vec<u8>>)>;

/// Makes it.
pub fn make(parts: &Parts) -> Result<Made> {
    let mut files = Files::new();
    for folder in ["dev", "etc", "proc", "root", "run", "sys", "tmp", "usr"] {
        files.insert(folder.into(), (0o755, None));
    }
    put(&mut files, "init", 0o755, parts.node.to_vec());
    let builders: String = parts.builders.iter().map(|b| format!("{b}\n")).collect();
    put(&mut files, BUILDERS_FILE, 0o644, builders.into_bytes());
    put(&mut files, VERSION_FILE, 0o644, format!("{}\n", parts.kiln).into_bytes());
    let warnings = add_modules(&mut files, parts)?;
    let archive = archive(&files, parts.epoch)?;
    let unpacked = archive.len() as u64;
    let config = parts.root.join(format!("boot/config-{}", parts.kernel));
    let config = files::read_bounded(&config, INDEX_MAX_BYTES).unwrap_or_default();
    let bytes = if String::from_utf8_lossy(&config).lines().any(|l| l == "CONFIG_RD_ZSTD=y") {
        zstd::bulk::compress(&archive, ZSTD_LEVEL).context("compressing the initramfs")?
    } else {
        gzip(&archive).context("compressing the initramfs")?
    };
    Ok(Made { bytes, unpacked, warnings })
}

fn put(files: &mut Files, path: &str, mode: u32, bytes: Vec<u8>) {
    let mut at = 0;
    while let Some(slash) = path[at..].find('/') {
        files.entry(path[..at + slash].to_string()).or_insert((0o755, None));
        at += slash + 1;
    }
    files.insert(path.to_string(), (mode, Some(bytes)));
}

/// Adds the chosen modules, depmod's files and firmware; answers what firmware is missing.
fn add_modules(files: &mut Files, parts: &Parts) -> Result<Vec<String>> {
    let folder = parts.root.join("usr/lib/modules").join(parts.kernel);
    let text = |name: &str| -> Result<String> {
        let bytes = files::read_bounded(&folder.join(name), INDEX_MAX_BYTES)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let (softdep, builtin) = (text("modules.softdep")?, text("modules.builtin")?);
    let index = Index::parse(&text("modules.dep")?, &text("modules.alias")?, &softdep, &builtin);
    let chosen = drivers::choose(&index, parts.modules).map_err(anyhow::Error::msg).context("choosing modules")?;
    let below = format!("usr/lib/modules/{}", parts.kernel);
    // The kernel and tools look below /lib.
    for (name, text) in drivers::trimmed(&index, &chosen, &softdep, &builtin) {
        put(files, &format!("{below}/{name}"), 0o644, text.into_bytes());
    }
    let mut missing: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for name in &chosen {
        let path = index.paths.get(name).with_context(|| format!("finding module {name}"))?;
        let module = unpacked(&folder.join(path)).with_context(|| format!("reading module {name}"))?;
        for firmware in modinfo::values(&module, "firmware") {
            match find_firmware(parts.root, &firmware, parts.kernel)? {
                Some(bytes) => put(files, &format!("usr/lib/firmware/{firmware}"), 0o644, bytes),
                None => {
                    missing.entry(name).or_default().insert(firmware);
                }
            }
        }
        put(files, &format!("{below}/{}", drivers::plain(path)), 0o644, module);
    }
    let words = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(", ");
    Ok(missing.into_iter().map(|(driver, names)| format!("driver {driver}: no firmware {}", words(names))).collect())
}

/// A firmware file of the tree, unpacked, from the kernel's own search path.
fn find_firmware(root: &Path, name: &str, kernel: &str) -> Result<Option<Vec<u8>>> {
    if name.split('/').any(|part| part == "..") || name.starts_with('/') {
        return Ok(None);
    }
    let folders =
        [format!("usr/lib/firmware/updates/{kernel}"), format!("usr/lib/firmware/{kernel}"), "usr/lib/firmware".into()];
    for folder in &folders {
        for ending in ["", ".xz", ".zst"] {
            let file = root.join(folder).join(format!("{name}{ending}"));
            if file.is_file() {
                return Ok(Some(unpacked(&file).with_context(|| format!("reading firmware {name}"))?));
            }
        }
    }
    Ok(None)
}

/// A file's content, decompressed by its ending.
fn unpacked(file: &Path) -> Result<Vec<u8>> {
    let bytes = files::read_bounded(file, PART_MAX_BYTES)?;
    let mut out = Vec::new();
    match file.extension().and_then(|e| e.to_str()) {
        Some("xz") => {
            let mut xz = Command::new("xz");
            return Ok(command::run_ok(xz.args(["--decompress", "--stdout"]), &bytes, XZ_TIMEOUT)?.stdout);
        }
        Some("zst") => zstd::stream::copy_decode(bytes.as_slice(), &mut out)?,
        Some("gz") => {
            flate2::read::GzDecoder::new(bytes.as_slice()).take(PART_MAX_BYTES).read_to_end(&mut out)?;
        }
        _ => return Ok(bytes),
    }
    Ok(out)
}

/// The cpio archive (newc). `lib` is a link to `usr/lib`, as in the trees that it boots.
fn archive(files: &Files, epoch: u64) -> Result<Vec<u8>> {
    /// File type bits of a mode (stat(2)).
    const DIR: u32 = 0o040000;
    const FILE: u32 = 0o100000;
    const LINK: u32 = 0o120000;
    const DEVICE: u32 = 0o020000;
    let mut out = Vec::new();
    let mut inode = 0;
    let mut entry = |name: &str, mode: u32, bytes: &[u8], device: Option<(u32, u32)>| -> Result<()> {
        inode += 1;
        let size = u32::try_from(bytes.len()).with_context(|| format!("adding {name}, larger than 4 GiB,"))?;
        let links = if mode & DIR == DIR && mode & FILE != FILE { 2 } else { 1 };
        let (major, minor) = device.unwrap_or((0, 0));
        let builder = cpio::newc::Builder::new(name).ino(inode).mode(mode).nlink(links).mtime(epoch as u32);
        let mut writer = builder.rdev_major(major).rdev_minor(minor).write(&mut out, size);
        writer.write_all(bytes)?;
        writer.finish()?;
        Ok(())
    };
    for (name, (mode, content)) in files {
        match content {
            None => entry(name, DIR | mode, b"", None)?,
            Some(bytes) => entry(name, FILE | mode, bytes, None)?,
        }
        if name == "dev" {
            // The kernel opens it before /init could mount anything.
            entry("dev/console", DEVICE | 0o600, b"", Some((5, 1)))?;
        }
    }
    for name in ["bin", "lib", "lib64", "sbin"] {
        entry(name, LINK | 0o777, format!("usr/{name}").as_bytes(), None)?;
    }
    cpio::newc::trailer(&mut out)?;
    Ok(out)
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::GzBuilder::new().mtime(0).write(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// Where an initramfs of this key lies in the cache.
pub fn place(cache: &Path, key: &str) -> PathBuf {
    cache.join("initramfs").join(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// el7's kernel cannot read what el7's modules are packed with in an initramfs: kmod would have to.
    #[test]
    fn packed_modules_are_unpacked_and_listed_so() {
        let tree = tempfile::tempdir().unwrap();
        let modules = tree.path().join("usr/lib/modules/3.10");
        fs::create_dir_all(modules.join("kernel/fs")).unwrap();
        for (name, text) in [
            ("modules.dep", "kernel/fs/overlay.ko.xz: kernel/fs/loop.ko.zst\nkernel/fs/loop.ko.zst:\n"),
            ("modules.alias", ""),
            ("modules.softdep", ""),
            ("modules.builtin", "kernel/fs/squashfs.ko\n"),
        ] {
            fs::write(modules.join(name), text).unwrap();
        }
        let xz =
            command::run_ok(Command::new("xz").arg("--check=crc32"), b"overlay's code", XZ_TIMEOUT).unwrap().stdout;
        fs::write(modules.join("kernel/fs/overlay.ko.xz"), xz).unwrap();
        let zst = zstd::bulk::compress(b"loop's code", ZSTD_LEVEL).unwrap();
        fs::write(modules.join("kernel/fs/loop.ko.zst"), zst).unwrap();
        let asked = ["overlay".to_string()];
        let root = tree.path();
        let parts =
            Parts { root, kernel: "3.10", modules: Some(&asked), node: b"elf", builders: &[], kiln: "1", epoch: 1000 };
        let mut files = Files::new();
        add_modules(&mut files, &parts).unwrap();
        let text = |name: &str| {
            let file = files.get(&format!("usr/lib/modules/3.10/{name}")).and_then(|(_, bytes)| bytes.clone());
            String::from_utf8(file.unwrap_or_default()).unwrap()
        };
        assert_eq!(text("kernel/fs/overlay.ko"), "overlay's code");
        assert_eq!(text("kernel/fs/loop.ko"), "loop's code");
        assert!(text("modules.dep").contains("kernel/fs/overlay.ko: kernel/fs/loop.ko\n"), "{}", text("modules.dep"));
    }
}
